"""torch's own losses: recognised by what they are, and right to the last digits where networks are certain.

Two truths. At moderate logits torch's own module in float64, differentiated by autograd; at confident ones the textbook
formulas of gradient and Hessian with 400 digits. Each row of LOSSES is a module, what its loss is in formulas, and a
way to make targets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mpmath import mp
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.core.losses import Loss
from flatminima.core.losses.user import UserLoss
from flatminima.errors import DataError
from flatminima.measures import robustness
from flatminima.statistics import Products

W3 = torch.tensor([0.5, 2.0, 1.25])
SOFT = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 1, 2, 0, 1])
# certain and right, certain and wrong, undecided, far apart
CONFIDENT = torch.tensor(
    [[30.0, 1.0, -4.0], [-20.0, 25.0, 0.0], [40.0, -3.0, 2.0], [0.5, -0.25, 0.0], [-60.0, 50.0, 1.0]]
)
SIGNS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.3, 0.0, 1.0], [0.0, 1.0, 1.0]])
PIXELS = torch.tensor([[[0, 1], [2, 0]], [[1, 1], [255, 2]], [[0, 0], [0, 255]], [[2, 1], [0, 1]], [[1, 0], [2, 2]]])
PIXEL_LOGITS = torch.stack([CONFIDENT.roll(k, 0) for k in range(4)], 2).view(5, 3, 2, 2)


@dataclass(frozen=True)
class Row:
    """A loss of torch: the module, logits, targets, and per position the coefficients of its formula."""

    name: str
    module: Callable[[], nn.Module]
    logits: Tensor
    targets: Tensor
    weight: Tensor | None = None
    smoothing: float = 0.0
    pos_weight: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def binary(self) -> bool:
        return self.name.startswith("binary")


def _row(name: str, kind: Any, logits: Tensor, targets: Tensor, **options: Any) -> Row:
    known = {k: options[k] for k in ("weight", "pos_weight") if k in options}
    smoothing = options.get("label_smoothing", 0.0)
    return Row(
        name, lambda: kind(reduction="none", **options), logits, targets, smoothing=smoothing, options=options, **known
    )


CE, BCE = nn.CrossEntropyLoss, nn.BCEWithLogitsLoss
LOSSES = [
    _row("labels", CE, CONFIDENT, LABELS),
    _row("class weights", CE, CONFIDENT, LABELS, weight=W3),
    _row("smoothing", CE, CONFIDENT, LABELS, label_smoothing=0.1),
    _row("weights and smoothing", CE, CONFIDENT, LABELS, weight=W3, label_smoothing=0.2),
    _row("soft labels", CE, CONFIDENT, SOFT),
    _row("soft labels, weights, smoothing", CE, CONFIDENT, SOFT, weight=W3, label_smoothing=0.05),
    _row("pixels, some ignored", CE, PIXEL_LOGITS, PIXELS, ignore_index=255),
    _row("pixels, weights, smoothing", CE, PIXEL_LOGITS, PIXELS, ignore_index=255, weight=W3, label_smoothing=0.1),
    _row("soft pixels", CE, PIXEL_LOGITS, PIXEL_LOGITS.softmax(1).roll(1, 0)),
    _row("binary", BCE, CONFIDENT, SIGNS),
    _row("binary, one output", BCE, CONFIDENT[:, :1], torch.tensor([[1.0], [0.0], [1.0], [0.3], [0.0]])),
    _row("binary, pos_weight", BCE, CONFIDENT, SIGNS, pos_weight=W3),
    _row("binary, weight", BCE, CONFIDENT, SIGNS, weight=W3, pos_weight=torch.tensor(3.0)),
]
IDS = [row.name for row in LOSSES]


# -- truth: 400 digits -----------------------------------------------------------------------------------------------


def _positions(row: Row, i: int) -> list[tuple[list[int], list[Any]]]:
    """Of sample i each position that counts: the flat places of its logits, and its coefficients a."""
    z = row.logits[i].double()
    classes, places = z.shape[0], z[0].numel()
    w = [mp.mpf(float(x)) for x in (torch.ones(classes) if row.weight is None else row.weight)]
    eps = mp.mpf(row.smoothing)
    out = []
    for k in range(places):
        if row.targets.is_floating_point():
            q = [mp.mpf(float(x)) for x in row.targets[i].double().reshape(classes, places)[:, k]]
        else:
            label = int(row.targets[i].reshape(-1)[k])
            if label == row.options.get("ignore_index", -100):
                continue
            q = [mp.mpf(c == label) for c in range(classes)]
        if row.targets.is_floating_point():
            a = [w[c] * ((1 - eps) * q[c] + eps / classes) for c in range(classes)]
        else:
            a = [(1 - eps) * w[c] * q[c] + eps / classes * w[c] for c in range(classes)]
        out.append(([c * places + k for c in range(classes)], a))
    return [(at, [x / len(out) for x in a]) for at, a in out]


def truth(row: Row, i: int, logits: Tensor) -> tuple[Any, list[Any], list[list[Any]]]:
    """Loss, gradient and Hessian of sample i, exact but for 400 digits."""
    z = [mp.mpf(float(x)) for x in logits[i].double().reshape(-1)]
    size = len(z)
    loss, gradient = mp.mpf(0), [mp.mpf(0)] * size
    hessian = [[mp.mpf(0)] * size for _ in range(size)]
    if row.binary:
        for d in range(size):
            t = mp.mpf(float(row.targets[i, d]))
            weight = mp.mpf(1) if row.weight is None else mp.mpf(float(row.weight[d]))
            pos = mp.mpf(1) if row.pos_weight is None else mp.mpf(float(row.pos_weight.expand(size)[d]))
            a, b, s = weight * pos * t / size, weight * (1 - t) / size, 1 / (1 + mp.e ** (-z[d]))
            loss += -a * mp.log(s) - b * mp.log(1 - s)
            gradient[d] = b * s - a * (1 - s)
            hessian[d][d] = (a + b) * s * (1 - s)
        return loss, gradient, hessian
    for at, a in _positions(row, i):
        total, powers = sum(a), [mp.e ** z[j] for j in at]
        p = [x / sum(powers) for x in powers]
        loss += sum(-x * mp.log(q) for x, q in zip(a, p, strict=True))
        for c, j in enumerate(at):
            gradient[j] = total * p[c] - a[c]
            for d, k in enumerate(at):
                hessian[j][k] = total * (p[c] * (c == d) - p[c] * p[d])
    return loss, gradient, hessian


def _norm(values: Any) -> Any:
    return mp.sqrt(sum(mp.mpf(v) ** 2 for v in values))


def _off(found: Tensor, right: list[Any]) -> float:
    """Distance over the length of what is right."""
    pairs = zip(found.double().reshape(-1).tolist(), right, strict=True)
    return float(_norm([mp.mpf(f) - r for f, r in pairs]) / _norm(right))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("row", LOSSES, ids=IDS)
def test_every_digit_where_the_network_is_certain(row: Row, dtype: torch.dtype) -> None:
    """Values, seeds, residuals, factors and second derivatives; catches every p_y - 1 and 1 - sigma."""
    loss, logits = Loss.of(row.module()), row.logits.to(dtype)
    close = 1e-12 if dtype == torch.float64 else 2e-6
    unit, log_norm = loss.seed(logits, row.targets)
    columns = loss.columns(logits, row.targets).flatten(2)
    leaf = logits.clone().requires_grad_()
    values, residual = loss(leaf, row.targets).detach(), loss.residual(leaf, row.targets)
    size = logits[0].numel()
    second = torch.stack(
        [
            torch.autograd.grad(residual.flatten(1)[:, j].sum(), leaf, retain_graph=True)[0].flatten(1)
            for j in range(size)
        ],
        1,
    )  # (samples, size, size)
    with mp.workdps(400):
        for i in range(len(logits)):
            value, gradient, hessian = truth(row, i, logits)
            flat = [x for line in hessian for x in line]
            assert float(abs(mp.mpf(float(values[i])) - value) / value) < close
            assert _off(residual[i], gradient) < close
            assert _off(unit[i], [g / _norm(gradient) for g in gradient]) < close
            assert float(log_norm[i]) == pytest.approx(float(mp.log(_norm(gradient))), rel=1e-12, abs=1e-12)
            assert _off(second[i], flat) < close
            assert _off(columns[:, i].double().T @ columns[:, i].double(), flat) < close


@pytest.mark.parametrize("row", LOSSES, ids=IDS)
def test_the_formulas_are_torchs(row: Row) -> None:
    """At logits of size one: torch's module in float64, averaged over positions that count, and autograd."""
    loss, module = Loss.of(row.module()), row.module().double()
    logits = (row.logits / 30).double().requires_grad_()
    counted = torch.ones(len(logits), dtype=torch.float64)
    if not row.targets.is_floating_point():
        counted = (row.targets != row.options.get("ignore_index", -100)).reshape(len(logits), -1).sum(1).double()
    targets = row.targets.double() if row.targets.is_floating_point() else row.targets
    entries = module(logits, targets).reshape(len(logits), -1)
    plain = entries.mean(1) if row.targets.is_floating_point() else entries.sum(1) / counted
    torch.testing.assert_close(loss(logits, targets), plain)
    (first,) = torch.autograd.grad(plain.sum(), logits, create_graph=True)
    torch.testing.assert_close(loss.residual(logits, targets), first)
    v = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (right,) = torch.autograd.grad(first, logits, v)
    (found,) = torch.autograd.grad(loss.residual(logits, targets), logits, v)
    torch.testing.assert_close(found, right)


def test_autograd_of_torchs_module_is_wrong_there() -> None:
    """Why this file exists: the error of the plain way at the confident logits, in float32."""
    logits = CONFIDENT[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.CrossEntropyLoss(reduction="none")(logits, LABELS[:1]).sum(), logits)
    with mp.workdps(400):
        assert _off(gradient, truth(LOSSES[0], 0, CONFIDENT)[1]) > 0.5


# -- what is recognised ----------------------------------------------------------------------------------------------


class Renamed(nn.CrossEntropyLoss):
    """No override: the same loss."""


class Doubled(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)


class CrossEntropyLoss(nn.Module):
    """The name is torch's, the loss is not."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return input.square().sum(1)


def _hooked() -> nn.Module:
    loss = nn.CrossEntropyLoss(reduction="none")
    loss.register_forward_hook(lambda module, args, out: 3 * out)
    return loss


def _patched() -> nn.Module:
    loss = nn.CrossEntropyLoss(reduction="none")
    loss.forward = lambda input, target: input.square().sum(1)  # type: ignore[method-assign]
    return loss


KNOWN: dict[str, Callable[[], Any]] = {
    "module": lambda: nn.CrossEntropyLoss(reduction="none"),
    "mean": nn.CrossEntropyLoss,
    "subclass": lambda: Renamed(reduction="none"),
    "bound forward": lambda: nn.CrossEntropyLoss(reduction="none").forward,
    "function": lambda: F.cross_entropy,
    "partial": lambda: functools.partial(F.cross_entropy, reduction="none"),
    "partial of a partial": lambda: functools.partial(
        functools.partial(F.cross_entropy, reduction="none"), weight=torch.ones(3)
    ),
    "old options": lambda: nn.CrossEntropyLoss(reduce=False),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("name", KNOWN)
def test_recognised(name: str) -> None:
    found, right = Loss.of(KNOWN[name]()), Loss.of("cross_entropy")
    assert torch.equal(found(CONFIDENT, LABELS), right(CONFIDENT, LABELS))
    for one, other in zip(found.seed(CONFIDENT, LABELS), right.seed(CONFIDENT, LABELS), strict=True):
        assert torch.equal(one, other)
    assert found.fitted(CONFIDENT, LABELS).labels and not found.fitted(CONFIDENT, SOFT).labels


CALLABLES: dict[str, tuple[Callable[[], Any], float]] = {
    "a subclass that overrides forward": (lambda: Doubled(reduction="none"), 2.0),
    "hooks": (_hooked, 3.0),
    "a lambda": (lambda: lambda o, t: F.cross_entropy(o, t, reduction="none"), 1.0),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_what_computes_something_else_is_a_callable(name: str) -> None:
    make, factor = CALLABLES[name]
    loss, logits = Loss.of(make()), CONFIDENT / 20
    assert isinstance(loss, UserLoss)
    torch.testing.assert_close(loss(logits, LABELS).float(), factor * F.cross_entropy(logits, LABELS, reduction="none"))


@pytest.mark.parametrize("make", [CrossEntropyLoss, _patched])
def test_names_do_not_count(make: Callable[[], nn.Module]) -> None:
    torch.testing.assert_close(Loss.of(make())(CONFIDENT, LABELS).float(), CONFIDENT.square().sum(1))


def test_a_network_that_ends_in_log_softmax() -> None:
    """NLLLoss of log-probabilities is the cross-entropy, whose digits autograd loses inside the network."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=g), torch.arange(12) % 3
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(3 * torch.randn(p.shape, generator=g))
    y = plain(x).argmax(1)  # certain and right
    ended = nn.Sequential(*plain, nn.LogSoftmax(1))
    for curvature in ("hessian", "gauss_newton"):
        v = torch.randn(sum(p.numel() for p in plain.parameters()), generator=g)
        one = Products(Minimum(plain, (x, y)), curvature=curvature)(v)
        for loss in (nn.NLLLoss(reduction="none"), nn.NLLLoss(), functools.partial(F.nll_loss, reduction="none")):
            other = Products(Minimum(ended, (x, y), loss), curvature=curvature)(v)
            assert float((one - other).norm()) < 1e-4 * float(one.norm())
    with pytest.raises(DataError, match=r"needs log-probabilities.*end the network in LogSoftmax"):
        Minimum(plain, (x, y), nn.NLLLoss())


def test_class_weights_leave_the_robustness_alone() -> None:
    """It is the softmax's; the weighted loss's Gauss-Newton columns are not."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=g), torch.arange(12) % 3
    model = nn.Linear(4, 3)
    one, other = (
        Minimum(model, (x, y), loss) for loss in ("cross_entropy", nn.CrossEntropyLoss(weight=W3, reduction="none"))
    )
    assert float(robustness(one, samples=12)) == pytest.approx(float(robustness(other, samples=12)), rel=1e-3)


REFUSED: list[tuple[str, Any, Tensor, Tensor, str]] = [
    ("a sum", lambda: nn.CrossEntropyLoss(reduction="sum"), CONFIDENT, LABELS, "reduction='sum', which mixes.*'none'"),
    ("a weighted mean", lambda: CE(weight=W3), CONFIDENT, LABELS, "divides by the weights of the whole batch.*'none'"),
    ("an uneven mean", lambda: CE(ignore_index=255), PIXEL_LOGITS, PIXELS, "some targets of sample 101 are ignored"),
    ("a class too many", lambda: CE(reduction="none"), CONFIDENT, LABELS + 1, "label 3 of sample 102 is out of range"),
    ("-100", lambda: CE(reduction="none"), CONFIDENT, LABELS - 100, "label -100 of sample 100 is ignored.*leave those"),
    ("an ignored label", lambda: CE(ignore_index=2), CONFIDENT, LABELS, "label 2 of sample 102 is ignored by Cross"),
    ("one of none", lambda: CE(ignore_index=2, reduction="none"), CONFIDENT, LABELS, "label 2 of sample"),
    ("one of nll", lambda: nn.NLLLoss(ignore_index=2), CONFIDENT, LABELS, "label 2 of sample 102 is ignored by NLL"),
    ("one of a partial", lambda: functools.partial(F.nll_loss, ignore_index=2), CONFIDENT, LABELS, "by nll_loss"),
    ("below 0", lambda: CE(reduction="none"), CONFIDENT, LABELS - 9, "label -9 of sample 100 is out of range"),
    ("weights", lambda: CE(weight=torch.ones(4), reduction="none"), CONFIDENT, LABELS, r"shape \(4,\).*3 classes"),
    ("negative", lambda: CE(reduction="none"), CONFIDENT, SOFT - 0.1, "soft labels of sample 101 are negative"),
    ("shape", lambda: CE(reduction="none"), CONFIDENT, SOFT[:, :2], r"soft labels of shape \(2,\) a sample"),
    ("bool", lambda: CE(reduction="none"), CONFIDENT, LABELS > 0, "dtype torch.bool"),
    ("binary", lambda: BCE(reduction="none"), CONFIDENT, SIGNS[:, 0], "equal shapes"),
    ("weight a sample", lambda: BCE(weight=torch.ones(5, 1)), CONFIDENT, SIGNS, r"weight of shape \(5, 1\)"),
]


@pytest.mark.parametrize(("make", "logits", "targets", "message"), [pytest.param(*r[1:], id=r[0]) for r in REFUSED])
def test_refused_in_one_line(make: Any, logits: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Loss.of(make()).check_targets(targets, logits, torch.arange(100, 105))
    assert "\n" not in str(caught.value)


# -- callables -------------------------------------------------------------------------------------------------------


def test_a_callable_is_evaluated_in_float64() -> None:
    """1 - p_y of 5e-10 is 0 in float32; float64 gives it to seven digits, and the loss's own value as well."""
    logits, labels = torch.tensor([[21.5, 0.0]]), torch.tensor([0])
    loss = Loss.of(lambda o, t: F.cross_entropy(o, t, reduction="none"))
    right = Loss.of("cross_entropy")
    assert float(loss.seed(logits, labels)[1]) == pytest.approx(float(right.seed(logits, labels)[1]), rel=1e-6)
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(loss.residual(leaf, labels), right.residual(leaf, labels), rtol=1e-6, atol=0.0)
    assert loss.residual(leaf, labels).dtype == torch.float32 and loss.notes == ()


NOTED: dict[str, tuple[Any, float]] = {
    "float64 cancels": (lambda o, t: F.cross_entropy(o, t, reduction="none"), 35.0),
    "constants in float32": (lambda o, t: -(o.log_softmax(1) @ torch.eye(2))[torch.arange(len(t)), t], 14.0),
    "a cast inside": (lambda o, t: F.cross_entropy(o.float(), t, reduction="none"), 14.0),
    "a sigmoid that is 1": (lambda o, t: -(o[:, 0] - o[:, 1]).sigmoid().log(), 60.0),
}


@pytest.mark.parametrize("name", NOTED)
def test_a_callable_that_loses_its_digits_is_noted(name: str) -> None:
    function, margin = NOTED[name]
    loss = Loss.of(function)
    loss.seed(torch.tensor([[margin / 4, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert loss.notes == ()
    loss.seed(torch.tensor([[1.0, 0.0], [margin, 0.0]]), torch.tensor([1, 0]))
    (note,) = loss.notes
    assert "rounding errors" in note and "\n" not in note


PROBABLE: dict[str, tuple[nn.Module, Any]] = {
    "softmax": (nn.Softmax(1), lambda o, t: -o[torch.arange(len(t)), t].log()),
    "log-softmax": (nn.LogSoftmax(1), lambda o, t: F.nll_loss(o, t, reduction="none")),
    "sigmoid": (nn.Sigmoid(), nn.BCELoss(reduction="none")),
    "sigmoid, function": (nn.Sigmoid(), functools.partial(F.binary_cross_entropy, reduction="none")),
}


@pytest.mark.parametrize("name", PROBABLE)
def test_probabilities_are_noted_where_they_are_certain(name: str) -> None:
    """p - 1 is lost in the network's own last layer. The callable is never asked about outputs outside [0, 1]."""
    last, function = PROBABLE[name]
    targets = LABELS if "sigmoid" not in name else SIGNS
    for scale, noted in ((0.02, False), (0.5, True)):
        m = Minimum(nn.Sequential(nn.Linear(3, 3), last), (scale * CONFIDENT, targets), function)
        with m.open(), torch.no_grad():
            m.model[0].weight.copy_(torch.eye(3))  # type: ignore[union-attr, operator]
            m.model[0].bias.zero_()  # type: ignore[union-attr, operator]
            outputs = m.forward(scale * CONFIDENT)
        m.loss.seed(outputs, targets)
        assert any("outputs are probabilities" in note for note in m.loss.notes) == noted


def test_a_certain_callable_is_not_taken_for_concave() -> None:
    """Its Hessian is rounding, of either sign."""
    loss = Loss.of(lambda o, t: F.cross_entropy(o, t, reduction="none"))
    loss.refuse_concave(40 * torch.eye(3).repeat(20, 1) + torch.randn(60, 3), torch.arange(60) % 3)
