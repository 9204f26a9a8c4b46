"""What --dry-run says of --explain: passes, counted beside those that are then made."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from flatminima import Minimum, budgets, measure
from flatminima.cli import explain
from flatminima.cli.forecast import forecast
from flatminima.cli.request import with_options
from flatminima.cli.trial_runs import Trials
from flatminima.core.statistic import Cost, Fold, Reads, Statistic
from flatminima.errors import Undefined
from flatminima.rescaling import audit


class Counted(nn.Module):
    """Counts the samples that went forward through it and its copies."""

    seen = 0

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        Counted.seen += len(x)
        return self.inner(x)


def counted(work):
    before = Counted.seen
    work()
    return Counted.seen - before


@pytest.mark.parametrize("budget", ["fast", "default"])
def test_passes_are_foretold_within_a_third(budget):
    torch.manual_seed(0)
    net = Counted(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)))
    x = torch.randn(400, 12)
    y = (x @ torch.randn(12, 4)).argmax(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    minimum = Minimum(net.eval(), (x, y))
    names = budgets.names(budget)
    wanted = [with_options(name, budget, None, minimum) for name in explain.with_more(names)]
    found = forecast(minimum, wanted, audited=False, explained=True)
    assert found.parts.keys() == {"measures", "audit", "landscapes"} and found.seconds > 0
    before = minimum.passes.backward
    forward = counted(lambda: measure(minimum, wanted)) / len(x)
    backward = (minimum.passes.backward - before) / len(x)
    assert found.parts["measures"].cost.forward == pytest.approx(forward, rel=0.3)
    assert found.parts["measures"].cost.backward == pytest.approx(backward, rel=0.3)
    pictures = counted(lambda: explain.landscapes(minimum, 0)) / len(x)
    assert found.parts["landscapes"].cost.forward == pytest.approx(pictures, rel=0.3)
    tables = counted(lambda: audit(explain.part(minimum), wanted[: len(names)])) / len(x)
    assert found.parts["audit"].cost.forward == pytest.approx(tables, rel=0.3)


def test_less_is_foretold_without_the_page():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    minimum = Minimum(net, (torch.randn(30, 3), torch.arange(30) % 2))
    wanted = [with_options("fisher_trace", "fast", None, minimum)]
    plain = forecast(minimum, wanted, audited=False, explained=False)
    assert plain.parts.keys() == {"measures"} and plain.tables == 0
    assert forecast(minimum, wanted, audited=True, explained=False).parts["audit"].cost.forward >= 3


class Clock:
    """Seconds that only work of `Slow` adds to."""

    now = 0.0

    def __call__(self):
        return self.now


CLOCK = Clock()


@dataclass(frozen=True)
class Slow(Statistic[float]):
    """`draws` forward passes over all samples at 1 ms a sample, the first time 5 s more, as for an import."""

    draws: int = 40

    def compute(self, minimum):
        CLOCK.now += 0.001 * self.draws * len(minimum.samples) + (5.0 if minimum.passes.forward < 1 else 0.0)
        minimum.passes.forward += self.draws * len(minimum.samples)
        return 0.0

    def cost(self, minimum):
        return Cost(forward=self.draws)


def test_seconds_are_those_of_a_few_samples_scaled_by_passes():
    """40 draws over 300 samples at 1 ms: 12 s, whatever the first run pays for; the trial has 2 draws."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    minimum = Minimum(net, (torch.randn(300, 3), torch.arange(300) % 2), batch_size=64)
    trials = Trials.of(minimum, CLOCK)
    assert len(trials.few.samples) == 300 and trials.few.passes is not minimum.passes
    assert trials.statistics([Slow()]) == pytest.approx(12.0)
    assert trials.scaled(lambda few: None, Cost()) == 0.0


@dataclass(frozen=True)
class Timed(Fold[int, int]):
    """1 ms a sample, and `once` seconds more in the first sweep; without a value where it is `lost`."""

    reads = Reads.LAYERS
    name: str = "a"
    lost: bool = False
    once: float = 0.0

    def init(self, minimum):
        if self.name not in SWEPT:
            CLOCK.now += self.once
        SWEPT.append(self.name)
        return 0

    def update(self, state, batch):
        CLOCK.now += 0.001 * len(batch)
        return state + len(batch)

    def merge(self, left, right):
        return left + right

    def finish(self, state):
        if self.lost:
            raise Undefined("never")
        return state

    def cost(self, minimum):
        return Cost(1, 1)


SWEPT = []


def test_a_fold_without_a_value_does_not_hide_what_the_others_cost():
    """300 samples at 1 ms for each of two; 5 s of checks that the first sweep makes; and no more than two sweeps."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    minimum = Minimum(net, (torch.randn(300, 3), torch.arange(300) % 2), batch_size=64)
    SWEPT.clear()
    trials = Trials.of(minimum, CLOCK)
    assert trials.statistics([Timed("a", once=5.0), Timed("b", lost=True)]) == pytest.approx(5.6, rel=0.01)
    assert SWEPT == ["a", "b", "a", "b"]
