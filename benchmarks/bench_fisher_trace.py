"""FisherTrace: time of a gradient against the plain one and the authors' three passes; GroupNorm ResNet-20, batch 128.

python benchmarks/bench_fisher_trace.py

Processor seconds of one thread, since the machine is shared.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.models import resnet20
from flatminima.optim import FisherTrace
from networks import gaussian_classes
from timing import pin, publish, race

BATCH = 128


def plain(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    cross_entropy(model(x), y).backward()


def authors(model: nn.Module, x: Tensor, y: Tensor, m: int, alpha: float = 1e-4) -> None:
    """Whole batch, then every sub-batch twice: the structure of SeanJia/InfoMCR."""
    parameters = list(model.parameters())
    total = list(torch.autograd.grad(cross_entropy(model(x), y), parameters))
    for xi, yi in zip(x.tensor_split(m), y.tensor_split(m), strict=True):
        g = torch.autograd.grad(cross_entropy(model(xi), yi), parameters)
        original = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, d in zip(parameters, g, strict=True):
                p.sub_(alpha * d)
        there = torch.autograd.grad(cross_entropy(model(xi), yi), parameters)
        with torch.no_grad():
            for i, (p, w) in enumerate(zip(parameters, original, strict=True)):
                p.copy_(w)
                total[i] += 10.0 / m * (g[i] - there[i])


def regularised(model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Any:
    reg = FisherTrace(model, **settings)

    def run() -> None:
        model.zero_grad()
        reg.backward(cross_entropy, x, y)

    return run


def main() -> int:
    pin()
    x, y = gaussian_classes(BATCH, (3, 32, 32))
    torch.manual_seed(0)
    model = resnet20(norm="group")
    found: dict[str, Any] = {"plain": lambda: plain(model, x, y)}
    for m in (4, 8, 16):
        found[f"M={m}, FisherTrace"] = regularised(model, x, y, sub_batches=m)
    found["M=8, authors' structure"] = lambda: authors(model, x, y, 8)
    found["M=8, FisherTrace, exact"] = regularised(model, x, y, sub_batches=8, mode="exact")
    for k in (1, 2):
        found[f"M=8, FisherTrace, {k} active"] = regularised(model, x, y, sub_batches=8, active=k)
    times = race(found, rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 7, clock=time.process_time)
    rows: dict[str, Any] = {f"{k}: ms": 1000 * t for k, t in times.items()}
    rows |= {f"{k}: times the plain pass": t / times["plain"] for k, t in times.items() if k != "plain"}
    claims = {
        "FisherTrace at M = 8 / plain": (times["M=8, FisherTrace"] / times["plain"], "<=", 2.2),
        "FisherTrace at M = 8 / authors' structure": (
            times["M=8, FisherTrace"] / times["M=8, authors' structure"], "<=", 0.8,
        ),
        "one active sub-batch of 8 / plain": (times["M=8, FisherTrace, 1 active"] / times["plain"], "<=", 1.35),
    }  # fmt: skip
    return 0 if publish("fisher_trace", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
