"""Held-out samples pass the gates of the training data before they decide, and samples without labels are only read."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.errors import DataError
from flatminima.ranking import Choice, rank

G = torch.Generator().manual_seed(0)
X, HELD = torch.randn(200, 5, generator=G), torch.randn(120, 5, generator=G)
W = torch.randn(5, 3, generator=G)
LABELS, HELD_LABELS = (X @ W).argmax(1), (HELD @ W).argmax(1)
NUMBER, HELD_NUMBER = X @ W[:, :1], HELD @ W[:, :1]
BINARY, HELD_BINARY = (NUMBER > 0).float(), (HELD_NUMBER > 0).float()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(1)


@cache
def pair(task: str) -> tuple[nn.Module, nn.Module]:
    """The second is trained for longer."""
    target, outputs, each = {
        "labels": (LABELS, 3, F.cross_entropy),
        "number": (NUMBER, 1, F.mse_loss),
        "binary": (BINARY, 1, F.binary_cross_entropy_with_logits),
    }[task]
    made = []
    for steps in (150, 300):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, outputs))
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            each(model(X), target).backward()
            optimizer.step()
        made.append(model.eval())
    return made[0], made[1]


def compared(task: str, loss: Any, **held: Any) -> Choice:
    target = {"labels": LABELS, "number": NUMBER, "binary": BINARY}[task]
    minima = [Minimum(m, (X, target), loss) for m in pair(task)]
    found = rank(minima, measures=["parameter_norm"], names=["a", "b"], **held).choice
    assert found is not None
    return found


SQUARES = ["mse", squared, nn.HuberLoss(reduction="none")]
CLASSES = ["cross_entropy", nn.CrossEntropyLoss(reduction="none"), cross_entropy]


@pytest.mark.parametrize("loss", SQUARES, ids=["mse", "callable", "Huber"])
@pytest.mark.parametrize("form", ["(n,)", "(n, 1)", "integers"])
def test_one_number_a_sample_has_the_shape_of_training(loss: Any, form: str) -> None:
    """(n,) against outputs (n, 1) was broadcast to (n, n): a loss of 7.2 where it is 0.002."""
    target = HELD_NUMBER.round() if form == "integers" else HELD_NUMBER
    given = target[:, 0] if form == "(n,)" else target.long() if form == "integers" else target
    found = compared("number", loss, test=(HELD, given))
    each = loss if not isinstance(loss, str) else squared
    truth = [float(each(m(HELD).detach(), target).mean()) for m in pair("number")]
    assert [c.test_loss for c in found.candidates] == pytest.approx(truth, rel=1e-4)


IGNORED = torch.where(torch.arange(120) < 60, -100, HELD_LABELS)
FAR = HELD_LABELS.index_fill(0, torch.tensor([3]), 7)
BAD: list[tuple[str, str, Any, Any, str]] = [
    *(("labels", "-100", loss, IGNORED, "label -100") for loss in CLASSES),
    *(("labels", "7", loss, FAR, "label 7 of sample 3") for loss in CLASSES),
    *(("labels", "floats", loss, HELD_LABELS.float(), "float32") for loss in CLASSES),
    *(("number", "three", loss, HELD @ W, r"shape \(3,\)") for loss in SQUARES),
    *(("number", "NaN", loss, HELD_NUMBER / 0, "NaN or Inf in its target") for loss in SQUARES),
    ("binary", "7", "binary_cross_entropy", 7 * HELD_BINARY, "target 7 of sample"),
    ("binary", "-1", nn.BCEWithLogitsLoss(reduction="none"), 2 * HELD_BINARY - 1, "target -1 of sample"),
    ("binary", "-1, callable", lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none")[:, 0],
     2 * HELD_BINARY - 1, "label -1 of sample"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "kind", "loss", "target", "message"), BAD)
def test_targets_that_do_not_fit_are_refused_in_one_line(
    task: str, kind: str, loss: Any, target: Tensor, message: str
) -> None:
    """As in training: -100 counted as an error of 52 % where it was 4 %, and 7 was a raw RuntimeError."""
    with pytest.raises(DataError, match=message) as refused:
        compared(task, loss, test=(HELD, target))
    assert "\n" not in str(refused.value), kind


def test_inputs_that_do_not_fit_are_refused() -> None:
    for held in ({"test": (HELD[:, :4], HELD_LABELS)}, {"unlabelled": (HELD[:, :4], HELD_LABELS)}):
        with pytest.raises(DataError, match="cannot take the inputs"):
            compared("labels", "cross_entropy", **held)


@pytest.mark.parametrize("loss", CLASSES, ids=["name", "module", "callable"])
@pytest.mark.parametrize("hidden", [-1.0, 7.0, float("nan")])
def test_targets_of_unlabelled_samples_are_not_read(loss: Any, hidden: float) -> None:
    target = torch.full((120,), hidden)
    found = compared("labels", loss, unlabelled=(HELD, target if np.isnan(hidden) else target.long()))
    one, other = (m(HELD).argmax(1) for m in pair("labels"))
    assert found.candidates[0].agreement == pytest.approx(float((one == other).double().mean()))


def test_the_confidence_of_one_logit() -> None:
    found = compared("binary", "binary_cross_entropy", unlabelled=(HELD, torch.full((120,), -1)))
    truth = [float(m(HELD).detach().double().abs().sigmoid().mean()) for m in pair("binary")]
    assert [c.confidence for c in found.candidates] == pytest.approx(truth, abs=1e-6)


def test_training_samples_decide_nothing() -> None:
    for held in ((X, LABELS), (X[20:60], LABELS[20:60])):
        with pytest.raises(DataError, match="is a training sample; what was trained on judges nothing"):
            compared("labels", "cross_entropy", test=held)
    some = (torch.cat([X[:30], HELD]), torch.cat([LABELS[:30], HELD_LABELS]))
    said = compared("labels", "cross_entropy", test=some).notes
    assert [n for n in said if "too low" in n] == [
        "Caution: 30 of 150 test samples are training samples too: errors on them are too low"
    ]
    free = compared("labels", "cross_entropy", unlabelled=some).notes
    assert any("30 of 150 samples without labels are training samples too" in n for n in free)


def test_samples_of_few_distinct_inputs_may_occur_in_both() -> None:
    """Would refuse every test set of a truth table."""
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5).repeat(6, 1)
    y = (x.sum(1) > 2).long()
    model = nn.Linear(5, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 5, [4.0] * 5]))
        model.bias.copy_(torch.tensor([0.0, -10.0]))
    minima = [Minimum(m, (x, y)) for m in (model, nn.Sequential(model))]
    found = rank(minima, measures=["parameter_norm"], test=(x[:50], y[:50])).choice
    assert found is not None and found.basis == "errors" and any("50 of 50 test samples" in n for n in found.notes)


def test_a_candidate_with_too_few_classes_is_left_out_alone() -> None:
    torch.manual_seed(2)
    wide = nn.Sequential(pair("labels")[0], nn.ConstantPad1d((0, 1), -9.0))
    minima = [Minimum(m, (X, LABELS)) for m in (pair("labels")[0], wide)]
    target = HELD_LABELS.index_fill(0, torch.tensor([0]), 3)
    found = rank(minima, measures=["parameter_norm"], test=(HELD, target), names=["narrow", "wide"]).choice
    assert found is not None and found.ship == ("wide",) and "label 3 of sample 0" in str(found.candidates[0].left_out)


# -- losses that differ ------------------------------------------------------------------------------------------------


def of_losses(task: str, *losses: Any, test: bool = True) -> Choice:
    target, held = {"labels": (LABELS, HELD_LABELS), "number": (NUMBER, HELD_NUMBER)}[task]
    models = [*pair(task), pair(task)[1]]
    minima = [Minimum(m, (X, target), loss) for m, loss in zip(models, losses, strict=False)]
    held_out = (HELD, held) if test else None
    found = rank(minima, measures=["parameter_norm"], test=held_out, names=["a", "b", "c"][: len(minima)]).choice
    assert found is not None
    return found


def huber(delta: float) -> nn.Module:
    return nn.HuberLoss(reduction="none", delta=delta)


@pytest.mark.parametrize("losses", [("mse", huber(0.02)), (huber(0.02), huber(1.0))], ids=["kinds", "options"])
@pytest.mark.parametrize("test", [True, False])
def test_two_losses_are_compared_by_none(losses: Any, test: bool) -> None:
    """Huber's of 0.0007 beat a squared error of 0.0016, at a squared error of 0.0029."""
    found = of_losses("number", *losses, test=test)
    assert found.ship == () and "HuberLoss(delta=0.02)" in found.answer and "\n" not in found.answer
    assert found.answer.startswith("No answer" if test else "No order")


@pytest.mark.parametrize("other", [nn.MSELoss(reduction="none"), lambda o, t: (o - t).square()[:, 0]])
def test_one_loss_by_two_names_is_one(other: Any) -> None:
    found = of_losses("number", "mse", other)
    assert found.basis == "losses" and found.ship


def test_the_odd_one_of_three_is_left_out() -> None:
    found = of_losses("number", "mse", "mse", huber(0.02))
    assert "not that of most (mse)" in str(found.candidates[2].left_out) and found.pairs and len(found.pairs) == 1


def test_errors_are_compared_where_losses_are_not() -> None:
    found = of_losses("labels", "cross_entropy", nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none"))
    assert found.basis == "errors" and any("compared by errors" in n for n in found.notes)
