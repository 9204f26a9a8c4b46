"""Layers called once for all samples, as GPT-2 and BERT call their position embeddings with shape (1, T)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flatminima.core.minimum import Minimum
from flatminima.statistics import FisherDiagonal, Gram

T, V, D = 5, 11, 6


class Positions(nn.Module):
    """Token plus position embeddings, a norm and a head; `kind` says how the position row is made and added."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        self.project = nn.Linear(D, D)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.positions(torch.arange(T).unsqueeze(0))
        if self.kind == "projected":
            rows = self.project(rows)
        h = self.tokens(x)
        if self.kind == "in place":
            h += rows
        else:
            h = h + rows
        return self.head(self.norm(h).tanh().mean(1))


@pytest.mark.parametrize("kind", ["plain", "projected", "in place"])
@pytest.mark.parametrize("n", [T, 9], ids=["as many samples as positions", "more samples"])
def test_gradients_of_layers_that_broadcast(kind: str, n: int) -> None:
    """Against one autograd pass a sample; would catch the sum over samples that broadcasting's gradient is."""
    torch.manual_seed(0)
    model = Positions(kind).double()
    if kind != "projected":
        model.project.requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randint(0, V, (n, T), generator=g), torch.randint(0, 3, (n,), generator=g)
    minimum = Minimum(model, (x, y))
    assert minimum.follows_layers  # not the slow path of one backward pass a sample
    order = minimum.samples.order(0)
    rows = []
    for i in order.tolist():
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, minimum.parameters.tensors)
        rows.append(torch.cat([t.reshape(-1) for t in grads]))
    jacobian = torch.stack(rows)
    gram = minimum[Gram(n, 1, 0)].matrices()[0]
    torch.testing.assert_close(gram, jacobian @ jacobian.T, rtol=1e-8, atol=1e-14)
    diagonal = jacobian.square().mean(0)
    torch.testing.assert_close(minimum[FisherDiagonal()], diagonal, rtol=1e-8, atol=1e-14)
