"""Expected sharpness on ResNet-20 against the plain forward passes it needs.

python benchmarks/bench_sharpness.py
"""

from __future__ import annotations

import sys

import torch

from flatminima import Minimum
from flatminima.core.perturbation import Gaussian, Relative
from flatminima.statistics import Outputs, PerturbedLoss
from networks import trained
from timing import pin, publish, race

DRAWS, SAMPLES = 16, 64


def main() -> int:
    pin()
    model, x, y = trained("resnet20", 640)
    x, y = x[:SAMPLES], y[:SAMPLES]
    minimum = Minimum(model, (x, y), batch_size=SAMPLES)
    minimum[Outputs()]
    statistic = PerturbedLoss(Gaussian(Relative(1e-3, 10.0, 1.0)), DRAWS, SAMPLES)

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(DRAWS):
            model(x)

    times = race({"plain forward passes": forwards, "flatminima": lambda: statistic.compute(minimum)}, rounds=5)
    ratio = times["flatminima"] / times["plain forward passes"]
    rows = {f"{k}: ms a draw": 1000 * t / DRAWS for k, t in times.items()}
    claims = {"expected sharpness / plain forward passes": (ratio, "<=", 1.1)}
    return 0 if publish("expected_sharpness_resnet20", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
