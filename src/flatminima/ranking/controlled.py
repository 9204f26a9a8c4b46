"""Rank correlation that hyper-parameters cannot fake: granulated, conditional, and in the worst environment.

Over a zoo of networks, a measure can order the gaps only because both follow one hyper-parameter (width, say). Jiang
et al. (2020) compare networks that differ in one hyper-parameter, or condition on two; Dziugaite et al. (2020) ask for
the worst such comparison instead of the average.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import UsageError

Point = Mapping[str, Hashable]  # hyper-parameter -> value


@dataclass(frozen=True)
class Controlled:
    """A measure's order of gaps once hyper-parameters are held fixed.

    Attributes:
        granulated: Psi in [-1, 1], the mean over hyper-parameters of `by_hyperparameter`; None when undefined.
        by_hyperparameter: psi_i, the mean tau over groups of networks that differ in hyper-parameter i alone.
        conditional: K in [0, 1], the smallest normalised conditional mutual information; None when undefined.
        given: the hyper-parameters at which it is smallest.
        worst: the largest share of pairs ordered wrongly in an environment, in [0, 1]; None when undefined.
        environment: (hyper-parameter, value, value) where that is.
        environments: how many had pairs.
        undefined: why any of them is None.
    """

    granulated: float | None
    by_hyperparameter: dict[str, float]
    conditional: float | None
    given: tuple[str, ...]
    worst: float | None
    environment: tuple[str, Any, Any] | None
    environments: int
    undefined: str | None = None


def controlled(values: Sequence[float], gaps: Sequence[float], points: Sequence[Point]) -> Controlled:
    """Score a measure by pairs of networks whose hyper-parameters are controlled.

    With V = sign of a difference between two networks: ``psi_i = mean over groups of mean over pairs V_mu V_g``, a
    group being the networks that agree in all hyper-parameters but i; ``K = min_{|S| <= 2} I(V_mu; V_g | U_S) /
    H(V_g | U_S)``, U_S the values of the hyper-parameters in S of both networks; ``worst = max_e P(V_mu != V_g)`` over
    environments e = (i, a, b): pairs that differ in i alone, one having the value a and the other b.

    Args:
        values: of the measure, oriented so that lower should go with a smaller gap.
        gaps: of the same networks.
        points: the hyper-parameters of each network, the same names for all.

    Returns:
        Controlled; pairs of equal gaps say nothing and are left out everywhere, equal values count as half wrong.
        Undefined where no two networks differ in one hyper-parameter alone, or all gaps are equal.

    Raises:
        UsageError: lengths differ, a value that is not finite, hyper-parameters that are not the same names.

    Source:
        Jiang et al. 2020 (arXiv 1912.02178), sec. 3, eq. 4 to 10; Dziugaite et al. 2020 (arXiv 2010.11924), sec. 3.

    Examples:
        >>> points = [{"width": w, "lr": r} for w in (1, 2) for r in (1, 2)]
        >>> controlled([1, 2, 3, 4], [1, 2, 3, 4], points).granulated
        1.0
    """
    mu, g = _checked(values, gaps, points)
    names = list(points[0])
    v_mu, v_g = (np.sign(x[:, None] - x[None, :]) for x in (mu, g))
    alone = _alone(points, names)
    by_name = {name: _psi(pairs, v_mu, v_g) for name, pairs in alone.items()}
    psi = {name: value for name, value in by_name.items() if value is not None}
    if not psi:
        return Controlled(
            None, {}, None, (), None, None, 0, "no two networks of different gap differ in one hyper-parameter alone"
        )
    worst, environment, environments = _worst(alone, points, v_mu, v_g)
    information, given = _conditional(points, names, v_mu, v_g)
    granulated = sum(psi.values()) / len(psi)
    return Controlled(granulated, psi, information, given, worst, environment, environments)


def _checked(
    values: Sequence[float], gaps: Sequence[float], points: Sequence[Point]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mu, g = np.asarray(values, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    if not len(mu) or not len(mu) == len(g) == len(points):
        raise UsageError(f"got {len(mu)} values, {len(g)} gaps and {len(points)} points; give one of each a network")
    if not (np.isfinite(mu).all() and np.isfinite(g).all()):
        raise UsageError("got NaN or Inf among values or gaps; leave such networks out")
    if not points[0] or any(set(p) != set(points[0]) for p in points):
        raise UsageError("the networks do not all name the same hyper-parameters; give every one of them to each")
    return mu, g


def _alone(points: Sequence[Point], names: Sequence[str]) -> dict[str, list[list[tuple[int, int]]]]:
    """Hyper-parameter -> groups that agree in all others -> pairs (i, j) whose values of it differ."""
    out: dict[str, list[list[tuple[int, int]]]] = {}
    for name in names:
        groups: dict[tuple[Hashable, ...], list[int]] = defaultdict(list)
        for i, point in enumerate(points):
            groups[tuple(point[n] for n in names if n != name)].append(i)
        pairs = [
            [(i, j) for i, j in itertools.combinations(members, 2) if points[i][name] != points[j][name]]
            for members in groups.values()
        ]
        out[name] = [p for p in pairs if p]
    return out


def _psi(groups: list[list[tuple[int, int]]], v_mu: NDArray[np.float64], v_g: NDArray[np.float64]) -> float | None:
    taus = []
    for pairs in groups:
        agreement = [v_mu[i, j] * v_g[i, j] for i, j in pairs if v_g[i, j]]
        if agreement:
            taus.append(float(np.mean(agreement)))
    return float(np.mean(taus)) if taus else None


def _worst(
    alone: dict[str, list[list[tuple[int, int]]]],
    points: Sequence[Point],
    v_mu: NDArray[np.float64],
    v_g: NDArray[np.float64],
) -> tuple[float | None, tuple[str, Any, Any] | None, int]:
    """Share of wrongly ordered pairs in the worst environment."""
    errors: dict[tuple[str, Any, Any], list[float]] = defaultdict(list)
    for name, groups in alone.items():
        for i, j in itertools.chain.from_iterable(groups):
            if v_g[i, j]:
                a, b = sorted((points[i][name], points[j][name]), key=repr)
                errors[name, a, b].append(abs(v_g[i, j] - v_mu[i, j]) / 2)
    if not errors:
        return None, None, 0
    means = {environment: float(np.mean(found)) for environment, found in errors.items()}
    worst = max(means, key=lambda e: means[e])
    return means[worst], worst, len(means)


def _conditional(
    points: Sequence[Point], names: Sequence[str], v_mu: NDArray[np.float64], v_g: NDArray[np.float64]
) -> tuple[float | None, tuple[str, ...]]:
    """min over |S| <= 2 of I(V_mu; V_g | U_S) / H(V_g | U_S)."""
    best: tuple[float | None, tuple[str, ...]] = (None, ())
    for size in range(3):
        for given in itertools.combinations(names, size):
            found = _information(points, given, v_mu, v_g)
            if found is not None and (best[0] is None or found < best[0]):
                best = (found, given)
    return best


def _information(
    points: Sequence[Point], given: tuple[str, ...], v_mu: NDArray[np.float64], v_g: NDArray[np.float64]
) -> float | None:
    counts: dict[tuple[Hashable, ...], Counter[tuple[float, float]]] = defaultdict(Counter)
    for i, j in itertools.permutations(range(len(points)), 2):
        if v_g[i, j]:
            key = tuple((points[i][n], points[j][n]) for n in given)
            counts[key][float(v_mu[i, j]), float(v_g[i, j])] += 1
    total = sum(sum(c.values()) for c in counts.values())
    if not total:
        return None
    information = entropy = 0.0
    for joint in counts.values():
        n = sum(joint.values())
        left: Counter[float] = Counter()
        right: Counter[float] = Counter()
        for (a, b), k in joint.items():
            left[a] += k
            right[b] += k
        information += sum(k * math.log(k * n / (left[a] * right[b])) for (a, b), k in joint.items()) / total
        entropy -= sum(k * math.log(k / n) for k in right.values()) / total
    return max(information, 0.0) / entropy if entropy > 0 else None
