"""Whether candidates fit: every loss against the best constant output, whose truth is a formula or a dense search."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.ranking import look, rank
from flatminima.ranking.answers import answers
from flatminima.ranking.constant import best_constant

G = torch.Generator().manual_seed(0)
X = torch.randn(300, 5, generator=G)
LOGITS = X @ torch.randn(5, 3, generator=G) + 0.5 * torch.randn(300, 3, generator=G)
LABELS = LOGITS.argmax(1)
BINARY = (LABELS == 0).float()[:, None]
HOT = F.one_hot(LABELS, 3).float()
NUMBER = LOGITS[:, :1]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def logistic(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target, reduction="none").mean(1)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(1)


# name -> the loss, targets, outputs
TASKS: dict[str, tuple[Any, Tensor, int]] = {
    "one logit": ("binary_cross_entropy", BINARY, 1),
    "one logit, callable": (logistic, BINARY, 1),
    "0 and 1 by squares": ("mse", BINARY, 1),
    "-1 and 1": (nn.SoftMarginLoss(reduction="none"), 2 * BINARY - 1, 1),
    "one-hot by squares": ("mse", HOT, 3),
    "one-hot logits": ("binary_cross_entropy", HOT, 3),
    "one-hot as soft labels": (nn.CrossEntropyLoss(reduction="none"), HOT, 3),
    "classes, callable": (cross_entropy, LABELS, 3),
    "numbers": ("mse", NUMBER, 1),
    "numbers, callable": (squared, NUMBER, 1),
    "numbers by Huber": (nn.HuberLoss(reduction="none"), NUMBER, 1),
}


def network(seed: int, outputs: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, outputs))


def trained(task: str, seed: int, steps: int = 120) -> nn.Module:
    loss, target, outputs = TASKS[task]
    if not isinstance(loss, str):
        each: Callable[[Tensor, Tensor], Tensor] = loss
    else:
        each = squared if loss == "mse" else logistic
    model = network(seed, outputs)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        each(model(X), target).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


@cache
def good(task: str) -> nn.Module:
    return trained(task, 1)


def zeros(model: nn.Sequential) -> None:
    model[2].weight.zero_()
    model[2].bias.zero_()


def dead(model: nn.Sequential) -> None:
    """No unit ever fires; a bias is left."""
    model[0].bias.fill_(-100.0)


def negated(model: nn.Sequential) -> None:
    for p in model[2].parameters():
        p.neg_()


def tiny(model: nn.Sequential) -> None:
    for p in model[2].parameters():
        p.mul_(1e-3)


def broken(task: str, kind: str) -> nn.Module:
    if kind == "untrained":
        return network(7, TASKS[task][2]).eval()
    if kind == "a step":
        return trained(task, 4, 1)
    model = copy.deepcopy(good(task))
    with torch.no_grad():
        {"zeros": zeros, "dead": dead, "negated": negated, "tiny": tiny}[kind](model)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("kind", ["zeros", "dead", "negated", "tiny", "untrained", "a step"])
@pytest.mark.parametrize("task", list(TASKS))
def test_nothing_that_fits_nothing_is_shipped_whatever_the_loss(task: str, kind: str) -> None:
    """Their norms and curvatures are smallest; without a fit check each comes first by measures."""
    loss, target, _ = TASKS[task]
    minima = [Minimum(m, (X, target), loss) for m in (broken(task, kind), good(task))]
    found = rank(minima, measures=["parameter_norm", "fisher_trace"], names=["broken", "good"]).choice
    assert found is not None and found.ship == ("good",)
    own, other = found.candidates
    assert own.left_out or own.unordered
    assert other.left_out is None and other.unordered is None, other
    if kind in ("zeros", "dead", "negated"):
        assert own.left_out


def test_the_dead_classifier_of_the_report() -> None:
    """One logit, 0 for all: likeliest by measures at 89 % before its loss was looked at."""
    minima = [
        Minimum(m, (X, BINARY), "binary_cross_entropy") for m in (good("one logit"), broken("one logit", "zeros"))
    ]
    found = rank(minima, measures=["parameter_norm"], names=["good", "dead"]).choice
    assert found is not None and found.ship == ("good",)
    assert "no better than the best constant output's" in str(found.candidates[1].left_out)
    share = float(BINARY.mean())
    assert found.candidates[1].train_error == pytest.approx(share)
    assert f"({-share * np.log(share) - (1 - share) * np.log(1 - share):.3g})" in str(found.candidates[1].left_out)


@pytest.mark.parametrize("loss", ["cross_entropy", cross_entropy], ids=["name", "callable"])
def test_saturated_logits_are_in_no_order(loss: Any) -> None:
    """Outputs a thousandfold: no error, no loss and no gradient, so that every measure of curvature is 0."""
    torch.manual_seed(0)
    x = torch.randn(100, 5)
    y = (x @ torch.randn(5, 3)).argmax(1)
    models = []
    for seed in (1, 2):
        model = network(seed, 3)
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        models.append(model.eval())
    large = copy.deepcopy(models[0])
    with torch.no_grad():
        for p in large[2].parameters():
            p.mul_(1000)
    minima = [Minimum(m, (x, y), loss) for m in (large, *models)]
    found = rank(minima, measures=["fisher_trace"], names=["large", "a", "b"]).choice
    assert found is not None and "large" not in found.ship and "0 to rounding" in str(found.candidates[0].unordered)


# -- the constant ----------------------------------------------------------------------------------------------------


def constant_of(loss: Any, target: Tensor, outputs: int) -> Any:
    minimum = Minimum(network(0, outputs).eval(), (X, target), loss, batch_size=70)
    return best_constant(minimum, answers(minimum).outputs, of_labels=False)


def searched(each: Callable[[Tensor, Tensor], Tensor], target: Tensor, outputs: int) -> float:
    """The same by L-BFGS in float64."""
    at = torch.zeros(1, outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([at], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = each(at.expand(len(target), outputs), target).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)
    return float(closure().detach())


WEIGHT = torch.tensor([0.5, 2.0, 1.0])
CONSTANTS: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor], Tensor, int]] = {
    "squares": ("mse", squared, LOGITS, 3),
    "logits": ("binary_cross_entropy", logistic, HOT, 3),
    "weighed logits": (
        nn.BCEWithLogitsLoss(reduction="none", pos_weight=WEIGHT),
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none", pos_weight=WEIGHT.double()).mean(1),
        HOT,
        3,
    ),
    "classes": ("cross_entropy", cross_entropy, LABELS, 3),
    "weighed and smoothed classes": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2, reduction="none"),
        lambda o, t: F.cross_entropy(o, t, reduction="none", weight=WEIGHT.double(), label_smoothing=0.2),
        LABELS,
        3,
    ),
    "soft labels": (nn.CrossEntropyLoss(reduction="none"), cross_entropy, LOGITS.softmax(1), 3),
}


@pytest.mark.parametrize("name", list(CONSTANTS))
def test_the_best_constant_is_that_of_a_search(name: str) -> None:
    loss, each, target, outputs = CONSTANTS[name]
    truth = searched(each, target.double() if target.is_floating_point() else target, outputs)
    assert float(constant_of(loss, target, outputs).losses.mean()) == pytest.approx(truth, rel=1e-6)


def test_a_callable_is_asked_about_mixtures_of_outputs_alone() -> None:
    """A constant that beats every mixture would be no output of a network that ends in probabilities."""
    asked: list[Tensor] = []

    def likelihood(output: Tensor, target: Tensor) -> Tensor:
        asked.append(output.detach())
        return -output[torch.arange(len(output)), target].log()

    model = nn.Sequential(network(0, 3), nn.Softmax(1)).eval()
    minimum = Minimum(model, (X, LABELS), likelihood)
    train = answers(minimum)
    asked.clear()
    found = best_constant(minimum, train.outputs, of_labels=True)
    mean = model(X).detach().mean(0, keepdim=True).expand(300, 3)
    assert found is not None and found.losses.mean() <= float(likelihood(mean, LABELS).mean())
    assert all(torch.allclose(o.double().sum(1), torch.ones(len(o)).double(), atol=1e-5) for o in asked)


def test_tokens_share_one_constant_over_all_positions() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens))

    torch.manual_seed(0)
    tokens = torch.randint(0, 5, (30, 6))
    targets = torch.randint(0, 3, (30, 6))
    targets[0, :3] = -100
    minimum = Minimum(Tokens().eval(), (tokens, targets), "token_cross_entropy")
    found = best_constant(minimum, None, of_labels=False)
    weights = (targets != -100).double() / (targets != -100).sum(1, keepdim=True)
    shares = torch.stack([(weights * (targets == c)).sum() for c in range(3)]) / 30
    assert found is not None
    assert float(found.losses.mean()) == pytest.approx(-float((shares * shares.log()).sum()), rel=1e-6)


# -- networks that are no mistake --------------------------------------------------------------------------------------


def fit_to(target: Tensor, each: Callable[[Tensor, Tensor], Tensor], outputs: int, steps: int = 200) -> nn.Module:
    model = network(3, outputs)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        each(model(X[: len(target)]), target).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def gaussian(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output[:, 1] + (target[:, 0] - output[:, 0]).square() * (-output[:, 1]).exp())


SOFT = torch.sigmoid(0.3 * X[:, :1])
RARE = ((X[:, 0] > 1.6) & (torch.rand(300, generator=G) < 0.6)).float()[:, None]
USUAL: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor], Tensor, int]] = {
    "soft labels of high entropy": ("binary_cross_entropy", logistic, SOFT, 1),
    "soft classes": (nn.CrossEntropyLoss(reduction="none"), cross_entropy, (0.3 * LOGITS).softmax(1), 3),
    "a likelihood below 0": (gaussian, gaussian, 0.1 * NUMBER, 2),
    "several labels": ("binary_cross_entropy", logistic, (LOGITS > 0).float(), 3),
    "a rare class": ("binary_cross_entropy", logistic, RARE, 1),
    "counts": (
        nn.PoissonNLLLoss(reduction="none"),
        lambda o, t: F.poisson_nll_loss(o, t, reduction="none").mean(1),
        torch.poisson(X[:, :1].exp(), generator=G),
        1,
    ),
    "two samples": ("mse", squared, NUMBER[:2], 1),
    "one target": ("mse", squared, torch.ones(300, 1), 1),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none"), cross_entropy, LABELS, 3),
}


@pytest.mark.parametrize("name", list(USUAL))
def test_trained_networks_are_in_the_order(name: str) -> None:
    loss, each, target, outputs = USUAL[name]
    if name == "smoothed":
        each = loss
    model = fit_to(target, each, outputs)
    found = look(name, Minimum(model, (X[: len(target)], target), loss)).candidate
    assert found.left_out is None and found.unordered is None


def test_numbers_mostly_noise_are_compared_and_not_ordered() -> None:
    """An R^2 below a tenth is a trained network; a fit that is certain is left out of the order alone."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2000, 5, generator=generator)
    target = x[:, :1] + 4 * torch.randn(2000, 1, generator=generator)
    model = nn.Linear(5, 1)
    with torch.no_grad():
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones(2000, 1)], 1), target).solution
        model.weight.copy_(solution[:5].T)
        model.bias.copy_(solution[5])
    found = look("noisy", Minimum(model, (x, target), "mse")).candidate
    assert found.left_out is None and "nearly the best constant output's" in str(found.unordered)
