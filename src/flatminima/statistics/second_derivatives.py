"""Whether torch's second derivatives of a network are those of its gradient: tried once a network.

Double backward is believed at one's peril: an operation whose backward is `once_differentiable` loses its terms in
silence where gradients of chosen inputs are asked for, a custom function that forgets what it saved has a constant
derivative, a straight-through estimator has the derivative of another function, and torch's weight norm is wrong
itself. So one product is compared with central differences of gradients, at weights a thousandth away from w (there no
ReLU sits exactly on its kink), on a few samples, in a float64 copy. Two lengths that agree with each other and not with
the product prove it wrong; lengths that do not agree prove nothing, and the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima.core.gradient_check import out_of_memory
from flatminima.core.perturbation import generator
from flatminima.errors import Absent, FlatMinimaError

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_SAMPLES = 4
_LARGEST = 5_000_000  # parameters of which a float64 copy is made; above, float32 in place
_AWAY = 1e-3  # of a tensor's root mean square: the weights that are looked at
_LENGTHS = {torch.float64: (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), torch.float32: (1e-1, 3e-2, 1e-2, 3e-3)}
_RELATIVE = {torch.float64: 0.02, torch.float32: 0.1}  # of a parameter's part of the product
_FLOOR = {torch.float64: 1e-5, torch.float32: 1e-2}  # of the whole product
_SAME = 0.02  # of two lengths
_SEED = 0x5EC0
_WRONG = {
    "hessian": "torch's second derivative of this network is not the derivative of its gradient",
    "gauss_newton": "torch's Jacobian products of this network are not differences of its outputs",
}
UNPROVEN = "unproven"  # code of a check that neither passed nor failed


def refuse_wrong(minimum: Minimum, curvature: str) -> None:
    """Refuse a network whose products with `curvature` are not what differences say.

    Raises:
        Undefined: naming the operation where it is known.
    """
    if curvature not in minimum.examined:
        minimum.examined[curvature] = None  # what is looked at below is a product too
        passes = replace(minimum.passes)
        try:
            minimum.examined[curvature] = _examine(minimum, curvature)
        except BaseException:  # memory ran out, or somebody stops: the next one looks again
            del minimum.examined[curvature]
            raise
        finally:
            spent = minimum.passes.forward - passes.forward + minimum.passes.backward - passes.backward
            minimum.passes.forward, minimum.passes.backward = passes.forward, passes.backward
            minimum.passes.checks += spent
    absent = minimum.examined[curvature]
    if absent is not None and absent.code != UNPROVEN:
        raise absent.raised()


def _examine(minimum: Minimum, curvature: str) -> Absent | None:
    n = len(minimum.samples)
    rows = torch.randint(0, n, (_SAMPLES,), generator=torch.Generator().manual_seed(2)).unique()
    if minimum.halvings:  # memory ran out
        rows = rows[: minimum.batch_size]
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
            return None
        precision = torch.float64 if dtypes == {torch.float64} else torch.float32
    copied.examined[curvature] = None
    with copied.open(), _generic(copied):
        return _compare(copied, curvature, precision)


@contextmanager
def _generic(minimum: Minimum) -> Iterator[None]:
    """Weights a thousandth away, where no pre-activation is exactly zero."""
    parts = []
    for i, p in enumerate(minimum.parameters.tensors):
        noise = torch.randn(p.shape, generator=generator(_SEED, i)).to(p)
        parts.append((p.detach() + _AWAY * _size(p) * noise).reshape(-1))
    with minimum.at(torch.cat(parts)):
        yield


def _compare(minimum: Minimum, curvature: str, precision: torch.dtype) -> Absent | None:
    from flatminima.statistics.curvature import Graph

    indices = torch.arange(len(minimum.samples))
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
        differences.append(projected)
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
    output = minimum.forward(minimum.batch(indices).inputs)
    seed = torch.randn(output.shape, generator=generator(_SEED, 1 << 20)).to(output)
    tensors = minimum.parameters.tensors
    grads = torch.autograd.grad(output, tensors, seed, allow_unused=True, materialize_grads=True)
    return torch.cat([g.to_dense().reshape(-1) for g in grads])


def _outputs(minimum: Minimum, indices: Tensor) -> Tensor:
    with torch.no_grad():
        return minimum.forward(minimum.batch(indices).inputs).double().reshape(-1)


def _suspect(graph: Any) -> str:
    """The operations of a forward pass that torch did not write, or is known to have written wrongly."""
    names = sorted(set(_foreign(graph.output.grad_fn)))
    if names:
        return f"look at {', '.join(names)}"
    return "a rounding or another step with a gradient of its own (a straight-through estimator?)"


def _foreign(root: Any) -> Iterator[str]:
    seen: set[Any] = set()
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            yield type(node).__name__.removesuffix("Backward")
        elif node.name().startswith("WeightNormInterface"):
            yield "weight_norm (make the weights plain with torch.nn.utils.parametrize.remove_parametrizations)"
        nodes += [following for following, _ in node.next_functions]
