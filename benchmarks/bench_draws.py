"""Fresh weights for every example against a plain forward pass, and the price of one independent draw.

python benchmarks/bench_draws.py
"""

from __future__ import annotations

import sys
import time

import torch

from flatminima.certification import StochasticNetwork
from flatminima.models import build
from timing import pin, publish, race

# network -> (examples, most that a pass with draws may cost, in plain forward passes)
NETWORKS = {"mnist_fcn": (250, 3.5), "small_cnn": (250, 2.0), "mnist_cnn4": (100, 1.6)}


def main() -> int:
    pin()
    rows, claims = {}, {}
    for name, (examples, bar) in NETWORKS.items():
        network = StochasticNetwork(build(name, seed=0), 0.01)
        x = torch.rand(examples, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        network.probe(x)
        assert network.by == "example"
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            contenders = {
                "plain": lambda: network.mean_network(x),  # noqa: B023 - called before the next turn
                "one draw for all": lambda: network.drawn(x, noise),  # noqa: B023
                "a draw an example": lambda: network(x, noise),  # noqa: B023
            }
            times = race(contenders, rounds=7, clock=time.process_time)
        rows |= {f"{name}: {k}: us an example": 1e6 * t / examples for k, t in times.items()}
        ratio = times["a draw an example"] / times["plain"]
        claims[f"{name}: a draw an example / plain forward pass"] = (ratio, "<=", bar)
        # a network a draw costs a plain pass over all n samples each, its noise not counted; here a pass is n draws
        claims[f"{name}: draws for the price of one, 30,000 samples"] = (30_000 / ratio, ">=", 8_000)
    return 0 if publish("draws", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
