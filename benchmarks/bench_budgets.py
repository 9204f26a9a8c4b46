"""What the fast and default tables cost in training epochs on the same data: ResNet-20, 10,000 images of CIFAR's shape.

python benchmarks/bench_budgets.py
"""

from __future__ import annotations

import copy
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum, measure
from networks import trained
from timing import pin, publish

SAMPLES, BATCH = 10_000, 128
TIMED = 20  # batches of an epoch that are timed, before and after each table


def epoch_seconds(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of all batches, from TIMED of them."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    start = 0.0
    for step in range(TIMED + 2):
        if step == 2:
            start = time.perf_counter()
        part = torch.arange(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return (time.perf_counter() - start) * SAMPLES / (TIMED * BATCH)


def main() -> int:
    pin()
    model, x, y = trained("resnet20", SAMPLES)
    rows, ratios = {}, {}
    for budget in ("fast", "default"):
        before = epoch_seconds(model, x, y)
        table = measure(Minimum(model, (x, y)), budget=budget)
        epoch = (before + epoch_seconds(model, x, y)) / 2
        ratios[budget] = table.seconds / epoch
        rows |= {
            f"{budget}: measures": float(len(table)),
            f"{budget}: undefined": float(sum(e.value is None for e in table.values())),
            f"{budget}: seconds": table.seconds,
            f"{budget}: one epoch beside it, seconds": epoch,
        }
    claims = {
        "fast table, in training epochs": (ratios["fast"], "<=", 2.0),
        "default table, in training epochs": (ratios["default"], "<=", 6.0),
    }
    return 0 if publish("budgets", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
