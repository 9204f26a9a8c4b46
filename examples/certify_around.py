"""Compare the shapes of a posterior around one trained network: divergence, bound and test error of each.

python examples/certify_around.py
python examples/certify_around.py --data DATA/mnist --width 100 --epochs 10 --draws 10000 --samples-per-draw 60

The network is trained on all samples; the prior's centre on half of them, which the bound does not use. With
`--prior none` it is the initial weights, and the bound uses all samples. The table's best row is a certificate too:
the failure probability is shared among its seven rows and the two kinds of prior (Gaussian and box), 14 in all.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

from flatminima import Minimum
from flatminima.certification import Certificate, Union, certify_around
from flatminima.core.samples import TensorSamples
from flatminima.data import load_tensors
from flatminima.errors import FlatMinimaError, UsageError
from flatminima.models import build
from flatminima.training import TrainConfig, train

ROWS = (
    ("gaussian", "gauss_newton"),
    ("diagonal_laplace", "gauss_newton"),
    ("diagonal_laplace", "fisher"),
    ("fisher_laplace", "gauss_newton"),
    ("fisher_laplace", "fisher"),
    ("truncated_gaussian", "gauss_newton"),
    ("uniform", "gauss_newton"),
)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; defaults run in about a minute on one core."""
    parser = argparse.ArgumentParser(description="Certificates around one network, by the shape of the posterior.")
    parser.add_argument("--data", default="digits", help="digits, a folder of parquet files, or a name on the hub")
    parser.add_argument("--limit", type=int, help="a fixed random subset of this many training samples")
    parser.add_argument("--prior", choices=("half", "none"), default="half", help="what the prior's centre is made of")
    parser.add_argument("--width", type=int, default=96, help="hidden units")
    parser.add_argument("--epochs", type=int, default=60, help="of the prior; the network takes a third of them more")
    parser.add_argument("--curvature-samples", type=int, default=50, help="of the low-rank posteriors")
    parser.add_argument("--samples-per-draw", type=int, default=32)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, certify, print a table; 0 done, 1 failed, 2 a request that cannot be met."""
    options = parse(arguments)
    try:
        rows = run(options)
    except (FlatMinimaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    first = rows[0][2]
    print(f"{first.prior}; n = {first.n}, delta = {first.delta:g} for the whole table")
    print(f"hold-out bound of the prior's own network, same samples: {first.holdout_bound:.4f}")
    print(f"test error of the network: {first.details['test']['mean_network_error']:.4f}")
    print("| posterior | curvature | prior's scale | KL | error | at most | bound | test error | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for posterior, curvature, c, seconds in rows:
        shown = "none" if posterior == "gaussian" else curvature
        error, most, test = c.empirical_risk, c.monte_carlo_upper, c.details["test"]["error"]
        numbers = f"{error:.4f} | {most:.4f} | {c.risk_bound:.4f} | {test:.4f}"
        print(f"| {posterior} | {shown} | {c.sigma:g} | {c.kl:.1f} | {numbers} | {seconds:.0f} |")
    return 0


def run(options: argparse.Namespace) -> list[tuple[str, str, Certificate, float]]:
    """A certificate for each row."""
    x, y = load_tensors(options.data, "train", limit=options.limit)
    test = load_tensors(options.data, "test")
    order = TensorSamples(x, y).order(options.seed)
    cut = len(y) // 2 if options.prior == "half" else 0
    first = order[:cut].sort().values  # the part that certify divides off, by content

    initial = partial(build, "mlp", widths=(x[0].numel(), options.width, int(y.max()) + 1))
    network = initial(seed=options.seed)
    config = TrainConfig(lr=0.05, batch_size=64, epochs=options.epochs, seed=options.seed)
    arms: dict[str, Any] = {"prior": initial, "prior_seed": options.seed}
    if cut:
        train(network, x[first], y[first], config=config)
        arms |= {"prior_fraction": 0.5, "prior_training": config}  # the same part and training, seen by certify
        config = replace(config, lr=0.01, epochs=math.ceil(options.epochs / 3), seed=options.seed + 1)
    train(network, x, y, config=config)
    minimum = Minimum(network.eval(), (x, y))
    out = []
    for posterior, curvature in ROWS:
        started = time.perf_counter()
        certificate = certify_around(
            minimum,
            posterior,
            curvature=curvature,  # type: ignore[arg-type]
            curvature_samples=options.curvature_samples if posterior == "fisher_laplace" else None,
            union=Union(candidates=2, evaluations=len(ROWS)),
            draws=options.draws,
            batch_size=options.samples_per_draw,
            test_data=test,
            seed=options.seed,
            **arms,
        )
        out.append((posterior, curvature, certificate, time.perf_counter() - started))
        print(f"{posterior} ({curvature}): {certificate.risk_bound:.4f}", file=sys.stderr, flush=True)
    return out


if __name__ == "__main__":
    sys.exit(main())
