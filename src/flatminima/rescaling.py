"""The re-parameterisation audit: the same function with other weights, and what each measure makes of it.

A ReLU layer's output times a, the next layer's weights divided by a (Dinh et al. 2017; Wang et al. 2018, sec. 5), or
the weights ahead of a BatchNorm times a: predictions stay, curvature and norms move. A measure that moves with them
compares networks only up to such a choice. Each re-parameterisation is tried on the network and kept only if its
outputs did not change; nothing is assumed from the architecture.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from flatminima import progress
from flatminima.core.ambient import in_neutral
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import copied
from flatminima.display import html
from flatminima.errors import NumericalError, Undefined, UsageError
from flatminima.escaping import shown
from flatminima.estimate import Estimate
from flatminima.measuring import MeasureFunction, functions, measure

FACTORS = (1e-2, 1e-1, 1.0, 1e1, 1e2)
_SAMPLES = 64  # on which the outputs must agree
_UNCHANGED = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative to the largest output
_UNCHANGED_DEFAULT = 5e-2
_PAIRS = 12  # neighbouring layers tried before giving up
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
_LINEAR = (nn.Linear, _ConvNd)

INVARIANT = 1e-3  # relative spread below which a measure counts as unchanged


@dataclass(frozen=True)
class Rescaling:
    """A re-parameterisation that left the outputs as they were.

    Attributes:
        kind: ``"layer"`` or ``"batchnorm"``.
        first, second: names of the two modules: `first` gives `a` times its output; `second` takes it back.
        drift: largest change of an output over the factors, relative to the largest output.
    """

    kind: str
    first: str
    second: str
    drift: float

    def __str__(self) -> str:
        if self.kind == "layer":
            return f"{self.first} x a, {self.second} / a"
        return f"{self.first} x a ahead of BatchNorm {self.second}"


@dataclass(frozen=True)
class Audit:
    """Values of each measure for one function under its re-parameterisations.

    Attributes:
        factors: the values of a.
        values: rescaling -> measure -> Estimate at each factor.
    """

    factors: tuple[float, ...]
    values: dict[Rescaling, dict[str, tuple[Estimate, ...]]]

    def spread(self, rescaling: Rescaling, name: str) -> float | None:
        """(largest - smallest) / largest |value| over the factors; None where one of them is undefined."""
        found = [e.value for e in self.values[rescaling][name]]
        if any(v is None for v in found):
            return None
        numbers = [float(v) for v in found if v is not None]
        top = max(map(abs, numbers))
        return (max(numbers) - min(numbers)) / top if top > 0 else 0.0

    def invariant(self, rescaling: Rescaling, name: str) -> bool | None:
        """Whether a measure stayed within a thousandth; None where it is undefined."""
        spread = self.spread(rescaling, name)
        return None if spread is None else spread < INVARIANT

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "schema": 1,
            "factors": list(self.factors),
            "rescalings": [
                {
                    "kind": r.kind,
                    "first": r.first,
                    "second": r.second,
                    "drift": r.drift,
                    "measures": {
                        name: {
                            "values": [e.value for e in row],
                            "undefined": next((e.undefined for e in row if e.undefined), None),
                            "spread": self.spread(r, name),
                            "invariant": self.invariant(r, name),
                        }
                        for name, row in rows.items()
                    },
                }
                for r, rows in self.values.items()
            ],
        }

    def _repr_html_(self) -> str:
        return html("audit", self)

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        render_audit(self, Console(file=buffer, width=80, force_terminal=False, no_color=True))
        return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).strip("\n")


@in_neutral
def audit(
    minimum: Minimum,
    measures: Iterable[str | MeasureFunction] | None = None,
    *,
    factors: Sequence[float] = FACTORS,
) -> Audit:
    """Measure one function under re-parameterisations that do not change it.

    Args:
        minimum: the network, its data and its loss; it is left as it is, copies are rescaled.
        measures: as for `measure`; each is computed once a factor and rescaling.
        factors: values of a, positive; 1 is the network itself.

    Returns:
        An Audit of the first layer rescaling and the first rescaling ahead of a BatchNorm that were found.

    Raises:
        UsageError: factors that are fewer than two, or not positive and finite.
        Undefined: no re-parameterisation of this network was found.

    Source:
        Dinh et al. 2017, arXiv 1703.04933; Wang et al., arXiv 1809.07402, sec. 5.

    Examples:
        >>> _ = torch.manual_seed(0)  # of four units all may be dead, and a dead network is flat at every scale
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        >>> m = Minimum(net, (torch.eye(2).double(), torch.tensor([0, 1])))
        >>> found = audit(m, ["parameter_count", "hessian_trace"])
        >>> (rescaling,) = found.values
        >>> found.invariant(rescaling, "parameter_count"), found.invariant(rescaling, "hessian_trace")
        (True, False)
    """
    if len(factors) < 2 or not all(0 < a < math.inf for a in factors):
        raise UsageError(f"got factors={tuple(factors)!r}; give two or more, positive and finite")
    chosen = functions(measures)
    found = rescalings(minimum, factors)
    if not found:
        raise Undefined(
            "no re-parameterisation was found: no neighbouring layers whose rescaling leaves the outputs unchanged "
            "(smooth activations have none)"
        )
    values: dict[Rescaling, dict[str, tuple[Estimate, ...]]] = {}
    done = 0
    for rescaling in found:
        tables = []
        for a in factors:
            tables.append(measure(_rescaled(minimum, rescaling, a), chosen.values()))
            done += 1
            progress.report("re-parameterisation audit", done, len(found) * len(factors))
        names = zip(chosen, *tables, strict=True)  # one row a function, in the same order everywhere
        values[rescaling] = {name: tuple(t[k] for t, k in zip(tables, keys, strict=True)) for name, *keys in names}
    return Audit(tuple(factors), values)


@in_neutral
def rescalings(minimum: Minimum, factors: Sequence[float] = FACTORS) -> list[Rescaling]:
    """The first rescaling of each kind that leaves the outputs unchanged at all factors."""
    order = _order(minimum)
    pairs = list(itertools.pairwise(order))
    layer = [(a, b) for a, b in pairs if isinstance(b[1], _LINEAR)]
    norm = [(a, b) for a, b in pairs if isinstance(a[1], _LINEAR) and isinstance(b[1], _BatchNorm)]
    found = []
    for kind, candidates in (("layer", layer), ("batchnorm", norm)):
        for (first, _), (second, _) in candidates[:_PAIRS]:
            drift = _drift(minimum, Rescaling(kind, first, second, 0.0), factors)
            if drift is not None:
                found.append(Rescaling(kind, first, second, drift))
                break
    return found


def _order(minimum: Minimum) -> list[tuple[str, nn.Module]]:
    """The modules with weights that act linearly, as the forward pass calls them, those called once only."""
    calls: list[tuple[str, nn.Module]] = []
    hooks = []
    with minimum.open(), torch.no_grad():
        for name, module in minimum.model.named_modules():
            if isinstance(module, (*_LINEAR, *_NORMS)) and getattr(module, "weight", None) is not None:
                hooks.append(module.register_forward_hook(_recorder(calls, name)))
        try:
            minimum.forward(minimum.batch(torch.arange(1)).inputs)
        finally:
            for hook in hooks:
                hook.remove()
    names = [name for name, _ in calls]
    return [(name, module) for name, module in calls if names.count(name) == 1]


def _recorder(calls: list[tuple[str, nn.Module]], name: str) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, output: Any) -> None:
        calls.append((name, module))

    return record


@torch.no_grad()
def _apply(model: nn.Module, rescaling: Rescaling, a: float) -> None:
    first, second = model.get_submodule(rescaling.first), model.get_submodule(rescaling.second)
    for tensor in (first.weight, first.bias):
        if isinstance(tensor, Tensor):
            tensor *= a
    if rescaling.kind == "layer":
        assert isinstance(second.weight, Tensor)
        second.weight.div_(a)
        return
    mean, variance = second.running_mean, second.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        raise Undefined("BatchNorm without running statistics")
    mean *= a
    eps = float(second.eps)  # type: ignore[arg-type]
    variance.copy_(a * a * (variance.double() + eps) - eps)  # so that sqrt(variance + eps) is a times itself


def _rescaled(minimum: Minimum, rescaling: Rescaling, a: float) -> Minimum:
    with minimum.open():
        model = copied(minimum.model).eval()
    _apply(model, rescaling, a)
    return minimum.replace(model=model)


def _drift(minimum: Minimum, rescaling: Rescaling, factors: Sequence[float]) -> float | None:
    """Largest relative change of the outputs; None where the function is another, or cannot be computed."""
    indices = torch.arange(min(_SAMPLES, len(minimum.samples)))
    with minimum.open(), torch.no_grad():
        before = minimum.forward(minimum.batch(indices).inputs)
        allowed = _UNCHANGED.get(before.dtype, _UNCHANGED_DEFAULT)
        worst = 0.0
        for a in factors:
            model = copied(minimum.model)
            try:
                _apply(model, rescaling, a)
                other = minimum.replace(model=model.eval())
                after = other.forward(other.batch(indices).inputs)
            except (Undefined, NumericalError):
                return None
            scale = float(before.abs().max()) or 1.0
            worst = max(worst, float((after - before).abs().max()) / scale)
            if not worst <= allowed:
                return None
    return worst


def render_audit(found: Audit, console: Any) -> None:
    """One table a rescaling on a rich console: the measure at each factor, and whether it moved."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for rescaling, rows in found.values.items():
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        grid.add_column("measure", no_wrap=True)
        for a in found.factors:
            grid.add_column(f"a={a:g}", justify="right", no_wrap=True)
        grid.add_column("", no_wrap=True)
        missing = [name for name in rows if found.invariant(rescaling, name) is None]
        for name, row in rows.items():
            if name not in missing:
                verdict = "same" if found.invariant(rescaling, name) else "moves"
                grid.add_row(Text(name), *(_short(e.value) for e in row), verdict)
        console.print(Text(f"\nRe-parameterised, the function is the same: {shown(rescaling)}"))
        console.print(grid)
        if missing:
            console.print(Text(f"undefined at one factor or more: {', '.join(missing)}"))


def _short(value: float | None) -> str:
    """Three digits in at most eight characters."""
    if value is None:
        return "-"
    digits, exponent, power = f"{value:.3g}".partition("e")
    return f"{digits}{exponent}{int(power)}" if exponent else digits
