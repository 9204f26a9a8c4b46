"""Trainable parameters as one flat vector, each counted once.

`named_parameters` already lists a tied weight once; parameters with `requires_grad=False` are not part of the vector
(and the result says how many were left out).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.identity import content_version, same_content
from flatminima.core.rebinding import Rebinding
from flatminima.core.sharing import repeats
from flatminima.errors import ModelError, NumericalError
from flatminima.escaping import shown


@dataclass(frozen=True)
class Parameters:
    """The trainable parameters of a model, in the order of `named_parameters`."""

    names: tuple[str, ...]
    tensors: tuple[nn.Parameter, ...]
    frozen: int

    @classmethod
    def of(cls, model: nn.Module, shared: Mapping[int, nn.Parameter] = MappingProxyType({})) -> Parameters:
        """Collect; refuse what cannot be measured.

        Args:
            shared: id of a parameter -> the one in whose storage it lies, which represents it.

        Raises:
            ModelError: no trainable parameter, a meta-device or uninitialised one, a quantised or complex one.
            NumericalError: NaN or Inf in a parameter, by name.
        """
        named = [(name, p) for name, p in model.named_parameters() if id(p) not in shared]
        for name, p in named:
            if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta:
                raise ModelError(f"parameter {name!r} holds no values (lazy or meta device): materialise it first")
            if p.is_inference():
                raise ModelError(
                    f"parameter {name!r} was made in inference mode, where nothing can be differentiated: make or load "
                    "the model outside of torch.inference_mode()"
                )
            if repeats(p):
                raise ModelError(f"parameter {name!r} is expanded: several entries are one in memory; clone() it first")
            if not p.is_floating_point():
                raise ModelError(f"parameter {name!r} is {p.dtype}; measures need real floating-point parameters")
            if not bool(torch.isfinite(p).all()):
                raise NumericalError(f"parameter {name!r} holds NaN or Inf; measures need finite weights")
        trainable = [(name, p) for name, p in named if p.requires_grad]
        if not trainable:
            raise ModelError(
                f"no trainable parameter among {len(named)}: measures look at parameters with requires_grad=True"
            )
        frozen = sum(p.numel() for _, p in named) - sum(p.numel() for _, p in trainable)
        names, tensors = zip(*trainable, strict=True)
        return cls(names, tensors, frozen)

    def __len__(self) -> int:
        return sum(p.numel() for p in self.tensors)

    def __iter__(self) -> Iterator[tuple[str, nn.Parameter]]:
        return zip(self.names, self.tensors, strict=True)

    def slices(self) -> dict[str, slice]:
        """Slice of each parameter in the flat vector."""
        out, start = {}, 0
        for name, p in self:
            out[name] = slice(start, start + p.numel())
            start += p.numel()
        return out

    def flat(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weights as one vector (W,), detached and copied."""
        return flatten([p.detach() for p in self.tensors], dtype)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat vector (W,) as tensors shaped like the parameters (views where dtypes agree)."""
        parts = vector.split([p.numel() for p in self.tensors])
        return [part.view(p.shape) for part, p in zip(parts, self.tensors, strict=True)]

    def part(self, vector: Tensor) -> Tensor:
        """The entries of a whole vector (W,) that this process holds: here all of them."""
        return vector

    def agree(self, here: bool) -> bool:
        """Whether something is so for the entries of every process that holds some."""
        return here

    def total(self, sums: Tensor) -> Tensor:
        """Sum of a tensor over the processes that hold entries: here it is whole."""
        return sums

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Copy a flat vector (W,) into the parameters."""
        for p, part in zip(self.tensors, self.split(vector), strict=True):
            p.copy_(part)


def copied(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own: TorchScript's deepcopy would leave them hanging on the original's graph.

    Tensors that have no deepcopy are cloned: compressed sparse ones, and those that a forward pass kept with their
    graph (features, an auxiliary loss, the weight of `torch.nn.utils.weight_norm`). Functions of the model (hooks, a
    forward of its own) that know the original's layers know the copy's in the copy.

    Raises:
        ModelError: an attribute that cannot be copied.
    """
    held = [*model.buffers(), *(t for m in model.modules() for t in _tensors_in(vars(m)))]
    clones: dict[int, Any] = {
        id(t): t.detach().clone() for t in held if not t.is_leaf or t.layout not in (torch.strided, torch.sparse_coo)
    }
    try:
        with torch.no_grad():
            other = copy.deepcopy(model, clones)
            Rebinding(clones).rebind(other)
    except TypeError as error:  # of a lock, a file, a generator
        raise ModelError(f"{shown(type(model).__name__)} cannot be copied: {str(error).splitlines()[0]}") from error
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    return other


@torch.no_grad()
def refuse_reaching_back(outputs: Callable[[], Tensor], originals: Iterable[Tensor]) -> None:
    """Refuse a copy whose outputs are made of the original's weights: these are NaN while it is looked at.

    Args:
        outputs: of the copy. originals: weights of the original, afterwards as before bit for bit.

    Raises:
        ModelError: the outputs are not finite, or not there.
    """
    before = [(p, p.detach().clone(), content_version(p)) for p in originals if p.is_floating_point()]
    try:
        for p, _, _ in before:
            p.fill_(torch.nan)
        try:
            alone = bool(torch.isfinite(outputs()).all())
        except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise
            alone = False
    finally:
        for p, kept, version in before:
            p.copy_(kept)
            same_content(p, version)
    if not alone:
        raise ModelError(
            "a copy of the network, which is needed here (another precision or device), still computes with weights of "
            "the original: make them its own (a submodule, in place of a hook or function that holds a layer)"
        )


def _tensors_in(attributes: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors in attributes, and in lists, tuples and dictionaries in these."""
    stack, seen = [attributes], set()
    while stack:
        held: Any = stack.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        for value in held.values() if isinstance(held, dict) else held:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list | tuple | dict):
                stack.append(value)  # type: ignore[arg-type]


def dense(gradient: Tensor) -> Tensor:
    """A gradient as autograd's dense tensor: of an embedding with ``sparse=True`` it holds rows alone."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def gradients(
    of: Tensor, by: Sequence[Tensor], seed: Tensor | None = None, *, retain_graph: bool = False
) -> list[Tensor]:
    """d `of` / d `by` against `seed`, dense and without a graph; 0 where nothing depends.

    Under torch 2.6 the zeros of `materialize_grads` ask for gradients, and a sum over them keeps every graph.
    """
    found = torch.autograd.grad(of, by, seed, retain_graph=retain_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else dense(g) for g, p in zip(found, by, strict=True)]


def flatten(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Concatenate to one vector; a copy."""
    parts = [t.reshape(-1) for t in tensors]
    if dtype is None:
        return torch.cat(parts)
    whole = torch.empty(sum(len(t) for t in parts), dtype=dtype, device=parts[0].device)
    for slot, part in zip(whole.split([len(t) for t in parts]), parts, strict=True):
        slot.copy_(part)  # one by one: all of them in the other dtype would be a second vector
    return whole


def by_module(names: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    """Sum values of parameters by the module that owns them ('fc1.weight' and 'fc1.bias' to 'fc1')."""
    out: dict[str, float] = {}
    for name, value in zip(names, values, strict=True):
        owner = name.rpartition(".")[0] or name
        out[owner] = out.get(owner, 0.0) + value
    return out


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def frozen(parameters: Parameters) -> Iterator[None]:
    """No parameter requires a gradient within the block."""
    for p in parameters.tensors:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters.tensors:
            p.requires_grad_(True)
