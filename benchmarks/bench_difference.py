"""How long FisherTrace's displacement should be: its gradient against double backward, by ||dw|| and network.

python benchmarks/bench_difference.py

Five networks at moments of a short training (Adam 1e-3, batches of 32), the mean over sub-batches: cosine, and relative
error. On ReLU networks short differences see single units switch; long ones leap over the minimum of a sub-batch.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from flatminima.data import load_tensors
from flatminima.models import mlp, mnist_cnn, resnet20
from flatminima.optim import DifferenceError, FisherTrace
from networks import gaussian_classes
from timing import pin, publish

STEPS: tuple[Any, ...] = ("auto", "alpha", 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5)
MOMENTS = (0, 15, 60, 120, 400)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CNN on digits, ReLU": lambda: mnist_cnn(image_size=16),
    "ResNet-20, GroupNorm, ReLU": lambda: resnet20(norm="group"),
    "ResNet-20, BatchNorm, ReLU": lambda: resnet20(),
    "MLP, ReLU": lambda: mlp((192, 128, 128, 10)),
    "MLP, GELU": lambda: mlp((192, 128, 128, 10), activation="gelu"),
}


def errors(model: nn.Module, x: Tensor, y: Tensor, step: Any, size: int) -> DifferenceError:
    """Mean over sub-batches of the first 64 samples."""
    found = [
        FisherTrace(model, sub_batches=1, step=step).error(cross_entropy, *part)
        for part in zip(x[:64].split(size), y[:64].split(size), strict=True)
    ]
    return DifferenceError(*(statistics.fmean(getattr(e, key) for e in found) for key in ("relative", "cosine")))


def samples(name: str) -> tuple[Tensor, Tensor, int]:
    """Inputs, labels, and samples in a sub-batch."""
    if "digits" in name:
        x, y = load_tensors("digits", "train", limit=512)
        return interpolate(x, scale_factor=2), y, 8
    return *gaussian_classes(256, (3, 8, 8)), 32


def main() -> int:
    pin()
    rows: dict[str, Any] = {}
    cosine: dict[Any, list[float]] = {step: [] for step in STEPS}
    relative: dict[Any, list[float]] = {step: [] for step in STEPS}
    for name, make in NETWORKS.items():
        x, y, size = samples(name)
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        moments = [t for t in MOMENTS if "ResNet" not in name or t <= 120]
        for t in range(max(moments) + 1):
            if t in moments:
                for step in STEPS:
                    error = errors(model, x, y, step, size)
                    rows[f"{name}, step {t}, {step}"] = f"cosine {error.cosine:.2f}, relative {error.relative:.2f}"
                    cosine[step].append(error.cosine)
                    relative[step].append(error.relative)
            part = torch.arange(32 * t, 32 * t + 32) % len(x)
            optimizer.zero_grad()
            cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    means = {step: statistics.fmean(values) for step, values in cosine.items()}
    medians = {step: statistics.median(values) for step, values in relative.items()}
    rows |= {f"mean cosine, {step}": mean for step, mean in means.items()}
    rows |= {f"median relative error, {step}": median for step, median in medians.items()}
    fixed = [step for step in STEPS if step != "auto"]
    claims = {
        "mean cosine of the default below the best fixed length's": (
            max(means[step] for step in fixed) - means["auto"], "<=", 0.02,
        ),
    }  # fmt: skip
    return 0 if publish("difference", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
