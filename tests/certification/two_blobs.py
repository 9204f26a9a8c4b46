"""Two Gaussian blobs of known risk, and the network that tells them apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=g)
    return torch.randn(n, 2, generator=g) + 1.5 * (2 * y - 1).unsqueeze(1), y


def linear(direction: float = 1.0) -> nn.Linear:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(direction * torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        net.bias.zero_()
    return net
