"""Whether torch's second derivatives of a network are those of its gradient: tried once a network.

Double backward is believed at one's peril: an operation whose backward is `once_differentiable` loses its terms in
silence where gradients of chosen inputs are asked for, a custom function that forgets what it saved has a constant
derivative, a straight-through estimator has the derivative of another function, and torch's weight norm is wrong
itself. So one product is compared with central differences of gradients, at weights a thousandth away from w (there no
ReLU sits exactly on its kink), on some samples, in a float64 copy. Two lengths that agree with each other and not with
the product prove it wrong; lengths that do not agree prove nothing, and the table says so.

What only some samples use (an expert, a branch) is looked at when they come: every batch's graph names its operations
and weights, and a kind that no gradient has flown through yet is tried on samples of that batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.weak import WeakIdKeyDictionary

from flatminima.core.gradient_check import out_of_memory
from flatminima.core.output_graph import nodes_of
from flatminima.core.parameters import dense
from flatminima.core.perturbation import generator
from flatminima.errors import Absent, FlatMinimaError

if TYPE_CHECKING:
    from flatminima.core.batch import Batch
    from flatminima.core.minimum import Minimum

_SAMPLES = 16
_FOREIGN_SAMPLES = 64  # where a function is not torch's own: its fault may show for some values only
_FEW = 4  # samples that prove a fault: among many, so many ReLUs cross their kinks that differences say nothing
_LARGEST = 5_000_000  # parameters of which a float64 copy is made; above, float32 in place
_AWAY = 1e-3  # of a tensor's root mean square: the weights that are looked at
_LENGTHS = {
    torch.float64: (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),  # the shortest first, which crosses the fewest kinks
    torch.float32: (1e-1, 3e-2, 1e-2, 3e-3),
}
_PROVING = 1e-6  # lengths from here on: a step within that is computed in float32 does not feel a shorter one
_RELATIVE = {torch.float64: 0.02, torch.float32: 0.1}  # of a parameter's part of the product
_FLOOR = {torch.float64: 1e-5, torch.float32: 1e-2}  # of the whole product
_SAME = 0.02  # of two lengths
_SEED = 0x5EC0
_WRONG = {
    "hessian": "torch's second derivative of this network is not the derivative of its gradient",
    "gauss_newton": "torch's Jacobian products of this network are not differences of its outputs",
}
UNPROVEN = "unproven"  # code of a check that neither passed nor failed
_FUNCTION, _WEIGHT = "function ", "weight "  # beginnings of kinds; the others are torch's operations
_LOOKED_AT: WeakIdKeyDictionary = WeakIdKeyDictionary()  # network -> batches without a kind that is new


def refuse_wrong(minimum: Minimum, curvature: str) -> None:
    """Refuse a network whose products with `curvature` are not what differences say.

    Raises:
        Undefined: naming the operation where it is known.
    """
    if curvature not in minimum.examined:
        minimum.examined[curvature] = None  # what is looked at below is a product too
        try:
            with _counted_as_checks(minimum):
                minimum.examined[curvature] = _examine(minimum, curvature)
        except BaseException:  # memory ran out, or somebody stops: the next one looks again
            del minimum.examined[curvature]
            raise
    absent = minimum.examined[curvature]
    if absent is not None and absent.code != UNPROVEN:
        raise absent.raised()


def refuse_unseen(batch: Batch, output: Tensor, curvature: str) -> bool:
    """Refuse as `refuse_wrong` does, by what this batch uses and no samples before it did.

    Args:
        batch, output: the network's, with its graph. curvature: that `refuse_wrong` has let pass.

    Returns:
        whether something was looked at: weights may have been written and put back, which spoils the graph.

    Raises:
        Undefined: as there.
    """
    minimum = batch.minimum
    new = {kind for kind in _kinds(minimum, output) if _key(curvature, kind) not in minimum.examined}
    looked_at = _LOOKED_AT.setdefault(minimum, set())
    mark = (curvature, batch.indices.cpu().numpy().tobytes())
    if not new or mark in looked_at:
        return False
    with _counted_as_checks(minimum):
        flowing = _flowing(minimum, output, new)
        spoilt = bool(flowing)
        while flowing:
            rows, tried = batch.indices, flowing
            for most in (_FOREIGN_SAMPLES, _FEW) if _foreign_among(flowing) else (_FEW,):
                rows, tried = _users(minimum, rows, tried, most)
                found, _ = _look(minimum, curvature, rows)
                minimum.examined[curvature] = found or minimum.examined[curvature]
                refuse_wrong(minimum, curvature)
            minimum.examined.update(dict.fromkeys(_key(curvature, kind) for kind in tried))
            flowing -= tried
    looked_at.add(mark)
    if spoilt:  # the caller's pass was for this
        minimum.passes.forward -= len(batch)
        minimum.passes.checks += len(batch)
    return spoilt


@contextmanager
def _counted_as_checks(minimum: Minimum) -> Iterator[None]:
    passes = replace(minimum.passes)
    try:
        yield
    finally:
        spent = minimum.passes.forward - passes.forward + minimum.passes.backward - passes.backward
        minimum.passes.forward, minimum.passes.backward = passes.forward, passes.backward
        minimum.passes.checks += spent


def _examine(minimum: Minimum, curvature: str) -> Absent | None:
    """The look at random samples, more of them where an operation is not torch's own."""
    order = torch.randperm(len(minimum.samples), generator=torch.Generator().manual_seed(2))
    order = order[: minimum.batch_size] if minimum.halvings else order[: max(minimum.batch_size, _FEW)]
    absent, kinds = _look(minimum, curvature, order[:_SAMPLES])
    if absent is None and _foreign_among(kinds) and len(order) > _SAMPLES:
        more, others = _look(minimum, curvature, order[_SAMPLES:_FOREIGN_SAMPLES])
        absent = more if more is not None and more.code != UNPROVEN else None
        kinds |= others
    minimum.examined.update(dict.fromkeys(_key(curvature, kind) for kind in kinds))
    return absent


def _users(minimum: Minimum, indices: Tensor, kinds: set[str], most: int) -> tuple[Tensor, set[str]]:
    """At most so many of the samples, some of which use some of these kinds, and which kinds."""
    while len(indices) > most:
        half = indices[: len(indices) // 2]
        here = _flowing(minimum, minimum.forward(minimum.batch(half).inputs), kinds)
        indices, kinds = (half, here) if here else (indices[len(half) :], kinds)
    return indices, kinds


def _look(minimum: Minimum, curvature: str, rows: Tensor) -> tuple[Absent | None, set[str]]:
    """What is wrong on these samples, and the kinds that a gradient flows through there."""
    small = len(minimum.parameters) <= _LARGEST
    try:
        copied = minimum.replace(data=minimum.samples.take(rows), dtype=torch.float64) if small else None
        precision = torch.float64
    except (FlatMinimaError, RuntimeError, TypeError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        copied = None  # a network that insists on a precision of its own
    if copied is None:
        copied, dtypes = minimum.replace(data=minimum.samples.take(rows)), {p.dtype for p in minimum.parameters.tensors}
        if not dtypes <= set(_LENGTHS):
            return None, set()
        precision = torch.float64 if dtypes == {torch.float64} else torch.float32
    copied.examined[curvature] = None
    indices = torch.arange(len(rows))
    with copied.open(), _generic(copied):
        kinds = _flowing(copied, copied.forward(copied.batch(indices).inputs))
        return _search(copied, curvature, precision, indices), kinds


def _search(minimum: Minimum, curvature: str, precision: torch.dtype, indices: Tensor) -> Absent | None:
    """What is wrong on these samples: of many, what is wrong on a few of them."""
    found = _compare(minimum, curvature, precision, indices)
    if found is None or len(indices) <= _FEW:
        return found
    parts = (_search(minimum, curvature, precision, half) for half in indices.tensor_split(2))
    absent = [part for part in parts if part is not None]
    return next((part for part in absent if part.code != UNPROVEN), absent[0] if len(absent) == 2 else None)


@contextmanager
def _generic(minimum: Minimum) -> Iterator[None]:
    """Weights a thousandth away, where no pre-activation is exactly zero."""
    parts = []
    for i, p in enumerate(minimum.parameters.tensors):
        noise = torch.randn(p.shape, generator=generator(_SEED, i)).to(p)
        parts.append((p.detach() + _AWAY * _size(p) * noise).reshape(-1))
    with minimum.at(torch.cat(parts)):
        yield


def _compare(minimum: Minimum, curvature: str, precision: torch.dtype, indices: Tensor) -> Absent | None:
    from flatminima.statistics.curvature import Graph

    weights = minimum.parameters.flat()
    graph = Graph(minimum.batch(indices), curvature, examine=False)  # type: ignore[arg-type]
    sizes_of = [_size(p) for p in minimum.parameters.tensors]  # layers may differ by many orders of magnitude
    vector = torch.cat([torch.full((p.numel(),), s) for p, s in zip(minimum.parameters.tensors, sizes_of, strict=True)])
    vector = torch.randn(len(weights), generator=generator(_SEED, -1)).mul_(vector).to(weights)
    vector[_gradient(minimum, indices) == 0] = 0  # a padding row moves the output, and has no gradient by convention
    if not bool(vector.any()):  # no weight moves any output
        return None
    if curvature == "hessian":
        product = minimum.parameters.split(graph.product(vector))
        probe: Callable[[], list[Tensor]] = lambda: minimum.parameters.split(minimum.mean_gradient(indices)[1])  # noqa: E731
        product = [part / len(indices) for part in product]
        units = sizes_of
    else:
        product, units = [graph.jacobian_product(vector).double().reshape(-1)], [1.0]
        probe = lambda: [_outputs(minimum, indices)]  # noqa: E731
    signs = [
        unit * torch.randn(part.shape, generator=generator(_SEED, -2 - i)).to(part)
        for i, (part, unit) in enumerate(zip(product, units, strict=True))
    ]
    expected = torch.stack([(s * part).sum() for s, part in zip(signs, product, strict=True)])
    sizes = torch.stack([unit * part.norm() for part, unit in zip(product, units, strict=True)])
    allowed = _RELATIVE[precision] * sizes + _FLOOR[precision] * sizes.norm()
    differences: list[Tensor] = []
    for length in _LENGTHS[precision]:
        found = _difference(minimum, weights, vector, length, probe)
        projected = torch.stack([(s * part).sum() for s, part in zip(signs, found, strict=True)])
        if bool(((projected - expected).abs() <= allowed).all()):
            return None
        differences += [projected] if length >= _PROVING else []
    for one, two in pairwise(differences):
        if float((one - two).norm()) <= _SAME * max(float(one.norm()), float(two.norm())):
            return Absent(
                "second_derivative",
                f"{_WRONG[curvature]}: {_suspect(graph)}",
            )
    return Absent(UNPROVEN, f"{curvature} products could not be checked: differences of gradients did not settle")


def _difference(
    minimum: Minimum, weights: Tensor, vector: Tensor, h: float, probe: Callable[[], list[Tensor]]
) -> list[Tensor]:
    """(probe(w + h v) - probe(w - h v)) / 2 h."""
    sides = []
    for sign in (1.0, -1.0):
        minimum.parameters.assign(weights + sign * h * vector)
        sides.append([part.double().clone() for part in probe()])
    minimum.parameters.assign(weights)
    return [(a - b) / (2 * h) for a, b in zip(*sides, strict=True)]


def _size(tensor: Tensor) -> float:
    """Root mean square of a parameter; 1 where it is zero or has no entries."""
    return float(tensor.detach().double().square().mean().sqrt()) or 1.0 if tensor.numel() else 1.0


def _gradient(minimum: Minimum, indices: Tensor) -> Tensor:
    """Of a random combination of the outputs (W,)."""
    grads = _random_gradients(minimum, minimum.forward(minimum.batch(indices).inputs))
    pairs = zip(grads, minimum.parameters.tensors, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else dense(g)).reshape(-1) for g, p in pairs])


def _random_gradients(minimum: Minimum, output: Tensor) -> tuple[Tensor | None, ...]:
    seed = torch.randn(output.shape, generator=generator(_SEED, 1 << 20)).to(output)
    return torch.autograd.grad(output, minimum.parameters.tensors, seed, retain_graph=True, allow_unused=True)


def _outputs(minimum: Minimum, indices: Tensor) -> Tensor:
    with torch.no_grad():
        return minimum.forward(minimum.batch(indices).inputs).double().reshape(-1)


def _suspect(graph: Any) -> str:
    """The operations of a forward pass that torch did not write, or is known to have written wrongly."""
    names = sorted({name for node in nodes_of(graph.output) for name in _foreign(node)})
    if names:
        return f"look at {', '.join(names)}"
    return "a rounding or another step with a gradient of its own (a straight-through estimator?)"


def _foreign(node: Any) -> Iterator[str]:
    if isinstance(node, BackwardCFunction):
        yield type(node).__name__.removesuffix("Backward")
    elif node.name().startswith("WeightNormInterface"):
        yield "weight_norm (make the weights plain with torch.nn.utils.parametrize.remove_parametrizations)"


def _kinds(minimum: Minimum, output: Tensor) -> dict[str, list[Any]]:
    """Nodes of the graph by their operation or, at its ends, by the weight."""
    names = {id(p): name for name, p in minimum.parameters}
    kinds: dict[str, list[Any]] = {}
    for node in nodes_of(output):
        variable = getattr(node, "variable", None)
        if isinstance(node, BackwardCFunction):
            function = type(node)._forward_cls  # type: ignore[attr-defined]
            kind = f"{_FUNCTION}{function.__module__}.{function.__qualname__}"
        elif variable is None:
            kind = node.name()
        elif id(variable) in names:
            kind = f"{_WEIGHT}{names[id(variable)]}"
        else:
            continue
        kinds.setdefault(kind, []).append(node)
    return kinds


def _flowing(minimum: Minimum, output: Tensor, wanted: set[str] | None = None) -> set[str]:
    """Kinds, of the wanted ones or all, that a gradient of random outputs is not zero at."""
    found: set[str] = set()
    if not output.requires_grad:
        return found
    kinds = {kind: nodes for kind, nodes in _kinds(minimum, output).items() if wanted is None or kind in wanted}
    operations = [(kind, node) for kind, nodes in kinds.items() for node in nodes if not kind.startswith(_WEIGHT)]
    hooks = [node.register_prehook(partial(_note, found, kind)) for kind, node in operations]
    try:
        grads = _random_gradients(minimum, output)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(minimum.parameters.names, grads, strict=True)
    return found | ({f"{_WEIGHT}{name}" for name, g in pairs if g is not None and bool(dense(g).any())} & kinds.keys())


def _foreign_among(kinds: set[str]) -> bool:
    """Whether one of the operations is not torch's own."""
    return any(kind.startswith(_FUNCTION) for kind in kinds)


def _note(found: set[str], kind: str, gradients: tuple[Tensor | None, ...]) -> None:
    if kind not in found and any(g is not None and bool(g.any()) for g in gradients):
        found.add(kind)


def _key(curvature: str, kind: str) -> str:
    """Name in `Network.examined` of a kind that was looked at."""
    return f"{curvature} {kind}"
