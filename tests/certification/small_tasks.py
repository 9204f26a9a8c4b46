"""Tasks and networks that a certificate takes a second of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatminima.certification import Recipe
from flatminima.models import build
from flatminima.training import TrainConfig

SHORT = TrainConfig(lr=0.05, epochs=3, schedule="cosine", batch_size=50)
QUICK = Recipe(prior=SHORT, passes=2)


def blobs(n: int, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two Gaussians whose best classifier, a line, errs on P(z > 1.5 sqrt 2 / noise)."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=g)
    return noise * torch.randn(n, 2, generator=g) + 1.5 * (2 * y - 1).unsqueeze(1), y


def net(seed: int = 0, hidden: int = 8) -> nn.Module:
    """A function of a seed, as `certify` wants it, and a network where it is called."""
    return build("mlp", seed=seed, widths=(2, hidden, 2))


def wide(seed: int = 0) -> nn.Module:
    return net(seed, 32)


def digits_net(seed: int = 0) -> nn.Module:
    return build("mlp", seed=seed, widths=(64, 64, 10))
