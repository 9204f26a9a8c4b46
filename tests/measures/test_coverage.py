"""Coverage: a nominal 95% interval holds the value of all the data in 90 to 99 of 100 repetitions.

Repetitions are draws of samples and probes with the quadratic forms of dense per-sample matrices, so that 200 of them
take no time; that the statistics are those forms is tested in tests/statistics.
"""

import itertools
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from flatminima.core.statistic import Fixed
from flatminima.measures import effective_dimension, hessian_top_eigenvalue, hessian_trace, negative_curvature
from flatminima.statistics import (
    Eigenvalues,
    GroupTraces,
    HessianProbes,
    ProbedHessian,
    SketchedTraces,
    SpectralDensity,
    Spectrum,
    TopEigenvalues,
    hutch_pp,
    xtrace,
)
from flatminima.statistics.hessian import GROUPS, group_edges

pytestmark = pytest.mark.slow

N, REPETITIONS = 600, 200


@cache
def matrices(curvature):
    """Of each sample (N, W, W) float64, at a trained network."""
    g = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(3, 4, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (N,), generator=g)
    x = centres[y] + torch.randn(N, 4, generator=g, dtype=torch.float64)
    sizes = ((6, 4), (6,), (3, 6), (3,))
    w = torch.cat([0.5 * torch.randn(s, generator=g, dtype=torch.float64).flatten() for s in sizes]).requires_grad_()

    def output(w, x):
        a, b, c, d = (p.view(s) for p, s in zip(w.split([24, 6, 18, 3]), sizes, strict=True))
        return (x @ a.T + b).tanh() @ c.T + d

    optimizer = torch.optim.Adam([w], 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(output(w, x), y).backward()
        optimizer.step()
    w = w.detach()
    if curvature == "hessian":
        one = torch.func.jacrev(torch.func.jacrev(lambda w, x, y: F.cross_entropy(output(w, x), y)))
        return torch.func.vmap(one, (None, 0, 0))(w, x, y)
    jacobian = torch.func.vmap(torch.func.jacrev(output), (None, 0))(w, x)
    p = output(w, x).softmax(1)
    return torch.einsum("nci,ncd,ndj->nij", jacobian, torch.diag_embed(p) - p[:, :, None] * p[:, None], jacobian)


def covered(estimates, exact):
    intervals = [e.interval() for e in estimates]
    return sum(low <= exact <= high for low, high in intervals) / len(intervals)


def grouped(each, generator, samples, groups):
    """Matrices (G, W, W) of a random partition, and its sizes."""
    chosen = torch.randperm(N, generator=generator)[:samples]
    edges = group_edges(samples, groups)
    parts = [chosen[a:b] for a, b in itertools.pairwise(edges)]
    return torch.stack([each[p].mean(0) for p in parts]), torch.tensor([len(p) for p in parts])


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("samples, probes", [(200, 1), (200, 2), (300, 1), (300, 4), (N, 2), (N, 5)])
def test_trace(curvature, samples, probes):
    """At the default groups; catches an error bar of the probes alone (part of the data) or of the samples alone.

    With 100 samples it is 85%: these Hessians have heavy tails, and a normal interval wants more of them.
    """
    each, generator = matrices(curvature), torch.Generator().manual_seed(samples + probes)
    key = HessianProbes(probes, samples, 0, curvature, 50)
    estimates = []
    for _ in range(REPETITIONS):
        means, sizes = grouped(each, generator, samples, 50)
        v = torch.randint(0, 2, (50, probes, each.shape[1]), generator=generator) * 2.0 - 1
        traces = torch.einsum("gki,gij,gkj->gk", v.double(), means, v.double())
        given = Fixed({key: ProbedHessian(torch.zeros(1), traces, sizes, N)})
        estimates.append(hessian_trace(given, curvature=curvature, probes=probes, samples=samples, seed=0))
    share = covered(estimates, float(each.mean(0).trace()))
    assert 0.90 <= share <= 0.99, share


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("samples", [100, 200, 400])
def test_top_eigenvalue(curvature, samples):
    """To first order in the samples; its bias upwards is small beside it."""
    each, generator = matrices(curvature), torch.Generator().manual_seed(samples)
    key = TopEigenvalues(1, samples, seed=0, curvature=curvature)
    estimates = []
    for _ in range(REPETITIONS):
        means, sizes = grouped(each, generator, samples, GROUPS)
        values, vectors = torch.linalg.eigh(torch.einsum("g,gij->ij", sizes.double() / samples, means))
        forms = torch.einsum("i,gij,j->g", vectors[:, -1], means, vectors[:, -1])
        given = Fixed({key: Eigenvalues(values[-1:], torch.zeros(1), (), forms, sizes, N, 30)})
        estimates.append(hessian_top_eigenvalue(given, curvature=curvature, samples=samples, seed=0))
    share = covered(estimates, float(torch.linalg.eigvalsh(each.mean(0))[-1]))
    assert 0.90 <= share <= 0.99, share


@pytest.mark.parametrize("method, samples", [("hutch++", 200), ("hutch++", 500), ("xtrace", 200)])
def test_sketched_trace(method, samples):
    """Sketches of 12 products in each of 40 groups. XTrace's own variance is not used: of most data it covers 100%."""
    each, generator = matrices("hessian"), torch.Generator().manual_seed(samples)
    key = SketchedTraces(method, 12, samples, 40)
    sketch = hutch_pp if method == "hutch++" else xtrace
    estimates = []
    for k in range(REPETITIONS // 2):  # 4,000 sketches: a hundred repetitions do
        means, sizes = grouped(each, generator, samples, 40)
        found = torch.tensor([sketch(a, a.shape[0], 12, k, g) for g, a in enumerate(means)], dtype=torch.float64)
        variances = found[:, 1] if method == "hutch++" else None
        given = Fixed({key: GroupTraces(found[:, 0], variances, sizes, N)})
        estimates.append(hessian_trace(given, estimator=method, probes=12, groups=40, samples=samples, seed=0))
    share = covered(estimates, float(each.mean(0).trace()))
    assert 0.88 <= share <= 0.99, share


def spectrum(means, sizes, probes, generator):
    """Of as many Lanczos steps as parameters, so that nodes are eigenvalues."""
    w = means.shape[-1]
    values, vectors = torch.linalg.eigh(torch.einsum("g,gij->ij", sizes.double() / float(sizes.sum()), means))
    v = (torch.randint(0, 2, (probes, w), generator=generator) * 2.0 - 1).double() / w**0.5
    along = v @ vectors  # (probes, w)
    reactions = along.unsqueeze(1) * torch.einsum("gij,kj,im->kgm", means, v, vectors)
    return Spectrum(values.expand(probes, w), along.square(), reactions, sizes, N, w)


@pytest.mark.parametrize("probes", [4, 10])
@pytest.mark.parametrize("samples", [300, N])
@pytest.mark.parametrize("name", ["effective_dimension", "negative_curvature"])
def test_spectral_functions(name, samples, probes):
    """First order in the samples; with 100 of 600 the bias of a part of the data is no longer small."""
    curvature, measure = ("hessian", negative_curvature) if name[0] == "n" else ("gauss_newton", effective_dimension)
    each, generator = matrices(curvature), torch.Generator().manual_seed(samples)
    eigenvalues = torch.linalg.eigvalsh(each.mean(0))
    if name == "negative_curvature":
        exact = float((-eigenvalues).clamp_min(0).sum() / eigenvalues.abs().sum())
    else:
        exact = float((N * eigenvalues / (N * eigenvalues + 1)).sum())
    key = SpectralDensity(probes, 30, samples, 0, curvature)
    estimates = []
    for _ in range(REPETITIONS):
        means, sizes = grouped(each, generator, samples, GROUPS)
        given = Fixed({key: spectrum(means, sizes, probes, generator)})
        estimates.append(measure(given, probes=probes, samples=samples, seed=0))
    share = covered(estimates, exact)
    assert 0.90 <= share <= 0.99, share
