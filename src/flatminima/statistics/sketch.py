"""Trace and diagonal of a symmetric matrix from products: Hutch++, XTrace and XDiag.

A random sketch catches the large eigenvalues exactly and probes see only what it misses. The X-estimators use every
product for both, leaving one vector out at a time: for a spectrum that decays (a network's does) their error falls
exponentially in the number of products, where Hutchinson's falls with its square root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flatminima.core.perturbation import generator
from flatminima.errors import UsageError
from flatminima.statistics.lanczos import as_product

_FEWEST = 6  # products: two or three probes and their images, so that they have a spread
_LEVERAGE = 1e-6  # by which that of a vector that is no combination of others may miss 1


def hutch_pp(matrix: Any, size: int, products: int, seed: int = 0, index: int = 0) -> tuple[float, float]:
    """Trace by Hutch++: ``tr(Q^T A Q) + mean_k g_k^T (I - QQ^T) A (I - QQ^T) g_k``, Q an orthonormal basis of A S.

    Args:
        matrix: symmetric; a tensor, array, scipy operator, or function of a float64 vector.
        size: its number of rows.
        products: at most, at least 6; a third each for A S, A Q and A g.
        seed, index: of the draw.

    Returns:
        the estimate, unbiased, and its variance given Q (from the spread over g).

    Raises:
        UsageError: too few products.

    Source:
        Meyer, Musco, Musco & Woodruff 2021, Algorithm 1.

    Examples:
        >>> [round(x, 9) for x in hutch_pp(torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])), 4, 12)]
        [4.0, 0.0]
    """
    means, variances = hutch_pp_blocks(matrix, [size], products, seed, index)
    return float(means[0]), float(variances[0])


def hutch_pp_blocks(
    matrix: Any, sizes: Sequence[int], products: int, seed: int = 0, index: int = 0
) -> tuple[Tensor, Tensor]:
    """`hutch_pp` of the whole and of the trace of each diagonal block, from the same products.

    With P = QQ^T the sums over a block's coordinates of ``diag(P A)`` and of ``r_k * (A r_k)``, r_k = (I - P) g_k,
    whose mean is ``diag((I - P) A)``.

    Args:
        matrix, products, seed, index: as for `hutch_pp`.
        sizes: rows of each block, in order.

    Returns:
        the estimates and their variances given Q, (1 + blocks,) float64 each: the whole, then the blocks, which add up
        to it.

    Raises:
        UsageError: too few products.
    """
    _refuse_few(products)
    product, third = as_product(matrix), products // 3
    signs = _signs(sum(sizes), 2 * third, seed, index)
    sketch, probes = signs[:third], signs[third:]
    basis = _orthonormal(_images(product, sketch))
    inside = _blocks((basis * _images(product, basis)).sum(0, keepdim=True), sizes)
    rest = probes - (probes @ basis.T) @ basis
    forms = _blocks(rest * _images(product, rest), sizes)
    return _of_terms(inside + forms)


def xtrace(matrix: Any, size: int, products: int, seed: int = 0, index: int = 0) -> tuple[float, float]:
    """Trace by XTrace: the mean over i of Hutch++ with one probe w_i and the sketch of all the other w_j.

    ``t_i = tr(Q_i^T A Q_i) + w_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) w_i``, Q_i a basis of A W without w_i.

    Args:
        matrix, size, products, seed, index: as for `hutch_pp`; half for A W, half for A Q.

    Returns:
        the estimate, unbiased, and the paper's ``sum_i (t_i - t)^2 / (m (m - 1))`` for its variance. The t_i share a
        sketch: the root of it is some 30% too small for an error bar.

    Raises:
        UsageError: too few products.

    Source:
        Epperly, Tropp & Webber 2024, SIAM J. Matrix Anal. Appl. 45(1), eq. 1.3 and sec. 2.

    Examples:
        >>> [round(x, 9) for x in xtrace(torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])), 4, 8)]
        [4.0, 0.0]
    """
    means, variances = xtrace_blocks(matrix, [size], products, seed, index)
    return float(means[0]), float(variances[0])


def xtrace_blocks(
    matrix: Any, sizes: Sequence[int], products: int, seed: int = 0, index: int = 0
) -> tuple[Tensor, Tensor]:
    """`xtrace` of the whole and of the trace of each diagonal block, from the same products; see `hutch_pp_blocks`."""
    s = _Sketch(matrix, sum(sizes), products, seed, index)
    inside = s.basis @ s.probes.T
    x = inside - s.apart * (s.apart * inside).sum(0)  # Q_i^T w_i in Q's coordinates, (r, m)
    terms, rows = [], list(sizes)
    parts = (each.split(rows, 1) for each in (s.basis, s.images, s.probes, s.products))
    for basis, images, probes, products_ in zip(*parts, strict=True):  # a block at a time: less memory
        shared = (basis * images).sum()
        removed = ((s.apart.T @ basis) * (s.apart.T @ images)).sum(1)  # of Q_i Q_i^T = Q (I - s_i s_i^T) Q^T
        rest = ((probes - x.T @ basis) * (products_ - x.T @ images)).sum(1)
        terms.append(shared - removed + rest)
    return _of_terms(torch.stack(terms, 1))


def xdiag(matrix: Any, size: int, products: int, seed: int = 0, index: int = 0) -> tuple[Tensor, Tensor]:
    """Diagonal by XDiag: the mean over i of ``diag(Q_i Q_i^T A) + w_i * ((I - Q_i Q_i^T) A w_i)``, w_i of +-1 entries.

    Args:
        matrix, size, products, seed, index: as for `xtrace`.

    Returns:
        the diagonal (size,) float64, unbiased, and the variance of each entry, as `xtrace` has it.

    Raises:
        UsageError: too few products.

    Source:
        Epperly, Tropp & Webber 2024, SIAM J. Matrix Anal. Appl. 45(1), sec. 2.4.

    Examples:
        >>> xdiag(torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])), 4, 8)[0].round(decimals=9).tolist()
        [3.0, 1.0, 0.0, 0.0]
    """
    s = _Sketch(matrix, size, products, seed, index)
    lone = s.basis.T @ s.apart  # s_i in the large space, (size, m)
    along = (s.apart * (s.basis @ s.products.T)).sum(0)  # s_i^T A w_i
    terms = s.probes.T * lone * along - lone * (s.images.T @ s.apart)
    return (s.basis * s.images).sum(0) + terms.mean(1), terms.var(1) / terms.shape[1]


class _Sketch:
    """m probes w_i, A w_i, a basis Q of these, A Q; for each probe s_i such that Q_i Q_i^T = Q (I - s_i s_i^T) Q^T."""

    def __init__(self, matrix: Any, size: int, products: int, seed: int, index: int) -> None:
        _refuse_few(products)
        product = as_product(matrix)
        self.probes = _signs(size, products // 2, seed, index)  # (m, size)
        self.products = _images(product, self.probes)  # A w_i, (m, size)
        span, sizes, right = torch.linalg.svd(self.products.T, full_matrices=False)
        rank = _rank(sizes, size)
        self.basis = span[:, :rank].T.contiguous()  # Q^T, (r, size)
        self.images = _images(product, self.basis)  # A Q, (r, size)
        dual = right[:rank] / sizes[:rank].unsqueeze(1)  # column i: across all A w_j but A w_i
        alone = right[:rank].square().sum(0) > 1 - _LEVERAGE  # else A w_i is a combination of the others: s_i = 0
        self.apart = torch.where(alone, dual / dual.norm(dim=0).clamp_min(1e-300), 0.0)  # (r, m)


def _blocks(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sums of the columns of each block, (rows, blocks)."""
    return torch.stack([part.sum(1) for part in rows.split(list(sizes), 1)], 1)


def _of_terms(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the rows of (m, blocks) and their variances, of the whole in front of the blocks."""
    terms = torch.cat([terms.sum(1, keepdim=True), terms], 1)
    return terms.mean(0).cpu(), terms.var(0).cpu() / len(terms)


def _refuse_few(products: int) -> None:
    if products < _FEWEST:
        raise UsageError(f"got {products} products; a sketch and its probes need at least {_FEWEST}")


def _images(product: Any, rows: Tensor) -> Tensor:
    return torch.stack([product(row).to(rows) for row in rows]) if len(rows) else rows


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows of the same span."""
    left, sizes, _ = torch.linalg.svd(rows.T, full_matrices=False)
    basis: Tensor = left[:, : _rank(sizes, rows.shape[1])].T
    return basis.contiguous()


def _rank(sizes: Tensor, size: int) -> int:
    rounding = torch.finfo(sizes.dtype).eps * size**0.5 * float(sizes[0])
    return int((sizes > max(rounding, 1e-300)).sum())


def _signs(size: int, count: int, seed: int, index: int) -> Tensor:
    """(count, size) float64 of +-1."""
    bits = torch.randint(0, 2, (count, size), generator=generator(seed, index), dtype=torch.int8)
    signs: Tensor = bits.double()
    return signs.mul_(2).sub_(1)
