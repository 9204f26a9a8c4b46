"""Power-law exponents of a ResNet-20's weights against WeightWatcher, and how far the two agree layer by layer.

python benchmarks/bench_power_law.py        (needs weightwatcher and powerlaw: requirements-peers.txt)
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from flatminima import Minimum, measures
from networks import trained
from timing import pin, publish, race

FEWEST = 10  # eigenvalues of a layer that WeightWatcher fits, its default
PLAIN = 20  # below it WeightWatcher has a fit of its own for small samples, which is not that of Clauset et al.


def main() -> int:
    pin()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with redirect_stdout(StringIO()):
        import weightwatcher
    model, x, y = trained("resnet20", 640)

    def theirs() -> Any:
        with redirect_stdout(StringIO()):
            return weightwatcher.WeightWatcher(model=model).analyze(min_evals=FEWEST)

    def ours() -> Any:
        return measures.power_law_exponent(Minimum(model, (x[:2], y[:2])), min_eigenvalues=FEWEST, max_error=math.inf)

    found, reference = ours().details["layers"], theirs()
    alphas = dict(zip(reference["longname"] + ".weight", reference["alpha"], strict=True))
    sizes = dict(zip(alphas, reference["num_evals"], strict=True))
    same = [abs(found[name] / alpha - 1) < 1e-3 for name, alpha in alphas.items() if sizes[name] >= PLAIN]
    times = race({"weightwatcher": theirs, "flatminima": ours}, rounds=5, clock=time.process_time)
    rows = {f"{name}: seconds": t for name, t in times.items()}
    rows |= {
        "layers of 20 eigenvalues or more": float(len(same)),
        "of them with the same exponent to 0.1%": float(sum(same)),
    }
    claims = {
        "power-law exponent / WeightWatcher": (times["flatminima"] / times["weightwatcher"], "<=", 1.0),
        "share of those with the same exponent": (sum(same) / len(same), ">=", 1.0),
    }
    return 0 if publish("power_law_resnet20", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
