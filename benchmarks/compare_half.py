"""Does it help? Base, dropout, PertOPT, SAM and FisherTrace in the runs of study wang-pertopt's half scale.

python benchmarks/compare_half.py FOLDER --data DATA      DATA as `flatminima reproduce --data`; the table of the page
python benchmarks/compare_half.py --show                  the same from results/compare_half.json, computing nothing

The base, dropout and PertOPT are the study's own runs of its seeds 0 to 4 (a test holds them equal): 1,000 CIFAR-10
images of 16 x 16, others for each seed, a CNN of two convolutions, Adam at 1e-3, batches of 128, 60 epochs. SAM and
FisherTrace replace only what takes the step. Each method has three strengths (the base: one); the one with the lowest
mean error on the 1,000 held-out training images of seeds 0 and 1 is chosen, and the test set is looked at for that one
only. Every run is a file, so that a second start does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatminima import Minimum, measure
from flatminima.models import build
from flatminima.optim.diagnostics import PerturbationWarning
from flatminima.studies.images import find, fresh, images
from flatminima.studies.wang_pertopt import STUDY
from flatminima.training import TrainConfig, base_optimizer, evaluate, method, train
from timing import RESULTS

SEEDS = range(5)
TUNED = range(2)  # seeds whose held-out images choose
T_95 = 2.776  # Student's t, four degrees of freedom
T_FOUR = 4.315  # the same at 1 - 0.05 / 4: of four comparisons all hold
MEASURES = ("fisher_trace", "hessian_trace", "hessian_top_eigenvalue", "expected_sharpness", "frobenius_norm")
MEASURED = 500  # training images that the measures see
STRENGTHS: dict[str, tuple[float, ...]] = {
    "base": (0.0,),
    "dropout": (0.1, 0.3, 0.5),  # rate
    "PertOPT": (0.1, 1.0, 10.0),  # gamma
    "SAM": (0.05, 0.1, 0.2),  # rho
    "FisherTrace": (1e-3, 1e-2, 1e-1),  # beta * alpha
}
STORED = RESULTS / "compare_half.json"
BATCH = 128  # the study's, for CIFAR-10 and Adam


def shared(scale: str = "half") -> dict[str, Any]:
    """What all runs of the scale have in common."""
    first = STUDY.list_runs(scale)[0]
    return {key: value for key, value in first.items() if key not in ("seed", "method")}


class Data:
    """Of one seed: training, held-out and test images."""

    def __init__(self, config: dict[str, Any], source: str, seed: int) -> None:
        held, size = config["held"], config["size"]
        x, y = fresh(source, config["limit"] + held, seed, size, "standard")
        self.training, self.held = (x[:-held], y[:-held]), (x[-held:], y[-held:])
        self.test = images(source, "test", None, size, "standard")


def trained(
    config: dict[str, Any], name: str, strength: float, seed: int, data: Data, *, batch: int = BATCH
) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and what it does to the images that may choose a strength."""
    x, y = data.training
    model = _network(config, name, strength, seed)
    base = base_optimizer("adam", model.parameters(), config["lr"])
    kind, of = {
        "PertOPT": ("pertopt", {"gamma": strength, "eta": 0.01}),
        "SAM": ("sam", {"rho": strength}),
        "FisherTrace": ("fisher_trace", {"beta": strength / 1e-4, "alpha": 1e-4}),
    }.get(name, ("plain", {}))
    chosen = method(kind, model, base, of, steps_per_epoch=-(-len(x) // batch), seed=seed)
    recipe = TrainConfig(batch_size=batch, epochs=config["epochs"], seed=seed)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerturbationWarning)
        train(model, x, y, config=recipe, optimizer=chosen.optimizer, backward=chosen.backward)
    seconds = time.process_time() - began
    own, held = evaluate(model.eval(), x, y), evaluate(model, *data.held)
    return model, {
        "train_loss": own.loss, "train_error": own.error, "validation_error": held.error, "seconds": seconds,
    }  # fmt: skip


def tested(model: nn.Module, data: Data, seed: int) -> dict[str, Any]:
    """Of a chosen strength: test error, and measures on its training images."""
    found = evaluate(model, *data.test)
    some = tuple(part[:MEASURED] for part in data.training)
    table = measure(Minimum(model, some, seed=seed), list(MEASURES))
    return {"test_error": found.error, "test_loss": found.loss, "measures": {n: table[n].value for n in MEASURES}}


def runs(folder: Path, source: str) -> dict[str, Any]:
    """Every strength on the seeds that choose, then the chosen ones on all seeds."""
    config = shared()
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    for name, strengths in STRENGTHS.items():
        errors = {
            s: statistics.fmean(_run(folder, config, source, name, s, seed)["validation_error"] for seed in TUNED)
            for s in strengths
        }
        best = min(strengths, key=lambda s: errors[s])
        finals = [_tested(folder, config, source, name, best, seed) for seed in SEEDS]
        rows[name] = {"strength": best, "validation": {f"{s:g}": e for s, e in errors.items()}, "runs": finals}
    return {"scale": "half", "study": STUDY.id, "configuration": config, "rows": rows}


def _run(folder: Path, config: dict[str, Any], source: str, name: str, strength: float, seed: int) -> dict[str, Any]:
    """A training's numbers, from its file if there is one; its network lies beside it."""
    file = folder / f"{name}-{strength:g}-{seed}.json"
    if not file.exists():
        model, numbers = trained(config, name, strength, seed, Data(config, source, seed))
        torch.save(model.state_dict(), file.with_suffix(".pt"))
        _write(file, numbers)
    return dict(json.loads(file.read_text()))


def _tested(folder: Path, config: dict[str, Any], source: str, name: str, strength: float, seed: int) -> dict[str, Any]:
    """The same with the test set and the measures."""
    own = _run(folder, config, source, name, strength, seed)
    file = folder / f"{name}-{strength:g}-{seed}.test.json"
    if not file.exists():
        model = _network(config, name, strength, seed).eval()
        model.load_state_dict(torch.load(folder / f"{name}-{strength:g}-{seed}.pt", weights_only=True))
        _write(file, tested(model, Data(config, source, seed), seed))
    return own | dict(json.loads(file.read_text()))


def _write(file: Path, numbers: dict[str, Any]) -> None:
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(numbers) + "\n")
    partial.replace(file)
    print(time.strftime("%H:%M:%S"), file.stem, numbers, file=sys.stderr, flush=True)


def _network(config: dict[str, Any], name: str, strength: float, seed: int) -> nn.Module:
    options = dict(config["network"])
    rate = strength if name == "dropout" else 0.0
    return build(options.pop("name"), seed=seed, classes=10, dropout=rate, **options)


def interval(values: list[float], t: float = T_95) -> tuple[float, float]:
    """Mean and half width of its interval over five seeds."""
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def table(rows: dict[str, Any]) -> str:
    """Markdown, as the page has it."""
    lines = ["| method | strength | test error, % | minus base (paired) | the same, four comparisons | train loss | "
             "seconds | " + " | ".join(MEASURES) + " |", "|---" * (7 + len(MEASURES)) + "|"]  # fmt: skip
    base = rows["base"]["runs"]
    for name, row in rows.items():
        own = row["runs"]
        error, width = interval([100 * r["test_error"] for r in own])
        less = [100 * (r["test_error"] - b["test_error"]) for r, b in zip(own, base, strict=True)]
        against = ["", ""]
        if name != "base":
            against = [f"{interval(less, t)[0]:+.2f} +- {interval(less, t)[1]:.2f}" for t in (T_95, T_FOUR)]
        cost = statistics.median(r["seconds"] for r in own) / statistics.median(r["seconds"] for r in base)
        values = [[r["measures"][m] for r in own if r["measures"][m] is not None] for m in MEASURES]
        cells = [
            name, "" if name == "base" else f"{row['strength']:g}", f"{error:.2f} +- {width:.2f}", *against,
            f"{statistics.fmean(r['train_loss'] for r in own):.2g}", f"{cost:.2f}",
            *(f"{statistics.fmean(v):.3g}" if v else "undefined" for v in values),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="for one file a run")
    parser.add_argument("--data", help="folder that holds cifar10, or nothing: the hub")
    parser.add_argument("--show", action="store_true", help="the stored table")
    options = parser.parse_args(arguments)
    if not options.show:
        if options.folder is None:
            parser.error("give a folder for the runs, or --show")
        torch.set_num_threads(1)
        found = runs(options.folder, find(STUDY.datasets, options.data)["cifar10"])
        STORED.write_text(json.dumps(found, indent=1) + "\n")
    print(table(json.loads(STORED.read_text())["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
