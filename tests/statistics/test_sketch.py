"""Hutch++, XTrace and XDiag against exact traces and diagonals: unbiased, exact at low rank, closer than Hutchinson."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flatminima.errors import UsageError
from flatminima.statistics import hutch_pp, xdiag, xtrace
from flatminima.statistics.sketch import _signs

SIZE, PRODUCTS, DRAWS = 60, 18, 200


def rotated(spectrum: Tensor) -> Tensor:
    q, _ = torch.linalg.qr(
        torch.randn(len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    return q @ torch.diag(spectrum.double()) @ q.T


SPECTRA = {
    "decaying": torch.logspace(1, -6, SIZE),
    "flat": torch.linspace(1, 3, SIZE),
    "indefinite": torch.cat([torch.logspace(1, -4, SIZE // 2), -torch.logspace(0, -5, SIZE // 2)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", [hutch_pp, xtrace])
def test_traces_are_unbiased(method, name):
    """Four standard errors of 200 draws; a forgotten s_i, or a Q_i that saw its own probe, is outside on "flat"."""
    a = rotated(SPECTRA[name])
    found = torch.tensor([method(a, SIZE, PRODUCTS, 3, k)[0] for k in range(DRAWS)], dtype=torch.float64)
    assert abs(float(found.mean() - a.trace())) < 4 * float(found.std()) / DRAWS**0.5


@pytest.mark.parametrize("name", SPECTRA)
def test_diagonals_are_unbiased(name):
    a = rotated(SPECTRA[name])
    found = torch.stack([xdiag(a, SIZE, PRODUCTS, 3, k)[0] for k in range(DRAWS)])
    scores = (found.mean(0) - a.diagonal()) / (found.std(0) / DRAWS**0.5)
    assert float(scores.abs().max()) < 4.5


def test_x_estimators_are_what_the_paper_says():
    """From the definition: a QR decomposition without one column, for each of the columns."""
    a = rotated(SPECTRA["indefinite"])
    w = _signs(SIZE, PRODUCTS // 2, 5, 0).T
    traces, diagonals = [], []
    for i in range(w.shape[1]):
        others = [j for j in range(w.shape[1]) if j != i]
        q, _ = torch.linalg.qr(a @ w[:, others])
        rest = torch.eye(SIZE, dtype=torch.float64) - q @ q.T
        traces.append((q.T @ a @ q).trace() + w[:, i] @ rest @ a @ rest @ w[:, i])
        diagonals.append((q @ q.T @ a).diagonal() + w[:, i] * (rest @ a @ w[:, i]))
    trace, variance = xtrace(a, SIZE, PRODUCTS, 5)
    assert trace == pytest.approx(float(torch.stack(traces).mean()), rel=1e-9)
    assert variance == pytest.approx(float(torch.stack(traces).var()) / len(traces), rel=1e-9)
    diagonal, variances = xdiag(a, SIZE, PRODUCTS, 5)
    torch.testing.assert_close(diagonal, torch.stack(diagonals).mean(0), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(variances, torch.stack(diagonals).var(0) / len(diagonals), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 3, 5, 9])
def test_exact_at_low_rank(rank):
    """Rank at or below the sketch's, down to the zero matrix, where R is singular and a division by 0 would be NaN."""
    a = rotated(torch.cat([torch.linspace(-1, 2, rank), torch.zeros(SIZE - rank)]))
    for method in (hutch_pp, xtrace):
        products = 3 * 10 if method is hutch_pp else 2 * 10
        assert method(a, SIZE, products)[0] == pytest.approx(float(a.trace()), abs=1e-9)
    torch.testing.assert_close(xdiag(a, SIZE, 20)[0], a.diagonal(), atol=1e-9, rtol=0)


def test_closer_than_hutchinson_where_the_spectrum_decays():
    """With as many products; its error is 9 times Hutch++'s here, and far more of XTrace's."""
    a = rotated(SPECTRA["decaying"])
    v = _signs(SIZE, DRAWS * 24, 0, 0).view(DRAWS, 24, SIZE)
    plain = float(torch.einsum("dki,ij,dkj->dk", v, a, v).mean(1).sub(a.trace()).square().mean().sqrt())
    errors = {
        m.__name__: np.sqrt(np.mean([(m(a, SIZE, 24, 1, k)[0] - float(a.trace())) ** 2 for k in range(50)]))
        for m in (hutch_pp, xtrace)
    }
    assert errors["hutch_pp"] < plain / 3 and errors["xtrace"] < errors["hutch_pp"]


def test_the_variance_of_hutch_pp_covers():
    a = rotated(SPECTRA["flat"])
    found = [hutch_pp(a, SIZE, 60, 2, k) for k in range(DRAWS)]
    inside = [abs(t - float(a.trace())) <= 2.09 * v**0.5 for t, v in found]  # Student, 19 degrees of freedom
    assert 0.90 <= sum(inside) / DRAWS <= 0.99


@pytest.mark.parametrize("method", [hutch_pp, xtrace, xdiag])
def test_too_few_products(method):
    with pytest.raises(UsageError, match="got 5 products; a sketch and its probes need at least 6"):
        method(torch.eye(4), 4, 5)


@pytest.mark.parametrize("method", [hutch_pp, xtrace, xdiag])
def test_fewer_rows_than_probes(method):
    found = method(torch.diag(torch.tensor([2.0, 3.0])), 2, 30)[0]
    assert torch.as_tensor(found).sum() == pytest.approx(5.0)
