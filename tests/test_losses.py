"""Losses, their gradients as unit vectors with a logarithmic length, and their Gauss-Newton factors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mpmath import mp
from torch import Tensor

from flatminima.core.losses import Loss
from flatminima.errors import DataError, Undefined, UnknownName

CE = Loss.of("cross_entropy")
_GRID = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [30.0, 1.0, -4.0], [-90.0, 5.0, 4.0], [800.0, -300.0, 0.0]])
LOGITS, LABELS = _GRID.double(), torch.tensor([0, 1, 0, 0, 0])


def by_mpmath(logits: Tensor, label: int) -> tuple[list[float], float]:
    """softmax - onehot as unit vector and the logarithm of its length, with 400 digits."""
    with mp.workdps(400):
        weights = [mp.e ** mp.mpf(float(z)) for z in logits]
        error = [w / sum(weights) - (1 if j == label else 0) for j, w in enumerate(weights)]
        length = mp.sqrt(sum(e * e for e in error))
        return [float(e / length) for e in error], float(mp.log(length))


def test_the_seed_of_cross_entropy_has_all_its_digits() -> None:
    """Also where p_y is 1 - 1e-348 and the subtraction p_y - 1 gives 0."""
    unit, log_norm = CE.seed(LOGITS, LABELS)
    for i in range(len(LABELS)):
        expected, log_length = by_mpmath(LOGITS[i], int(LABELS[i]))
        assert unit[i].tolist() == pytest.approx(expected, rel=1e-13, abs=1e-300)
        assert float(log_norm[i]) == pytest.approx(log_length, rel=1e-13)


def test_the_seed_in_float32_is_rounded_only_once() -> None:
    unit, log_norm = CE.seed(LOGITS.float(), LABELS)
    exact, log_exact = CE.seed(LOGITS.float().double(), LABELS)
    assert unit.dtype == torch.float32 and log_norm.dtype == torch.float64
    assert torch.equal(unit, exact.float()) and torch.equal(log_norm, log_exact)


def test_a_single_class_has_no_gradient() -> None:
    _, log_norm = CE.seed(torch.tensor([[3.0]]), torch.tensor([0]))
    assert float(log_norm) == -math.inf


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    return torch.log(torch.cosh(output - target)).flatten(1).sum(1)


def weighted(output: Tensor, target: Tensor) -> Tensor:
    """With a constant of its own dtype, as class weights are."""
    return F.cross_entropy(output, target, weight=torch.tensor([1.0, 2.0, 3.0]), reduction="none")


TARGETS = {
    "mse": ("mse", torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()),
    "binary_cross_entropy": ("binary_cross_entropy", torch.tensor([[0.0, 1.0, 0.3]] * 4).double()),
    "log_cosh": (log_cosh, torch.zeros(4, 3).double()),
}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_columns_are_first_and_second_derivatives(name: str) -> None:
    loss, target = Loss.of(TARGETS[name][0]), TARGETS[name][1]
    output = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).double()
    unit, log_norm = loss.seed(output, target)
    columns = loss.columns(output, target)
    for i in range(4):
        one = lambda o, i=i: loss(o[None], target[i : i + 1])[0]  # noqa: E731
        gradient = torch.autograd.functional.jacobian(one, output[i])
        torch.testing.assert_close(unit[i] * log_norm[i].exp(), gradient)
        assert float(unit[i].norm()) == pytest.approx(1.0)
        hessian = torch.autograd.functional.hessian(one, output[i])
        torch.testing.assert_close(columns[:, i].T @ columns[:, i], hessian)


def test_columns_of_cross_entropy() -> None:
    """Outer products add up to diag(p) - p p^T, and 1 - p_c keeps its digits."""
    columns = CE.columns(LOGITS, LABELS)
    for i in range(len(LABELS)):
        with mp.workdps(400):
            weights = [mp.e ** mp.mpf(float(z)) for z in LOGITS[i]]
            p = [w / sum(weights) for w in weights]
            own = [float(mp.sqrt(p[a]) * sum(p[b] for b in range(3) if b != a)) for a in range(3)]
            expected = [[float((p[a] if a == b else 0) - p[a] * p[b]) for b in range(3)] for a in range(3)]
        assert columns[:, i].diagonal().tolist() == pytest.approx(own, rel=1e-12, abs=1e-300)
        found = columns[:, i].T @ columns[:, i]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-300)


def test_a_loss_with_constants_in_float32() -> None:
    """Such a callable cannot be evaluated in float64; its rounding is not taken for concavity."""
    loss = Loss.of(weighted)
    output = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5) % 3
    columns = loss.columns(output, target)
    p = output.softmax(1)
    for i in range(5):
        expected = (1.0 + float(target[i])) * (torch.diag(p[i]) - torch.outer(p[i], p[i]))
        torch.testing.assert_close(columns[:, i].T @ columns[:, i], expected, rtol=1e-4, atol=1e-5)


def test_outputs_without_a_class_dimension() -> None:
    """(batch,) regressions: mse of numbers is their squared difference."""
    loss, output, target = Loss.of("mse"), torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 2.0, 1.0])
    assert loss(output, target).tolist() == [1.0, 0.0, 4.0]
    unit, log_norm = loss.seed(output, target)
    assert unit.tolist() == [1.0, 0.0, -1.0] and log_norm.exp().tolist() == [2.0, 0.0, 4.0]
    torch.testing.assert_close(loss.columns(output, target), torch.full((1, 3), math.sqrt(2.0)))


def test_confident_tokens_keep_their_gradient() -> None:
    """float32 logits of a fitted language model: 1 - p_y of 1e-11 is zero in float32."""
    output, target = torch.tensor([[[25.0, 0.0], [24.0, 0.0]]]), torch.tensor([[0, 0]])
    _, log_norm = Loss.of("token_cross_entropy").seed(output, target)
    p = [math.exp(-25.0) / (1 + math.exp(-25.0)), math.exp(-24.0) / (1 + math.exp(-24.0))]
    assert float(log_norm) == pytest.approx(math.log(math.sqrt(2 * (p[0] ** 2 + p[1] ** 2)) / 2), rel=1e-6)


def test_half_precision_losses_are_float32() -> None:
    output, target = torch.randn(3, 4, dtype=torch.bfloat16), torch.arange(3)
    assert CE(output, target).dtype == torch.float32


def test_ignored_tokens_do_not_count() -> None:
    output = torch.randn(1, 3, 4, dtype=torch.float64)
    found = Loss.of("token_cross_entropy")(output, torch.tensor([[1, -100, 2]]))
    log_p = output[0].log_softmax(1)
    assert float(found) == pytest.approx(float(-(log_p[0, 1] + log_p[2, 2]) / 2))
    shifted = Loss.of("causal_lm")(output, torch.tensor([[0, 1, 2]]))
    assert float(shifted) == pytest.approx(float(-(log_p[0, 1] + log_p[1, 2]) / 2))


# -- refusals --------------------------------------------------------------------------------------------------------


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="unknown loss 'crossentropy': did you mean 'cross_entropy'"):
        Loss.of("crossentropy")


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda o, t: F.cross_entropy(o, t), r"returned \(\) for 3 samples"),
        (lambda o, t: (o[:, 0] - t[:, None]) ** 2, r"returned \(3, 3\) for 3 samples"),
        (lambda o, t: 1.0, "returned float for 3 samples"),
    ],
)
def test_a_loss_must_be_one_number_a_sample(function: object, got: str) -> None:
    with pytest.raises(DataError, match=got + ".*reduction='none'"):
        Loss.of(function)(torch.randn(3, 4), torch.arange(3))  # type: ignore[arg-type]


def test_not_differentiable_and_not_convex() -> None:
    hits = Loss.of(lambda o, t: (o.argmax(1) == t).float())
    with pytest.raises(Undefined, match="no gradient with respect to the output"):
        hits.seed(torch.randn(3, 4), torch.arange(3))
    with pytest.raises(Undefined, match="not convex"):
        Loss.of(lambda o, t: -o.square().sum(1)).columns(torch.randn(3, 4), torch.arange(3))
    with pytest.raises(Undefined, match="1001 columns is too large"):
        Loss.of("mse").columns(torch.randn(2, 1001), torch.randn(2, 1001))


BAD = [
    ("cross_entropy", (3, 4), torch.tensor([0, 4, 1]), r"label 4 of sample 11 is out of range.*4 classes, 0 to 3"),
    ("cross_entropy", (3, 4), torch.tensor([0, 1, -1]), r"label -1 of sample 12 is out of range"),
    ("cross_entropy", (3, 4), torch.tensor([0.0, 1.0, 2.0]), r"dtype torch.float32 .*class indices"),
    ("cross_entropy", (3, 4), torch.tensor([True, False, True]), r"dtype torch.bool"),
    ("cross_entropy", (3, 4), torch.rand(3, 4), r"for soft labels pass a callable loss"),
    ("cross_entropy", (3, 4), torch.zeros(3, 1).long(), r"shape \(3, 1\).*shape \(samples,\)"),
    ("cross_entropy", (3, 5, 4), torch.zeros(3, 5).long(), r"loss='token_cross_entropy'"),
    ("token_cross_entropy", (3, 4), torch.zeros(3).long(), r"needs logits \(tokens, classes\)"),
    ("token_cross_entropy", (3, 2, 4), torch.zeros(3, 3).long(), r"int64 of shape \(samples, 2\)"),
    ("token_cross_entropy", (3, 2, 4), torch.tensor([[0, 1], [7, 1], [0, -100]]), r"label 7 of sample 11"),
    ("token_cross_entropy", (3, 2, 4), torch.tensor([[0, 1], [2, 1], [-100, -100]]), r"target of sample 12 is ignored"),
    ("causal_lm", (3, 2, 4), torch.tensor([[0, 1], [2, -100], [1, 1]]), r"target of sample 11 is ignored"),
    ("mse", (3, 1), torch.randn(3), r"shape \(1,\) and a target of shape \(\).*broadcast in silence"),
    ("mse", (3,), torch.randn(3, 2), r"shape \(\) and a target of shape \(2,\)"),
    ("mse", (3, 4), torch.randn(3, 1), r"shape \(4,\) and a target of shape \(1,\).*broadcast in silence"),
    ("binary_cross_entropy", (3, 1), torch.zeros(3), r"binary_cross_entropy needs equal shapes"),
    (
        "binary_cross_entropy",
        (3, 1),
        torch.tensor([[0.0], [7.0], [1.0]]),
        r"target 7 of sample 11 is not between 0 and",
    ),
    ("binary_cross_entropy", (3, 2), torch.tensor([[0.0, 1.0], [1.0, 0.5], [1.0, -1.0]]), r"target -1 of sample 12 is"),
]


@pytest.mark.parametrize(("name", "shape", "target", "message"), BAD)
def test_targets_that_do_not_fit(name: str, shape: tuple[int, ...], target: Tensor, message: str) -> None:
    """Named by the sample's place in the data, before a kernel asserts (on CUDA that kills the process)."""
    with pytest.raises(DataError, match=message):
        Loss.of(name).check_targets(target, torch.randn(shape), torch.tensor([10, 11, 12]))


@pytest.mark.parametrize("name", ["mse", "binary_cross_entropy"])
def test_a_column_of_targets_is_one_number_a_sample(name: str) -> None:
    """Values and derivatives of outputs (3,) at a column (3, 1), as files give it; broadcast they would be (3, 3)."""
    loss, target = Loss.of(name), torch.tensor([0.2, 1.0, 0.0])
    output = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    loss.check_targets(target[:, None], output.detach(), torch.arange(3))
    one, other = loss(output, target), loss(output, target[:, None])
    assert torch.equal(one, other) and one.shape == (3,)
    for flat, column in zip(loss.seed(output, target), loss.seed(output, target[:, None]), strict=True):
        assert torch.equal(flat, column)
    assert torch.equal(loss.columns(output, target), loss.columns(output, target[:, None]))


def test_a_callable_may_be_called_mse() -> None:
    """Its targets are its own business."""

    def mse(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - target).square()

    Loss.of(mse).check_targets(torch.randn(3), torch.randn(3, 1), torch.arange(3))
