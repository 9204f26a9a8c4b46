"""Norms of the weight matrices as they are, for networks that are no chain of ReLU layers: transformers.

What the literature has for them are the products over all weight matrices of Jiang et al. 2020 (eq. 30, 32, 37), which
Yang et al. 2023 (KDD, arXiv 2202.02842) take over to transformers with embeddings and heads as they are. They see
neither LayerNorm nor attention, and bound nothing. A low-rank adapter counts as the matrix that it makes of its
layer's.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatminima.core.statistic import Statistic
from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_NORMALISES = ("LayerNorm", "RMSNorm")  # in the name of a class: by a number that is made from each sample


@dataclass(frozen=True)
class MatrixNorm:
    """Norms of one weight matrix W (out, in): ||W||_F and ||W||_2."""

    frobenius: float
    two: float


@dataclass(frozen=True)
class MatrixNorms(Statistic["dict[str, MatrixNorm]"]):
    """Norms of every weight matrix of a transformer by parameter name, tied ones once, frozen ones too.

    A tensor of more dimensions counts as the matrix (out, rest); low-rank adapters are added to their layer's matrix.

    Raises:
        Undefined: the network has neither LayerNorm nor RMSNorm, and is no transformer.
    """

    def compute(self, minimum: Minimum) -> dict[str, MatrixNorm]:
        if not is_transformer(minimum.model):
            raise Undefined("the network has neither LayerNorm nor RMSNorm, and is no transformer")
        found: dict[str, MatrixNorm] = {}
        with torch.no_grad():
            for name, matrix in _matrices(minimum.model):
                found[name] = _norms(matrix)
        return found


def is_transformer(model: nn.Module) -> bool:
    """Whether a layer divides by a number that it makes from each sample, as all transformers' do."""
    kinds = {type(m).__name__ for m in model.modules()}
    return any(word in kind for kind in kinds for word in _NORMALISES)


def _matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and matrices of the weights that the network multiplies by: adapters merged, weights set aside left out."""
    adapted = {name: m for name, m in model.named_modules() if _active(m)}
    aside = [f"{name}.original_module." for name, m in model.named_modules() if _replaced(m)]
    found: list[tuple[str, Tensor]] = []
    for name, p in model.named_parameters():
        owner = next((path for path in adapted if name.startswith(f"{path}.")), None)
        inside = owner is not None and not name.startswith(f"{owner}.base_layer.")
        if p.dim() < 2 or not p.numel() or inside or name.startswith(tuple(aside)):
            continue
        merged = owner is not None and name == f"{owner}.base_layer.weight"
        found.append((name, _merged(adapted[str(owner)]) if merged else p.detach()))
    return found


def _active(module: Any) -> bool:
    """Whether it is a layer of PEFT that adds to its base layer what is not in its weight yet."""
    known = all(hasattr(module, name) for name in ("base_layer", "merge", "active_adapters", "merged"))
    return known and bool(module.active_adapters) and not module.merged and not module.disable_adapters


def _replaced(module: Any) -> bool:
    """Whether it is a layer of which PEFT keeps the original beside the one that was trained."""
    known = hasattr(module, "original_module") and hasattr(module, "modules_to_save")
    return known and bool(module.active_adapters) and not module.disable_adapters


def _merged(module: Any) -> Tensor:
    """The base layer's weight with the active adapters in it, made on a copy."""
    whole = copy.deepcopy(module)
    whole.merge()
    weight: Tensor = whole.get_base_layer().weight.detach()
    return weight


def _norms(weight: Tensor) -> MatrixNorm:
    matrix = weight.double().flatten(1)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    largest = float(matrix.abs().max())
    if largest == 0:
        return MatrixNorm(0.0, 0.0)
    matrix = matrix / largest  # its squares neither overflow nor vanish
    gram = matrix @ matrix.T
    frobenius, two = float(gram.diagonal().sum()), float(torch.linalg.eigvalsh(gram)[-1])
    return MatrixNorm(largest * math.sqrt(frobenius), largest * math.sqrt(two))
