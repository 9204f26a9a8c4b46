"""Parameters without dimensions (temperatures, gates, logit scales) are one-element vectors in every measure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatminima import Minimum, measure
from flatminima.statistics import FisherDiagonal, FisherFactor, GaussNewtonFactor

X, Y = torch.randn(120, 6, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3


class Gated(nn.Module):
    """A temperature used after the head, and a gate used within: neither belongs to a layer with a rule."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.temperature = nn.Parameter(torch.full(shape, 0.3))
        self.gate = nn.Parameter(torch.full(shape, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return self.head(hidden + self.gate * hidden.sin()) * self.temperature.exp()


def test_every_measure_is_that_of_one_element() -> None:
    scalar, vector = (Minimum(Gated(shape), (X, Y)) for shape in ((), (1,)))
    one, other = measure(scalar), measure(vector)
    assert {name: str(e) for name, e in one.estimates.items()} == {name: str(e) for name, e in other.estimates.items()}
    assert one["fisher_trace"].value is not None
    for key in (FisherFactor(20), GaussNewtonFactor(20), FisherDiagonal(20)):
        torch.testing.assert_close(scalar[key], vector[key])
