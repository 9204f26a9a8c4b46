"""Lanczos against numpy's eigenvalues: no ghosts, multiplicities, and nothing unconverged returned as a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

from flatminima.errors import NumericalError, UsageError
from flatminima.statistics import extreme_eigenvalues, lanczos


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
    "a network's": [*np.logspace(-9, -3, 250), 0.1, 0.2, 0.4, 1.0, 1.1, 1.2, 7.0],
    "two parameters": [1.0, -2.0],
    "one parameter": [-3.0],
    "the unit matrix": [1.0] * 30,
}


def expected(spectrum: list[float], which: str, k: int) -> list[float]:
    key = {"largest": lambda x: -x, "smallest": lambda x: x, "magnitude": lambda x: -abs(x)}[which]
    return sorted(spectrum, key=key)[:k]


ENDS = [(n, w) for n in SPECTRA for w in ("largest", "smallest", "magnitude") if (n, w) != ("a network's", "smallest")]


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name, which", ENDS, ids=" ".join)
def test_extreme_eigenvalues_of_a_known_spectrum(name: str, which: str, k: int) -> None:
    """Multiplicities come as often as they are there, nothing else twice; restarts are forced by the cluster."""
    spectrum = SPECTRA[name]
    k = min(k, len(spectrum))
    matrix = rotated(spectrum)
    found = extreme_eigenvalues(matrix, len(spectrum), k, which, 1e-7)  # type: ignore[arg-type]
    scale = max(map(abs, expected(spectrum, which, k)))
    allowed = max(1e-7 * scale, 1e-13 * max(map(abs, spectrum)))
    values, truth = found.values.numpy(), np.array(expected(spectrum, which, k))
    if which == "magnitude":  # of -1 and 1 either may come first
        values, truth = np.abs(values), np.abs(truth)
    np.testing.assert_allclose(values, truth, rtol=0, atol=allowed)
    assert found.converged and found.missing == ()
    vectors = found.vectors.numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-9)
    residuals = np.linalg.norm(vectors @ matrix - found.values.numpy()[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, rtol=1e-3, atol=1e-14 * max(map(abs, spectrum)))
    assert residuals.max() <= allowed


@pytest.mark.parametrize("seed", range(4))
def test_random_matrices_and_every_seed(seed: int) -> None:
    size = 150
    spectrum = np.random.default_rng(seed).standard_normal(size) ** 3
    matrix = rotated(list(spectrum), seed)
    found = extreme_eigenvalues(aslinearoperator(matrix), size, 4, tolerance=1e-9, seed=seed)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrix)[::-1][:4], rtol=1e-9)


def test_a_triple_eigenvalue_and_no_ghosts() -> None:
    """A neighbour returns the largest, simple, one three times; another misses that 3 is there three times."""
    simple = extreme_eigenvalues(rotated([*np.linspace(0, 1, 100), 3.0, 7.0]), 102, 4, tolerance=1e-8)
    np.testing.assert_allclose(simple.values, [7.0, 3.0, 1.0, 98 / 99], atol=1e-7)
    triple = extreme_eigenvalues(rotated([*np.linspace(0, 1, 50), 3.0, 3.0, 3.0]), 53, 4, tolerance=1e-8)
    np.testing.assert_allclose(triple.values, [3.0, 3.0, 3.0, 1.0], atol=1e-6)


def test_the_zero_matrix() -> None:
    found = extreme_eigenvalues(np.zeros((9, 9)), 9, 2)
    assert found.values.tolist() == [0.0, 0.0]


def test_float32_bases_resolve_what_float32_can() -> None:
    matrix = torch.from_numpy(rotated(SPECTRA["a network's"]))
    found = extreme_eigenvalues(matrix, len(matrix), 3, tolerance=1e-4, dtype=torch.float32)
    np.testing.assert_allclose(found.values, [7.0, 1.2, 1.1], rtol=1e-5)


def test_what_has_not_converged_is_no_number() -> None:
    """Of three, the first converges within the budget; the others are residuals only."""
    spectrum = [*np.linspace(0.999, 1, 400), 50.0]
    found = extreme_eigenvalues(rotated(spectrum), 401, 3, tolerance=1e-9, products=8)
    assert not found.converged
    assert len(found.values) + len(found.missing) == 3
    assert all(abs(float(v) - 50) < 1e-6 for v in found.values)
    none = extreme_eigenvalues(rotated(spectrum[:-1]), 400, 1, tolerance=1e-9, products=5)
    assert len(none.values) == 0 and len(none.missing) == 1 and none.missing[0] > 1e-9


def test_the_smallest_of_a_network_do_not_converge() -> None:
    """1e-9 beside 7 with 250 in between: no number, not a wrong one."""
    found = extreme_eigenvalues(rotated(SPECTRA["a network's"]), 257, 1, "smallest", 1e-7, products=100)
    assert len(found.values) == 0 and len(found.missing) == 1


def test_the_budget_is_kept() -> None:
    found = extreme_eigenvalues(rotated(list(np.linspace(0.999, 1, 400))), 400, 2, tolerance=1e-9, products=50)
    assert found.products <= 2 * (2 * 50) + 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 0}, "k is 1 to 2"),
        ({"k": 3}, "got k=3 eigenvalues of a matrix of size 2"),
        ({"tolerance": 0.0}, "got tolerance=0.0"),
        ({"tolerance": 1.0}, "got tolerance=1.0"),
        ({"which": "top"}, "got which='top'; expected one of largest, smallest, magnitude"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        extreme_eigenvalues(np.eye(2), 2, **options)  # type: ignore[arg-type]


# -- the tridiagonal matrix ------------------------------------------------------------------------------------------


def test_quadrature_is_exact_to_its_degree() -> None:
    """m nodes integrate x^j, j < 2m, under the start's spectral measure; x^(2m) not."""
    matrix = rotated(list(np.linspace(-1, 2, 40)))
    start = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = (start / start.norm()).numpy()
    nodes, weights = lanczos(matrix, start, 5).quadrature()
    for degree in range(11):
        truth = unit @ np.linalg.matrix_power(matrix, degree) @ unit
        found = float(weights @ nodes**degree)
        assert (abs(found - truth) < 1e-10) == (degree < 10), degree


def test_an_invariant_space_ends_it() -> None:
    found = lanczos(np.diag([1.0, 1.0, 4.0, 4.0, 4.0]), torch.ones(5), 5)
    nodes, weights = found.quadrature()
    np.testing.assert_allclose(nodes, [1.0, 4.0], atol=1e-12)
    np.testing.assert_allclose(weights, [0.4, 0.6], atol=1e-12)
    assert found.last == 0.0
    assert lanczos(torch.zeros(3, 3), torch.ones(3), 3).quadrature()[0].tolist() == [0.0]


def test_no_steps() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        lanczos(np.eye(2), torch.ones(2), 0)


# -- any scale -------------------------------------------------------------------------------------------------------

FAR = [(torch.float32, 1e-25), (torch.float32, 1e24), (torch.float64, 1e-200), (torch.float64, 1e200)]


@pytest.mark.parametrize("dtype, scale", FAR, ids=str)
def test_eigenvalues_of_any_size(dtype: torch.dtype, scale: float) -> None:
    """The square of 1e24 is infinite in float32: its norm then accepted any residual."""
    matrix = torch.from_numpy(rotated([*np.linspace(-1, 1, 60), 5.0]))
    found = extreme_eigenvalues(lambda v: (matrix @ v.double()) * scale, len(matrix), 2, tolerance=1e-4, dtype=dtype)
    np.testing.assert_allclose(found.values / scale, [5.0, 1.0], rtol=1e-4)
    assert float(found.residuals.max()) <= 1e-4 * 5 * scale
    assert found.norm == pytest.approx(5 * scale, rel=0.5)


@pytest.mark.parametrize("dtype, scale", FAR, ids=str)
def test_a_quadrature_of_any_size(dtype: torch.dtype, scale: float) -> None:
    matrix, start = torch.from_numpy(rotated(list(np.linspace(-1, 2, 40)))), torch.ones(40, dtype=torch.float64)
    nodes, weights = lanczos(lambda v: (matrix @ v.double()) * scale, start, 10, dtype).quadrature()
    plain = lanczos(matrix, start, 10, dtype).quadrature()
    np.testing.assert_allclose(nodes / scale, plain[0], atol=1e-5)
    np.testing.assert_allclose(weights, plain[1], atol=1e-4)


def test_a_product_that_overflows() -> None:
    for run in (lambda m: extreme_eigenvalues(m, 3), lambda m: lanczos(m, torch.ones(3), 2)):
        with pytest.raises(NumericalError, match="it overflows, or holds NaN"):
            run(lambda v: v * torch.inf)


def test_the_rounding_of_a_larger_one_is_no_tolerance() -> None:
    """1e-3 above -100 in float32: within 100 roundings of -100 any number near 0 was accepted."""
    matrix = torch.from_numpy(rotated([-100.0, 1e-3, *np.linspace(-1, 0, 30)]))
    lost = extreme_eigenvalues(lambda v: matrix.float() @ v.float(), len(matrix), dtype=torch.float32)
    assert len(lost.values) == 0 and 0 < lost.missing[0] < 1e-5 * lost.norm
    found = extreme_eigenvalues(matrix, len(matrix))
    np.testing.assert_allclose(found.values, [1e-3], rtol=1e-3)
