"""Norms of the weight matrices as they are, for networks that are no chain of ReLU layers: transformers.

What the literature has for them are the products over all weight matrices of Jiang et al. 2020 (eq. 30, 32, 37), which
Yang et al. 2023 (KDD, arXiv 2202.02842) take over to transformers with embeddings and heads as they are. They see
neither LayerNorm nor attention, and bound nothing. Weights are those in effect: a low-rank adapter counts as the matrix
that it makes of its layer's, weight_norm, spectral_norm, pruning and any other parametrization as the weight they make.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from flatminima.core.parameters import copied
from flatminima.core.statistic import Statistic
from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_MAKERS = (WeightNorm, SpectralNorm, BasePruningMethod)  # hooks that make a weight before each forward pass
_NORMALISES = ("LayerNorm", "RMSNorm")  # in the name of a class: by a number that is made from each sample


@dataclass(frozen=True)
class MatrixNorm:
    """Norms of one weight matrix W (out, in): ||W||_F and ||W||_2."""

    frobenius: float
    two: float


@dataclass(frozen=True)
class MatrixNorms(Statistic["dict[str, MatrixNorm]"]):
    """Norms of every weight matrix of a transformer by parameter name, tied ones once, frozen ones too.

    A tensor of more dimensions counts as the matrix (out, rest); low-rank adapters are added to their layer's matrix,
    and of a parametrized weight the one that it makes counts, in the place of what it is made from.

    Raises:
        Undefined: the network has neither LayerNorm nor RMSNorm, and is no transformer.
    """

    def compute(self, minimum: Minimum) -> dict[str, MatrixNorm]:
        if not is_transformer(minimum.model):
            raise Undefined("the network has neither LayerNorm nor RMSNorm, and is no transformer")
        found: dict[str, MatrixNorm] = {}
        with minimum.open(), torch.no_grad():
            for name, matrix in matrices_of(minimum.model):
                found[name] = _norms(matrix)
        return found


def is_transformer(model: nn.Module) -> bool:
    """Whether a layer divides by a number that it makes from each sample, as all transformers' do."""
    kinds = {type(m).__name__ for m in model.modules()}
    return any(word in kind for kind in kinds for word in _NORMALISES)


def matrices_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and weights, of two dimensions or more, that the network multiplies by, in eval mode and without a graph.

    Parametrized weights are made, adapters merged, weights set aside left out.
    """
    adapted = {name: m for name, m in model.named_modules() if _active(m)}
    aside = [f"{name}.original_module." for name, m in model.named_modules() if _replaced(m)]
    found: list[tuple[str, Tensor]] = []
    for name, p in _weights(model):
        owner = next((path for path in adapted if name.startswith(f"{path}.")), None)
        inside = owner is not None and not name.startswith(f"{owner}.base_layer.")
        if p.dim() < 2 or not p.numel() or inside or name.startswith(tuple(aside)):
            continue
        merged = owner is not None and name == f"{owner}.base_layer.weight"
        found.append((name, _merged(adapted[str(owner)]) if merged else p.detach()))
    return found


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and parameters, and in the place of those that a weight is made from, the weight; tied ones once."""
    inside: set[str] = set()
    made: dict[frozenset[int], list[tuple[str, Tensor]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names, weights = _made(module)
        if weights:
            prefix = f"{path}." if path else ""
            inside.update(prefix + name for name in names)
            sources = frozenset(id(module.get_parameter(name)) for name in names)
            made.setdefault(sources, [(prefix + name, weight) for name, weight in weights.items()])
    every = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if name not in inside]
    plain = {id(p): (name, p.detach()) for name, p in reversed(every)}  # under its first name
    return [*reversed(plain.values()), *(pair for found in made.values() for pair in found)]


def _made(module: nn.Module) -> tuple[set[str], dict[str, Tensor]]:
    """Names of parameters that weights of this module are made from, and those weights, by attribute."""
    if is_parametrized(module):
        lists: Any = module.parametrizations
        names = {f"parametrizations.{name}" for name, _ in lists.named_parameters()}
        return names, {name: getattr(module, name).detach() for name in lists}
    hooks: list[Any] = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _MAKERS)]
    if not hooks:
        return set(), {}
    whole = copied(module)
    for hook in hooks:
        hook(whole, ())
    names = {name for hook in hooks for name in _sources(hook)}
    attributes = {_attribute(hook) for hook in hooks} - names
    held = {name for name, _ in module.named_parameters(recurse=False)}
    return names & held, {name: getattr(whole, name).detach() for name in sorted(attributes)}


def _attribute(hook: Any) -> str:
    return str(hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name)


def _sources(hook: Any) -> list[str]:
    """Attributes that a hook makes its weight from."""
    endings = ("_g", "_v") if isinstance(hook, WeightNorm) else ("_orig",)
    return [_attribute(hook) + ending for ending in endings]


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
