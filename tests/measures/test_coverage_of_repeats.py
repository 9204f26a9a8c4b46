"""Coverage on data that repeats and on clustered data, by the measures themselves over a hundred seeds.

Catches an order of the samples in which copies are neighbours: a draw is then one of clusters, and a nominal 95%
interval held the truth in half of the repetitions.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.measures import fisher_rao_norm, fisher_trace, robustness

pytestmark = pytest.mark.slow

DISTINCT, COPIES, SEEDS = 60, 10, 100


@cache
def network() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network (8 to 3), and the distinct samples."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (DISTINCT,), generator=g)
    x = (1.5 * torch.randn(3, 4, generator=g))[y].double() + torch.randn(DISTINCT, 4, generator=g).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


@cache
def minimum(kind: str) -> Minimum:
    model, x, y = network()
    if kind == "each sample ten times":
        return Minimum(model, (x.repeat(COPIES, 1), y.repeat(COPIES)))
    if kind == "stored copy by copy":
        return Minimum(model, (x.repeat_interleave(COPIES, 0), y.repeat_interleave(COPIES)))
    if kind == "one sample many times":
        many = torch.cat([torch.arange(DISTINCT).repeat(5), torch.zeros(300, dtype=torch.int64)])
        return Minimum(model, (x[many], y[many]))
    noise = 1e-3 * torch.randn(DISTINCT * COPIES, 4, generator=torch.Generator().manual_seed(1)).double()
    return Minimum(model, (x.repeat_interleave(COPIES, 0) + noise, y.repeat_interleave(COPIES)))  # clusters


@cache
def exact(kind: str, name: str) -> float:
    """Of all the data: each sample's gradient on its own, float64."""
    m = minimum(kind)
    if name == "robustness":
        return float(robustness(m, samples=len(m.samples)))
    parameters = list(m.model.parameters())
    w = torch.cat([p.detach().reshape(-1) for p in parameters])
    x, y = m.samples.take(torch.arange(len(m.samples)))
    rows = []
    for i in range(len(y)):
        grads = torch.autograd.grad(F.cross_entropy(m.model(x[i : i + 1]), y[i : i + 1]), parameters)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    jacobian = torch.stack(rows)
    if name == "fisher_trace":
        return float(jacobian.square().sum(1).mean())
    return math.sqrt(float((jacobian @ w).square().mean()))


@pytest.mark.parametrize(
    "kind", ["each sample ten times", "stored copy by copy", "one sample many times", "clusters one after another"]
)
@pytest.mark.parametrize("name", ["fisher_trace", "fisher_rao_norm", "robustness"])
def test_intervals_cover(kind: str, name: str) -> None:
    """At least 90 of 100; fisher_trace's draws from 600 without replacement may cover more than the nominal 95."""
    m, right = minimum(kind), exact(kind, name)
    of = {
        "fisher_trace": lambda seed: fisher_trace(m, subset=20, trials=10, seed=seed),
        "fisher_rao_norm": lambda seed: fisher_rao_norm(m, samples=150, seed=seed),
        "robustness": lambda seed: robustness(m, samples=150, seed=seed),
    }[name]
    intervals = [of(seed).interval() for seed in range(SEEDS)]
    assert sum(low <= right <= high for low, high in intervals) >= 0.9 * SEEDS
