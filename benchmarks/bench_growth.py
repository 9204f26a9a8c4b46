"""How cost grows: time of each measure over samples, parameters and classes, with the fitted exponent.

Writes results/growth.json and docs/performance.md. A perceptron 64-w-w-C on random data; processor time of one pinned
thread; the exponent is the slope of log time over log size at the two largest sizes, where overheads matter least.

python benchmarks/bench_growth.py
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.models import build
from timing import pin, publish, race

warnings.filterwarnings("ignore")  # the peers' own
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SAMPLES, WIDTH, CLASSES = 1_024, 256, 10
SIZES = {"samples": (512, 1_024, 2_048, 4_096), "parameters": (128, 256, 512, 1_024), "classes": (10, 20, 40, 80)}
MEASURES: dict[str, Callable[[Minimum], Any]] = {
    "fisher_logdet": lambda m: measures.fisher_logdet(m, subset=64, trials=1_000),
    "pacgen": lambda m: measures.pacgen(m, samples=None),
    "expected_sharpness": lambda m: measures.expected_sharpness(m, draws=10, samples=100_000),
    "sharpness": lambda m: measures.sharpness(m, samples=None),
    "hessian_trace": lambda m: measures.hessian_trace(m, samples=None, groups=4),
    "hessian_top_eigenvalue": lambda m: measures.hessian_top_eigenvalue(m, samples=None),
    "robustness": lambda m: measures.robustness(m, samples=100_000),
    "path_norm": lambda m: measures.path_norm(m, over_margin=False),
    "spectral_norm": lambda m: measures.spectral_norm(m, over_margin=False),
}


def problem(samples: int, width: int, classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.randn(samples, 64, generator=torch.Generator().manual_seed(0))
    return build("mlp", seed=0, widths=(64, width, width, classes)).eval(), x, torch.arange(samples) % classes


def contenders(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], Any]]:
    """Each measure on a fresh Minimum, so that nothing is remembered; two neighbours' traces beside them."""
    import curvlinops
    from pyhessian import hessian

    def ours(function: Callable[[Minimum], Any]) -> Callable[[], Any]:
        return lambda: function(Minimum(model, (x, y), batch_size=512))

    loss, batches = nn.CrossEntropyLoss(), list(zip(x.split(512), y.split(512), strict=True))

    def pyhessian() -> Any:
        return hessian(model, loss, dataloader=batches, cuda=False).trace(maxIter=8, tol=0.0)

    def linops() -> Any:
        operator = curvlinops.HessianLinearOperator(
            model, loss, list(model.parameters()), batches, check_deterministic=False
        )
        vector = torch.randn(operator.shape[1])
        return [operator @ vector for _ in range(8)]

    return {name: ours(function) for name, function in MEASURES.items()} | {
        "PyHessian, 8 probes of the trace": pyhessian,
        "curvlinops, 8 Hessian products": linops,
    }


def exponents() -> dict[str, dict[str, tuple[float, float]]]:
    """Axis to contender to (exponent, seconds at the largest size)."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for axis, sizes in SIZES.items():
        times, counts = [], []
        for size in sizes:
            of = {"samples": SAMPLES, "parameters": WIDTH, "classes": CLASSES} | {axis: size}
            model, x, y = problem(of["samples"], of["parameters"], of["classes"])
            counts.append(sum(p.numel() for p in model.parameters()) if axis == "parameters" else size)
            times.append(race(contenders(model, x, y), 2, time.process_time))
        step = math.log(counts[-1] / counts[-2])
        found[axis] = {name: (math.log(times[-1][name] / times[-2][name]) / step, times[-1][name]) for name in times[0]}
    return found


def page(found: dict[str, dict[str, tuple[float, float]]]) -> str:
    """docs/performance.md."""
    lines = [
        "# How cost grows",
        "",
        "Time is proportional to size to this power, fitted at the two largest sizes; 1.0 is linear, 0 does not grow.",
        f"Seconds are of one thread at the largest size. A perceptron 64-w-w-C; {SAMPLES} samples,",
        f"w = {WIDTH} and C = {CLASSES} where they do not vary; up to {SIZES['samples'][-1]} samples,",
        f"{SIZES['parameters'][-1]} units a layer (1.1 million parameters), {SIZES['classes'][-1]} classes.",
        "Every measure sees all samples here; by default most see a subset, and do not grow with the data at all.",
        "",
        "```sh",
        "python benchmarks/bench_growth.py",
        "```",
        "",
        "| | samples | parameters | classes | seconds, most samples | most parameters | most classes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in found["samples"]:
        powers = " | ".join(f"{found[axis][name][0]:.2f}" for axis in SIZES)
        seconds = " | ".join(f"{found[axis][name][1]:.2f}" for axis in SIZES)
        lines.append(f"| {name} | {powers} | {seconds} |")
    lines += [
        "",
        "The Gram matrices of `fisher_logdet` take no Jacobian: time grows as a backward pass, memory with the",
        "square of the subset. The Gauss-Newton diagonal (`pacgen`) takes a backward pass a class, through a last",
        "layer that grows with the classes too; the input Jacobian (`robustness`) the same up to 64 classes, and a",
        "number of products that does not grow above. Norms see no data; `spectral_norm` is a singular value",
        "decomposition a layer.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    pin()
    found = exponents()
    rows = {f"{name}: power of {axis}": p for axis, of in found.items() for name, (p, _) in of.items()}
    rows |= {f"{name}: seconds, most {axis}": s for axis, of in found.items() for name, (_, s) in of.items()}
    ours = [p for axis in ("samples", "classes") for name, (p, _) in found[axis].items() if name in MEASURES]
    claims = {
        "largest power of samples or classes": (max(ours), "<=", 1.3),
        "largest power of parameters, data-dependent measures": (
            max(p for name, (p, _) in found["parameters"].items() if name in MEASURES and "norm" not in name),
            "<=",
            1.3,
        ),
    }
    PAGE.write_text(page(found), encoding="utf-8")
    return 0 if publish("growth", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
