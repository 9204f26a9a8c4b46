"""Wrappers of the catalogue over bases of torch, and how they are stepped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima import catalog

ROWS = {name: row for name, row in catalog.OPTIMIZERS.items() if row.kind == "wrapper"}
STRENGTH_0 = {name: row.off for name, row in ROWS.items()}
TWO_PASSES = ("sam",)  # of which a closure runs twice, and a loop by hand has a pass at the weights first
RADII = {"sam": ("sam_rho", 0.1), "pertopt": ("pert_gamma", 0.3)}  # a group's key, and its value in `small`


def _wrapper(name):
    kind = ROWS[name].load()
    epochs = {"steps_per_epoch": 4} if name == "pertopt" else {}
    return lambda base, **options: kind(base, **{**ROWS[name].small, **epochs, **options})


WRAPPERS = {name: _wrapper(name) for name in ROWS}
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "foreach": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2),
}
both = pytest.mark.parametrize("kind", WRAPPERS)
with_a_key = pytest.mark.parametrize("kind", RADII)


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)


def samples(t, n=20, dtype=torch.float32):
    g = torch.Generator().manual_seed(t)
    return torch.randn(n, 6, generator=g).to(dtype), torch.randint(0, 3, (n,), generator=g)


def closure(model, opt, t, dtype=torch.float32):
    x, y = samples(t, dtype=dtype)

    def run():
        opt.zero_grad()
        loss = cross_entropy(model(x).float(), y)
        loss.backward()
        return loss

    return run


def train(model, opt, steps, dtype=torch.float32):
    return [float(opt.step(closure(model, opt, t, dtype)).detach()) for t in steps]


def by_hand(kind, model, opt, x, y, backward=lambda loss: loss.backward()):
    """The loop without a closure."""
    if kind in TWO_PASSES:
        backward(cross_entropy(model(x), y))
    with opt.perturbed():
        backward(cross_entropy(model(x), y))


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)
