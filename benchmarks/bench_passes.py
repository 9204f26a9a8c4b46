"""Seven measures in one sweep: passes over the data, against each measure alone.

python benchmarks/bench_passes.py
"""

from __future__ import annotations

import sys

import torch

from flatminima import Minimum, measure
from flatminima.measuring import functions
from networks import trained
from timing import pin, publish

SEVEN = [
    "fisher_frobenius",
    "fisher_logdet",
    "fisher_spectral_radius",
    "fisher_trace",
    "frobenius_norm",
    "margin",
    "path_norm",
]


def main() -> int:
    pin()
    model, x, y = trained("mlp", 2000, steps=300)
    table = measure(Minimum(model, (x, y)), SEVEN)
    alone = torch.zeros(2)
    for name, function in functions(SEVEN).items():
        single = Minimum(model, (x, y))
        assert function(single).value == table[name].value  # sharing changes the cost, never the number
        alone += torch.tensor([single.passes.forward, single.passes.backward]) / len(x)
    claims = {
        "forward passes for seven measures": (table.forward_passes, "<=", 1.2),
        "backward passes for seven measures": (table.backward_passes, "<=", 1.2),
    }
    rows = {"each alone: forward passes": float(alone[0]), "each alone: backward passes": float(alone[1])}
    with_hessian = measure(Minimum(model, (x, y)), [*SEVEN, "hessian_trace"])
    rows["with hessian_trace (10 products): forward"] = with_hessian.forward_passes
    rows["with hessian_trace (10 products): backward"] = with_hessian.backward_passes
    return 0 if publish("passes", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
