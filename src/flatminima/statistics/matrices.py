"""Norms of the weight matrices as they are, for networks that are no chain of ReLU layers: transformers.

What the literature has for them are the products over all weight matrices of Jiang et al. 2020 (eq. 30, 32, 37), which
Yang et al. 2023 (KDD, arXiv 2202.02842) take over to transformers with embeddings and heads as they are. They see
neither LayerNorm nor attention, and bound nothing. A low-rank adapter counts as the matrix that it makes of its
layer's.
"""

from __future__ import annotations

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
    """Of one weight matrix W (out, in): ||W||_F and ||W||_2."""

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
    """Names and matrices of the weights, adapters merged into the weight of the layer that they adapt."""
    adapted = {name: m for name, m in model.named_modules() if hasattr(m, "get_delta_weight") and _active(m)}
    found: list[tuple[str, Tensor]] = []
    for name, p in model.named_parameters():
        owner = next((path for path in adapted if name.startswith(f"{path}.")), None)
        if p.dim() < 2 or not p.numel():
            continue
        if owner is None:
            found.append((name, p.detach()))
        elif name == f"{owner}.base_layer.weight":
            found.append((name, p.detach() + _delta(adapted[owner])))
        elif ".base_layer." in name:
            found.append((name, p.detach()))
    return found


def _active(module: Any) -> bool:
    """Whether a PEFT layer adds to its base layer's output what is not in its weight yet."""
    return bool(module.active_adapters) and not module.merged and not module.disable_adapters


def _delta(module: Any) -> Tensor:
    """What the active adapters add to the weight, as `merge_and_unload` would."""
    known = [a for a in module.active_adapters if a in getattr(module, "lora_A", {}) or a in module.scaling]
    return sum((module.get_delta_weight(a) for a in known), torch.zeros_like(module.base_layer.weight))


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
