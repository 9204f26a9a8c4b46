"""Largest Hessian eigenvalues against dense matrices, and refusals instead of numbers that have not converged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import nn

from flatminima import Minimum, measures
from flatminima.errors import Undefined, UsageError
from flatminima.statistics import TopEigenvalues
from flatminima.statistics.eigenvalues import largest


def rotated(spectrum: list[float], seed: int = 0) -> np.ndarray:
    """A dense symmetric matrix of this spectrum."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum), len(spectrum))))
    return q @ np.diag(spectrum) @ q.T


SPECTRA = {
    "separated": [*np.linspace(-1, 1, 60), 5.0],
    "clustered at the top": [*np.linspace(0, 0.96, 80), 0.97, 0.9701, 0.9702],
    "indefinite, larger in magnitude below": [-50.0, *np.linspace(-1, 1, 60)],
    "negative": list(np.linspace(-9, -1, 40)),
    "many zeros": [0.0] * 60 + [0.3, 2.0],
    "two parameters": [1.0, -2.0],
}


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=list(SPECTRA))
def test_the_largest_of_a_known_spectrum(spectrum: list[float]) -> None:
    """Algebraically largest; would catch largest in magnitude, and the 0.43 that a neighbour gives for a true 0.97."""
    found = largest(aslinearoperator(rotated(spectrum)), 1, 1e-6, 0)
    assert float(found.values[0]) == pytest.approx(max(spectrum), rel=1e-5, abs=1e-8)
    assert float(found.residuals[0]) <= 1e-6 * max(abs(max(spectrum)), 1e-12)


def test_no_eigenvalue_comes_back_twice_and_a_double_one_does() -> None:
    """Ghosts: Lanczos without reorthogonalisation returns one eigenvalue several times."""
    simple = largest(aslinearoperator(rotated([*np.linspace(0, 1, 100), 3.0, 7.0])), 3, 1e-8, 0)
    assert simple.values.tolist() == pytest.approx([7.0, 3.0, 1.0], abs=1e-6)
    double = largest(aslinearoperator(rotated([*np.linspace(0, 1, 50), 3.0, 3.0])), 3, 1e-8, 0)
    assert double.values.tolist() == pytest.approx([3.0, 3.0, 1.0], abs=1e-6)


def test_the_zero_matrix_has_eigenvalue_zero() -> None:
    assert largest(aslinearoperator(np.zeros((9, 9))), 2, 1e-3, 0).values.tolist() == [0.0, 0.0]


def test_what_has_not_converged_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatminima.statistics.eigenvalues._PRODUCTS", 1)
    with pytest.raises(Undefined, match=r"of 1 eigenvalues converged after \d+ Hessian products"):
        largest(aslinearoperator(rotated(list(np.linspace(0.999, 1, 400)))), 1, 1e-9, 0)


def test_a_product_that_is_not_finite_is_no_number() -> None:
    with pytest.raises(Undefined, match="not finite"):
        largest(LinearOperator((9, 9), matvec=lambda v: v * np.nan, dtype=np.float64), 1, 1e-3, 0)


def test_more_eigenvalues_than_parameters() -> None:
    with pytest.raises(Undefined, match="2 parameters have no 3"):
        largest(aslinearoperator(np.eye(2)), 3, 1e-3, 0)


@pytest.mark.parametrize("bad", [{"k": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}], ids=str)
def test_bad_configurations(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        TopEigenvalues(**bad)  # type: ignore[arg-type]


def _dense(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(w: torch.Tensor) -> torch.Tensor:
        parts = w.split([s.numel() for s in shapes])
        state = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    return np.asarray(torch.autograd.functional.hessian(loss, flat))


@pytest.mark.parametrize("samples", [None, 11])
def test_of_a_network_against_the_dense_hessian(samples: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(17, 3).double(), torch.randint(0, 3, (17,))
    minimum = Minimum(model, (x, y), batch_size=5)
    chosen = minimum.samples.order(0)[:samples]
    expected = np.linalg.eigvalsh(_dense(model, x[chosen], y[chosen]))[::-1][:3]
    found = measures.hessian_top_eigenvalue(minimum, samples=samples, k=3, tolerance=1e-8)
    assert found.details["eigenvalues"] == pytest.approx(expected.tolist(), rel=1e-8)
    assert float(found) == found.details["eigenvalues"][0]
    assert max(found.details["residuals"]) <= 1e-8 * float(found)


def test_a_wrong_answer_of_the_solver_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual is computed here, not taken from the solver."""
    wrong = (np.array([3.0]), np.eye(20)[:, :1])
    monkeypatch.setattr("flatminima.statistics.eigenvalues.eigsh", lambda *_, **__: wrong)
    with pytest.raises(Undefined, match="too large to believe"):
        largest(aslinearoperator(rotated(list(np.linspace(0, 1, 20)))), 1, 1e-3, 0)
