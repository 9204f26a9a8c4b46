"""The two networks of the benchmarks, briefly trained on synthetic Gaussian classes, in eval mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima.models import mlp, resnet20


def gaussian_classes(n: int, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """n samples of 10 classes, each a Gaussian around its own random image."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, *shape, generator=g)
    y = torch.randint(0, 10, (n,), generator=g)
    return 0.5 * centres[y] + torch.randn(n, *shape, generator=g), y


def trained(name: str, n: int, steps: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    """("mlp" 784-512-512-10 | "resnet20" at 32x32, inputs, labels)."""
    torch.manual_seed(0)
    model = mlp((784, 512, 512, 10)) if name == "mlp" else resnet20()
    x, y = gaussian_classes(n, (784,) if name == "mlp" else (3, 32, 32))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        part = torch.arange(step * 64, step * 64 + 64) % n
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return model.eval(), x, y
