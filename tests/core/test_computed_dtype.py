"""A network may compute in a coarser dtype than its weights: autocast in its forward, as accelerate puts it there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from flatminima import Minimum, measure

X = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
RISES = ["sharpness", "adaptive_sharpness", "expected_sharpness"]


def trained() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(net(X), Y).backward()
        optimizer.step()
    return net.eval()


class WithAutocast(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out: Tensor = self.net(x)
        return out.float()


class Casts(WithAutocast):
    def forward(self, x: Tensor) -> Tensor:
        last = self.net[2]
        return linear(self.net[:2](x).half(), last.weight.half(), last.bias.half()).float()


@pytest.mark.parametrize(("kind", "dtype"), [(WithAutocast, "bfloat16"), (Casts, "float16")])
def test_error_bars_hold_what_the_coarser_dtype_rounds(kind: type[WithAutocast], dtype: str) -> None:
    """The rises of the same weights in float32 are within four errors; errors of float32 would be 10,000 times less."""
    net = trained()
    right, found = measure(Minimum(net, (X, Y)), RISES), measure(Minimum(kind(copy.deepcopy(net)), (X, Y)), RISES)
    assert any(note.startswith(f"computed in {dtype} in part") for note in found.notes)
    assert not any("in part" in note for note in right.notes)
    for name in RISES:
        one, other = right[name], found[name]
        assert one.value is not None and other.value is not None and other.stderr is not None
        assert one.value != other.value
        assert abs(one.value - other.value) < 4 * other.stderr
        largest = 0.0 if name == "expected_sharpness" else other.details["highest"]  # of the two mean losses
        assert other.stderr > 0.9 * torch.finfo(getattr(torch, dtype)).eps * largest
