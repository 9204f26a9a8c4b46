"""Random combinations of the Gauss-Newton columns, against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.core.losses import Loss
from flatminima.errors import UsageError
from flatminima.measures import pacgen
from flatminima.statistics import DrawnGaussNewtonDiagonal, GaussNewtonDiagonal

torch.manual_seed(0)
TOKENS = torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(1))


class Words(nn.Module):
    """Tokens to logits, embedding and head tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.inner(self.embedding(tokens).cumsum(1))) @ self.embedding.weight.T


def language() -> Minimum:
    torch.manual_seed(0)
    labels = TOKENS.clone()
    labels[::2, -2:] = -100
    return Minimum(Words().double().eval(), (TOKENS, labels), "causal_lm", batch_size=4)


def _losses() -> list[tuple[str, object, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(4, 5, 3, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 5), generator=g)
    labels[0, 2:] = -100
    weight = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    smooth = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2, reduction="none")
    small = z[:, 0]
    return [
        ("causal_lm", "causal_lm", z, labels),
        ("token_cross_entropy", "token_cross_entropy", z, labels),
        ("classes", "cross_entropy", small, labels[:, 0]),
        ("weighted, smoothed", smooth, z.movedim(1, 2).contiguous(), labels.clamp_min(0)),
        ("mse", "mse", small, small.flip(0)),
        ("binary", "binary_cross_entropy", small, (small.flip(0) > 0).double()),
        ("callable", lambda out, y: (out - y).pow(4).sum(1), small, small.flip(0)),
    ]


@pytest.mark.parametrize(("loss", "output", "target"), [c[1:] for c in _losses()], ids=[c[0] for c in _losses()])
def test_the_mean_outer_product_of_a_drawn_column_is_the_hessian_by_the_output(loss, output, target):
    """Over all signs when there are few, exactly: E[(B s)(B s)^T] = B B^T, with the block of each position its own."""
    fitted = Loss.of(loss).fitted(output, target)
    size = output[0].numel()
    hessian = torch.autograd.functional.hessian(lambda z: fitted(z, target).sum(), output)
    every = torch.arange(len(output))
    truth = hessian.reshape(len(output), size, len(output), size)[every, :, every]
    total, eye = torch.zeros_like(truth), torch.eye(size, dtype=torch.float64)
    # B s is linear in s: its columns are those of the signs' differences, and E[s s^T] = 1
    ones = torch.ones_like(output)
    for k in range(size):
        flipped = (1 - 2 * eye[k]).view_as(output[0]).expand_as(output)
        column = (fitted.drawn_column(output, target, ones) - fitted.drawn_column(output, target, flipped)) / 2
        rows = column.reshape(len(output), size)
        total += rows.unsqueeze(2) * rows.unsqueeze(1)
    torch.testing.assert_close(total, truth, rtol=1e-9, atol=1e-12)


def test_a_sure_networks_columns_keep_their_digits():
    """p_y = 1 - 1e-20: the likeliest class's entry is minus the sum of the others, not a rounded 1 - p."""
    z = torch.tensor([[50.0, 4.0, 3.0]], dtype=torch.float64)
    signs = torch.tensor([[1, -1, 1]], dtype=torch.int8)
    column = Loss.of("cross_entropy").fitted(z, torch.tensor([0])).drawn_column(z, torch.tensor([0]), signs)
    p = (z - z.logsumexp(1, keepdim=True)).exp()
    expected = (0.5 * (z - z.logsumexp(1, keepdim=True))).exp()[0, 1:] * signs[0, 1:] - p[0, 1:]
    torch.testing.assert_close(column[0, 1:], expected, rtol=1e-9, atol=0.0)
    assert float(column.sum()) == pytest.approx(0.0, abs=1e-26)


def test_drawn_diagonals_are_unbiased():
    """400 draws of 2 columns against all columns, entry by entry in standard errors; a bias of a few % would fail."""
    minimum = language()
    exact = minimum[GaussNewtonDiagonal()]
    found = torch.stack([minimum[DrawnGaussNewtonDiagonal(None, seed, 2)] for seed in range(400)])
    error = (found.mean(0) - exact) / (found.std(0) / 20).clamp_min(1e-300)
    assert float(error.abs().max()) < 4.5
    total = found.sum(1)
    assert abs(float(total.mean() - exact.sum())) < 4 * float(total.std()) / 20


def test_neither_batches_nor_the_way_of_the_gradients_change_a_draw():
    key = DrawnGaussNewtonDiagonal(5, 3, 2)
    whole, small, slow = language(), language(), language()
    small.batch_size = 2
    slow.following.degrade("to try the slow way")
    while slow.following.by_layers:
        slow.following.degrade("to try the slow way")
    torch.testing.assert_close(small[key], whole[key], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(slow[key], whole[key], rtol=1e-10, atol=1e-14)


def test_pacgen_draws_columns_of_a_vocabulary_and_says_so():
    """35 entries: all columns; with `columns` a few, and over 100 entries a few by default."""
    wide_noise = {"gamma": 0.0, "epsilon": 30.0}  # where curvature decides
    exact, drawn = pacgen(language(), **wide_noise), pacgen(language(), columns=2, **wide_noise)
    assert exact.details["columns"] is None and drawn.details["columns"] == 2
    assert "2 random columns" in drawn.details["note"] and drawn.details["error_of"] == "both"
    torch.manual_seed(0)
    wide = Minimum(nn.Linear(3, 120).eval(), (torch.randn(20, 3), torch.arange(20)), "cross_entropy")
    found = pacgen(wide)
    assert found.details["columns"] == 4 and found.value is not None
    assert wide.passes.backward <= 20 * (4 * 4 + 2)
    with pytest.raises(UsageError):
        pacgen(language(), columns=0)


def test_the_mean_of_pacgens_draws_is_near_the_exact_value():
    """Curvature decides here (epsilon large, rho zero): at 64 columns the bias of the logarithm is small."""
    options = {"gamma": 0.0, "epsilon": 30.0, "rho": "zero"}
    exact = pacgen(language(), **options)
    drawn = pacgen(language(), columns=64, draws=6, **options)
    assert exact.details["curvature_bound"] > 0.3
    assert drawn.value == pytest.approx(exact.value, abs=0.05 * len(language().parameters))


def test_blocks_of_samples_change_nothing(monkeypatch):
    """Losses, gradients, products, seeds and drawn columns of one sample at a time are those of all at once."""
    from flatminima.core.losses import softmax

    found = []
    for block in (1 << 22, 1):
        monkeypatch.setattr(softmax, "_BLOCK", block)
        case = []
        for _, loss, output, target in _losses()[:4]:
            fitted, z = Loss.of(loss).fitted(output, target), output.clone().requires_grad_()
            gradient = fitted.residual(z, target)
            (product,) = torch.autograd.grad(gradient, z, output.cos())
            signs = torch.ones_like(output, dtype=torch.int8)
            columns = fitted.drawn_column(output, target, signs)
            case += [fitted(z, target), gradient, product, *fitted.seed(output, target), columns]
        found.append([t.detach() for t in case])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-13, atol=1e-15)
