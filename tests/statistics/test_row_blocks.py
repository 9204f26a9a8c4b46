"""Gradients of wide weights, formed a block of rows at a time: vocabularies, tied heads, sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flatminima.core import layer_gradient
from flatminima.core.minimum import Minimum
from flatminima.statistics import FisherDiagonal, GaussNewtonDiagonal, Gram

V, D, T, N = 13, 4, 6, 7


class Language(nn.Module):
    """Embedding, a layer, and a head that may share the embedding's weight."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(V, D, padding_idx=2 if kind == "padding" else None)
        self.mix = nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=kind == "bias")
        if kind != "untied":
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(self.embed(x)).tanh()
        if self.kind == "thrice":
            h = h + self.embed(x.flip(1))
        if self.kind == "mix twice":
            h = self.mix(h)
        return self.head(h)


@pytest.mark.parametrize("block", [1, 200, 64 << 20], ids=["a row at a time", "a few rows", "all at once"])
@pytest.mark.parametrize("kind", ["untied", "tied", "bias", "padding", "thrice", "mix twice"])
def test_blocks_of_rows_are_the_whole(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one autograd pass a sample, for every block size; would catch a token counted in the wrong block."""
    monkeypatch.setattr(layer_gradient, "_ROW_BYTES", block)
    torch.manual_seed(0)
    model = Language(kind).double()
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, V, (N, T), generator=g)
    minimum = Minimum(model, (x, x), "causal_lm")
    assert minimum.follows_layers
    rows = []
    for i in minimum.samples.order(0).tolist():
        loss = minimum.loss(model(x[i : i + 1]), x[i : i + 1]).sum()
        grads = torch.autograd.grad(loss, minimum.parameters.tensors, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([t.reshape(-1) for t in grads]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(minimum[Gram(N, 1, 0)].matrices()[0], jacobian @ jacobian.T, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(minimum[FisherDiagonal()], jacobian.square().mean(0), rtol=1e-8, atol=1e-14)


def test_the_gauss_newton_diagonal_of_a_tied_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_gradient, "_ROW_BYTES", 200)
    torch.manual_seed(0)
    model = Language("tied").double()
    x = torch.randint(0, V, (3, 2), generator=torch.Generator().manual_seed(1))
    minimum = Minimum(model, (x, x), "token_cross_entropy")
    expected = torch.zeros(len(minimum.parameters), dtype=torch.float64)
    for i in range(3):
        output = model(x[i : i + 1])
        flat = [torch.autograd.grad(o, minimum.parameters.tensors, retain_graph=True) for o in output.reshape(-1)]
        jacobian = torch.stack([torch.cat([t.reshape(-1) for t in row]) for row in flat])  # (T V, W)
        p = output.softmax(2)[0].detach()
        hessian = torch.block_diag(*((torch.diag(q) - torch.outer(q, q)) / 2 for q in p))
        expected += torch.einsum("kw,kl,lw->w", jacobian, hessian, jacobian) / 3
    torch.testing.assert_close(minimum[GaussNewtonDiagonal()], expected, rtol=1e-8, atol=1e-14)
