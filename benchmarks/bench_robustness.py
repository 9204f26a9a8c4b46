"""Input-Jacobian norms of 64 samples against a loop over samples, and the log-determinant's spread over a pool.

Processor time of one pinned thread. python benchmarks/bench_robustness.py
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.statistics import Gram, InputJacobian
from networks import trained
from timing import pin, publish, race

SAMPLES = 64
SUBSET, TRIALS, REPEATS = 100, 20, 30


def loop(model: nn.Module, x: Tensor) -> Tensor:
    """One forward pass and one backward pass a class for each sample."""
    norms = []
    for xi in x:
        leaf = xi.unsqueeze(0).clone().requires_grad_()
        p = model(leaf).softmax(1)[0]
        rows = [torch.autograd.grad(pc, leaf, retain_graph=True)[0].reshape(-1) for pc in p]
        norms.append(torch.linalg.matrix_norm(torch.stack(rows), 2))
    return torch.stack(norms)


def jacobians(name: str, rounds: int) -> dict[str, Any]:
    model, x, y = trained(name, 640)
    x, y = x[:SAMPLES], y[:SAMPLES]
    minimum = Minimum(model, (x, y), batch_size=SAMPLES)
    assert minimum.follows_layers
    key = InputJacobian(SAMPLES)
    order = minimum.samples.order(0)
    found = {"flatminima": minimum.sweep([key])[key], "loop": loop(model, x)[order].double()}
    exact = loop(copy.deepcopy(model).double(), x.double())[order]
    times = race(
        {"flatminima": lambda: minimum.sweep([key]), "loop": lambda: loop(model, x)}, rounds, time.process_time
    )
    rows: dict[str, Any] = {f"{name}: {k}, ms": 1000 * t for k, t in times.items()}
    for who, norms in found.items():  # p (1 - p) cancels in float32 where a class is certain
        rows[f"{name}: {who}, largest relative error against float64"] = float(((norms - exact) / exact).abs().max())
    rows[f"{name}: times faster"] = times["loop"] / times["flatminima"]
    return rows


def spread() -> dict[str, float]:
    """Standard deviation over the choice of subsets of one pool: disjoint and independent ones, equal in number."""
    model, x, y = trained("mlp", SUBSET * TRIALS, steps=300)
    minimum = Minimum(model, (x, y), batch_size=SUBSET * TRIALS)
    disjoint = [
        float(measures.fisher_logdet(minimum, subset=SUBSET, trials=TRIALS, seed=seed)) for seed in range(REPEATS)
    ]
    singles = [
        float(minimum.sweep([Gram(SUBSET, 1, seed)])[Gram(SUBSET, 1, seed)].log_determinants().values.mean())
        for seed in range(1000, 1000 + REPEATS * TRIALS)
    ]
    independent = [statistics.mean(singles[i : i + TRIALS]) for i in range(0, len(singles), TRIALS)]
    return {
        "log-determinant: mean, disjoint subsets": statistics.mean(disjoint),
        "log-determinant: mean, independent subsets": statistics.mean(independent),
        "log-determinant: spread, disjoint subsets": statistics.stdev(disjoint),
        "log-determinant: spread, independent subsets": statistics.stdev(independent),
    }


def main() -> int:
    pin()
    rows = jacobians("mlp", 7) | jacobians("resnet20", 3)
    claims = {
        "MLP, input Jacobians, times faster than a loop": (rows["mlp: times faster"], ">=", 12.0),
        "ResNet-20, input Jacobians, times faster than a loop": (rows["resnet20: times faster"], ">=", 1.9),
    }
    ok = publish("robustness", claims, rows)
    rows = spread()
    ratio = rows["log-determinant: spread, disjoint subsets"] / rows["log-determinant: spread, independent subsets"]
    claims = {"MLP, spread over disjoint subsets over that of independent ones": (ratio, "<=", 0.05)}
    return 0 if publish("logdet_spread", claims, rows) and ok else 1


if __name__ == "__main__":
    sys.exit(main())
