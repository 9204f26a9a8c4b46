"""Truth for the tests of the bounds: reference vectors, and formulas written again in mpmath."""

import json
from pathlib import Path

import mpmath as mp
from hypothesis import settings

VECTORS = {v["id"]: v for v in json.loads((Path(__file__).parent / "vectors.json").read_text())["vectors"]}
# no example database: the tests leave nothing behind; derandomised: the same draws in every run
PROPERTY = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def vector(name):
    """(inputs, expected) of one reference vector."""
    return VECTORS[name]["inputs"], VECTORS[name]["expected"]


def vector_names(prefix):
    """Ids of the reference vectors that start with `prefix`; never none."""
    names = [name for name in VECTORS if name.startswith(prefix)]
    assert names, prefix
    return names


def exact(x):
    """The float64 `x` without rounding."""
    return mp.mpf(float(x))


def binary_kl(q, p):
    """kl(q||p) at the working precision, straight from its definition."""
    total = mp.mpf(0)
    for a, b in ((q, p), (1 - q, 1 - p)):
        if a > 0:
            total += a * mp.log(a / b) if b > 0 else mp.inf
    return total


def kl_root(q, c, upper=True):
    """The p with kl(q||p) = c on one side of q, by bisection at the working precision."""
    q, c = mp.mpf(q), mp.mpf(c)
    inner, outer = q, mp.mpf(1 if upper else 0)
    for _ in range(int(mp.mp.prec)):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if binary_kl(q, middle) <= c else (inner, middle)
    return (inner + outer) / 2


def complexity(kl, n, delta):
    """(KL + ln(2 sqrt(n)/delta))/n."""
    return (exact(kl) + mp.log(2 * mp.sqrt(n) / exact(delta))) / n
