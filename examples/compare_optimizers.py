"""Does any of it matter? Base, dropout, PertOPT, FisherTrace and SAM on small real data, tuned alike, published as is.

python examples/compare_optimizers.py mnist --data ylecun/mnist --output runs/compare
python examples/compare_optimizers.py cifar10 --data uoft-cs/cifar10 --output runs/compare --publish table.json

Each method has as many settings to choose from; the choice is made on 5,000 validation images that no run trains on,
with seeds of its own. Then five seeds, each with its own training images, initial weights and batches, the same for all
methods, so that differences to the base are paired. Every run is a file named after its configuration: a second start
does only what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import Minimum, measure
from flatminima.data import load_tensors
from flatminima.models import mnist_cnn, wide_resnet
from flatminima.optim import SAM, FisherTrace, PertOPT
from flatminima.training import TrainConfig, evaluate, train

SEEDS = (0, 1, 2, 3, 4)
POOL, VALIDATION = 20_000, 5_000  # images read, and of these kept from all training
T_95 = 2.776  # Student's t, four degrees of freedom
MEASURES = ("fisher_trace", "hessian_trace", "hessian_top_eigenvalue", "expected_sharpness", "frobenius_norm")
STRENGTHS = {  # of one knob a method
    "base": (0.0, 0.01, 0.1),  # decoupled weight decay
    "dropout": (0.1, 0.3, 0.5),  # rate
    "PertOPT": (0.1, 0.3, 1.0),  # gamma
    "FisherTrace": (1e-3, 1e-2, 1e-1),  # beta * alpha
    "SAM": (0.05, 0.1, 0.2),  # rho
}


@dataclass(frozen=True)
class Task:
    """A small problem: `make(dropout)` is the network."""

    name: str
    make: Callable[[float], nn.Module]
    samples: int
    image_size: int | None
    epochs: int
    rates: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    measured: int  # training images that the measures see


TASKS = {
    "mnist": Task("mnist", lambda rate: mnist_cnn(dropout=rate), 1000, None, 30, (1e-3, 3e-3), (100, 101), 1000),
    "cifar10": Task(
        "cifar10", lambda rate: wide_resnet(10, 1, norm="group", dropout=rate), 5000, 16, 10, (5e-3,), (100,), 250
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training; equal runs give equal numbers, but for the seconds."""

    task: str
    method: str
    strength: float
    lr: float
    seed: int
    final: bool
    samples: int
    image_size: int | None
    epochs: int
    batch_size: int = 64

    @property
    def key(self) -> str:
        """Of its configuration."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class Data:
    """Images of a task: a pool to train on, a validation set that is never in it, and the test set."""

    def __init__(self, task: Task, source: str) -> None:
        options: dict[str, Any] = {"scaling": "standard", "image_size": task.image_size}
        x, y = load_tensors(source, "train", limit=POOL, **options)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        self.pool, self.validation = order[:-VALIDATION], order[-VALIDATION:]
        self.x, self.y = x, y
        self.test = load_tensors(source, "test", **options)

    def training(self, run: Run) -> tuple[Tensor, Tensor]:
        """The run's own images."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(1000 + run.seed))
        rows = self.pool[order[: run.samples]]
        return self.x[rows], self.y[rows]


class Stopwatch:
    """Processor seconds of training steps, without the evaluations between them."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.process_time()

    def step(self, *_: Any) -> None:
        now = time.process_time()
        self.seconds, self._last = self.seconds + now - self._last, now

    def skip(self, *_: Any) -> None:
        self._last = time.process_time()


def execute(run: Run, data: Data) -> dict[str, Any]:
    """Train; evaluate on validation images, or for a final run on the test set, with measures of the minimum."""
    torch.manual_seed(run.seed)
    model = TASKS[run.task].make(run.strength if run.method == "dropout" else 0.0)
    x, y = data.training(run)
    decay = run.strength if run.method == "base" else 0.0
    base = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=decay)
    optimizer: torch.optim.Optimizer = base
    backward = None
    if run.method == "PertOPT":
        steps = math.ceil(len(x) / run.batch_size)
        optimizer = PertOPT(base, gamma=run.strength, steps_per_epoch=steps, seed=run.seed)
    elif run.method == "SAM":
        optimizer = SAM(base, rho=run.strength, model=model)
    elif run.method == "FisherTrace":
        backward = FisherTrace(model, beta=run.strength / 1e-4, alpha=1e-4, sub_batches=8).backward
    watch = Stopwatch()
    config = TrainConfig(
        lr=run.lr, batch_size=run.batch_size, epochs=run.epochs, seed=run.seed, schedule="cosine"
    )  # fmt: skip
    history = train(
        model, x, y, config=config, optimizer=optimizer, backward=backward, progress=watch.step, on_epoch=watch.skip
    )
    found: dict[str, Any] = {
        "train_loss": history.final.loss, "train_error": history.final.error, "seconds": watch.seconds,
    }  # fmt: skip
    if not run.final:
        return found | {"validation_error": evaluate(model, data.x[data.validation], data.y[data.validation]).error}
    test = evaluate(model, *data.test)
    some = slice(TASKS[run.task].measured)
    minimum = Minimum(model.eval(), (x[some], y[some]), seed=run.seed)
    table = measure(minimum, list(MEASURES))
    values = {name: table[name].value for name in MEASURES}
    return found | {"test_error": test.error, "test_loss": test.loss, "measures": values}


def done(run: Run, data: Callable[[], Data], folder: Path) -> dict[str, Any]:
    """A run's numbers, from its file if there is one."""
    file = folder / f"{run.key}.json"
    if not file.exists():
        found = {"run": asdict(run), **execute(run, data())}
        partial = file.with_suffix(".tmp")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(file)
        numbers = ", ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, float))
        what = f"{run.method} {run.strength:g} lr {run.lr:g} seed {run.seed}"
        print(f"{time.strftime('%H:%M:%S')} {what}: {numbers}", file=sys.stderr, flush=True)
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def compare(task: Task, data: Callable[[], Data], folder: Path, methods: Sequence[str]) -> dict[str, Any]:
    """Choose each method's setting, then run it with every seed."""
    common = {"task": task.name, "samples": task.samples, "image_size": task.image_size, "epochs": task.epochs}
    rows: dict[str, Any] = {}
    for method in methods:
        grid = {}
        for lr in task.rates:
            for strength in STRENGTHS[method]:
                runs = [
                    Run(method=method, strength=strength, lr=lr, seed=s, final=False, **common)
                    for s in task.tuning_seeds
                ]
                grid[lr, strength] = statistics.fmean(done(r, data, folder)["validation_error"] for r in runs)
        lr, strength = min(grid, key=lambda k: grid[k])
        chosen = [Run(method=method, strength=strength, lr=lr, seed=s, final=True, **common) for s in SEEDS]
        finals = [done(run, data, folder) for run in chosen]
        tried = [{"lr": a, "strength": b, "validation_error": e} for (a, b), e in grid.items()]
        rows[method] = {"lr": lr, "strength": strength, "grid": tried, "runs": finals}
    return rows


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95% interval over five seeds."""
    return statistics.fmean(values), T_95 * statistics.stdev(values) / math.sqrt(len(values))


def table(rows: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| method | strength, rate | test error, % | minus base (paired) | train loss | cost | "
        + " | ".join(MEASURES) + " |",
        "|---" * (6 + len(MEASURES)) + "|",
    ]  # fmt: skip
    base = rows["base"]["runs"]
    for method, row in rows.items():
        runs = row["runs"]
        error, width = interval([100 * r["test_error"] for r in runs])
        pairs = zip(runs, base, strict=True)
        less, less_width = interval([100 * (r["test_error"] - b["test_error"]) for r, b in pairs])
        cost = statistics.median(r["seconds"] for r in runs) / statistics.median(r["seconds"] for r in base)
        means = [[r["measures"][m] for r in runs if r["measures"][m] is not None] for m in MEASURES]
        cells = [
            method, f"{row['strength']:g}, {row['lr']:g}", f"{error:.2f} +- {width:.2f}",
            f"{less:+.2f} +- {less_width:.2f}" if method != "base" else "",
            f"{statistics.fmean(r['train_loss'] for r in runs):.2g}", f"{cost:.2f}",
            *(f"{statistics.fmean(values):.3g}" if values else "undefined" for values in means),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", required=True, help="folder of parquet files, or a name on the hub")
    parser.add_argument("--output", required=True, type=Path, help="folder for one file a run")
    parser.add_argument("--publish", type=Path, help="file for all numbers")
    parser.add_argument("--methods", nargs="+", choices=STRENGTHS, help="only these, to share the work; no table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = TASKS[options.task]
    options.output.mkdir(parents=True, exist_ok=True)
    loaded: list[Data] = []

    def data() -> Data:
        if not loaded:
            loaded.append(Data(task, options.data))
        return loaded[0]

    rows = compare(task, data, options.output, options.methods or list(STRENGTHS))
    if options.methods:
        return 0
    print(table(rows))
    if options.publish is not None:
        options.publish.write_text(json.dumps({"task": task.name, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
