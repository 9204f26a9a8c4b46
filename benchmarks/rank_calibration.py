"""How much an order by the default voters says: fits the probabilities of `rank` and tests their calibration.

python benchmarks/rank_calibration.py

From benchmarks/results/zoo.csv: the networks that reached the target loss. Random sets of 2 to 6 networks of one data
set; the event is that a network has the smallest gap of its set. beta is fitted by maximum likelihood on one data set
and judged on the other, of other architecture and images; then on both together for use. Written to
benchmarks/results/rank_calibration.json.
"""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import kendalltau, rankdata

from flatminima import catalog
from flatminima.ranking.calibrated import probabilities
from flatminima.ranking.order import RECOMMENDED

HERE = Path(__file__).parent
SETS, SIZES, SEED = 4_000, (2, 3, 4, 5, 6), 0
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)

Sets = list[tuple[NDArray[np.float64], int]]  # mean ranks of the voters, and which network has the smallest gap


def zoo(data: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voters (measures, networks), oriented so that lower is better, and gaps."""
    with open(HERE / "results" / "zoo.csv", newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["reached"] == "True" and r["data"] == data]
    rows = [r for r in rows if all(r[m] for m in RECOMMENDED)]
    sign = [-1.0 if catalog.measure_row(m).direction == "higher" else 1.0 for m in RECOMMENDED]
    values = np.array([[s * float(r[m]) for r in rows] for m, s in zip(RECOMMENDED, sign, strict=True)])
    return values, np.array([float(r["gap"]) for r in rows])


def sets(values: NDArray[np.float64], gaps: NDArray[np.float64], seed: int) -> Sets:
    rng = np.random.default_rng(seed)
    out = []
    while len(out) < SETS:
        chosen = rng.choice(len(gaps), rng.choice(SIZES), replace=False)
        best = np.flatnonzero(gaps[chosen] == gaps[chosen].min())
        if len(best) == 1:
            out.append((rankdata(values[:, chosen], axis=1).mean(0), int(best[0])))
    return out


def loss(found: Sets, beta: float) -> float:
    """Mean negative log-likelihood, in nats."""
    return float(-np.mean([np.log(probabilities(ranks, beta)[best]) for ranks, best in found]))


def fitted(found: Sets) -> float:
    return float(minimize_scalar(lambda b: loss(found, b), bounds=(0.0, 20.0), method="bounded").x)


def reliability(found: Sets, beta: float) -> dict[str, Any]:
    """Stated and observed shares in bins, their mean distance weighted by counts, and the log-loss beside a guess's."""
    stated, hits = [], []
    for ranks, best in found:
        p = probabilities(ranks, beta)
        stated += p.tolist()
        hits += [i == best for i in range(len(p))]
    p, h = np.array(stated), np.array(hits, dtype=float)
    bins, error = [], 0.0
    for low, high in pairwise(BINS):
        inside = (p >= low) & (p < high)
        if inside.any():
            bins.append({"stated": p[inside].mean(), "observed": h[inside].mean(), "count": int(inside.sum())})
            error += abs(p[inside].mean() - h[inside].mean()) * inside.mean()
    guess = float(np.mean([np.log(len(r)) for r, _ in found]))
    top = float(np.mean([np.argmax(probabilities(r, beta)) == b for r, b in found]))
    chance = float(np.mean([1 / len(r) for r, _ in found]))
    return {
        "calibration_error": error,
        "log_loss": loss(found, beta),
        "log_loss_of_a_guess": guess,
        "first_is_best": top,
        "chance": chance,
        "bins": bins,
    }


def right(values: NDArray[np.float64], gaps: NDArray[np.float64]) -> float:
    """Share of pairs whose gaps the mean rank of the two orders rightly; ties count half."""
    v = np.sign(values[:, :, None] - values[:, None, :]).sum(0)
    g = np.sign(gaps[:, None] - gaps[None, :])
    i, j = np.triu_indices(len(gaps), 1)
    keep = g[i, j] != 0
    return float(np.mean((1 + np.sign(v[i, j]) * g[i, j])[keep] / 2))


def main() -> int:
    data = {name: zoo(name) for name in ("mnist", "cifar10")}
    train = {name: sets(*d, SEED) for name, d in data.items()}
    betas = {name: fitted(found) for name, found in train.items()}
    result: dict[str, Any] = {
        "voters": list(RECOMMENDED),
        "beta": fitted(train["mnist"] + train["cifar10"]),
        "families": {},
    }
    for name, other in (("mnist", "cifar10"), ("cifar10", "mnist")):
        values, gaps = data[name]
        taus = {m: float(kendalltau(v, gaps).statistic) for m, v in zip(RECOMMENDED, values, strict=True)}
        result["families"][name] = {
            "networks": len(gaps), "beta": betas[name], "right": right(values, gaps), "taus": taus,
            "beta_of_the_other": betas[other], "with_the_other_s_beta": reliability(train[name], betas[other]),
        }  # fmt: skip
    path = HERE / "results" / "rank_calibration.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, f in result["families"].items():
        r = f["with_the_other_s_beta"]
        print(f"{name}: {f['networks']} networks, beta {f['beta']:.2f}, pairs right {f['right']:.1%}")
        print(f"  with the other's beta {f['beta_of_the_other']:.2f}: calibration error {r['calibration_error']:.3f},")
        print(f"  log-loss {r['log_loss']:.3f} (a guess {r['log_loss_of_a_guess']:.3f}), ", end="")
        print(f"first is best {r['first_is_best']:.1%} (chance {r['chance']:.1%})")
    print(f"beta of both: {result['beta']:.2f}; {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
