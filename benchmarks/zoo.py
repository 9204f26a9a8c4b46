"""The benchmark zoo: 216 small networks over five hyper-parameters, trained to one loss, measured by everything.

python benchmarks/zoo.py --mnist FOLDER --cifar FOLDER [--output zoo]

Each network is a JSON file named by its configuration, written whole: the same command goes on where it was stopped.
At the end benchmarks/results/zoo.csv holds one row a network.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import sys
import time
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flatminima import Minimum, budgets, catalog, measure
from flatminima.data import load_tensors
from flatminima.io import write_whole
from flatminima.training import TrainConfig, evaluate, train

SAMPLES, TEST = 500, 5_000
TARGET, EPOCHS = 0.05, 300  # nats of the training set, in eval mode; the most epochs that are tried
GRID = {
    "width": (16, 64),
    "dropout": (0.0, 0.3, 0.6),
    "lr": (0.01, 0.03, 0.1),
    "batch_size": (16, 64, 250),
    "weight_decay": (0.0, 1e-3),
}
MEASURES = budgets.names("thorough")


def network(data: str, width: int, dropout: float) -> nn.Module:
    """A two-layer perceptron for MNIST, two strided convolutions for CIFAR-10; dropout before the last layer."""
    torch.manual_seed(0)
    if data == "mnist":
        body = [nn.Flatten(), nn.Linear(784, 4 * width), nn.ReLU(), nn.Linear(4 * width, 2 * width), nn.ReLU()]
        return nn.Sequential(*body, nn.Dropout(dropout), nn.Linear(2 * width, 10))
    body = [nn.Conv2d(3, width // 2, 3, stride=2), nn.ReLU(), nn.Conv2d(width // 2, width, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * 49, 10))


def one(data: str, point: dict[str, Any], parts: tuple[Tensor, Tensor, Tensor, Tensor], path: Path) -> dict[str, Any]:
    """Train a network, or take it from an earlier run; measure what has not been measured."""
    x, y, *_ = parts
    row = json.loads(path.read_text()) if path.exists() else None
    missing = [name for name in MEASURES if row is None or name not in row["measures"]]
    if row is not None and not missing:
        return row
    model, initial = (network(data, point["width"], point["dropout"]) for _ in range(2))
    weights = path.with_suffix(".safetensors")
    if row is None or not weights.exists():
        row = _trained(model, data, point, parts)
        save_file(model.state_dict(), weights)
    else:
        model.load_state_dict(load_file(weights))
    started = time.perf_counter()
    table = measure(Minimum(model.eval(), (x, y), batch_size=250), [_measure(name, initial) for name in missing])
    row["measure_seconds"] += time.perf_counter() - started
    row["measures"] |= {name: e.to_dict() for name, e in table.items()}
    write_whole(path, json.dumps(row, indent=1, allow_nan=False) + "\n")
    return row


def _trained(
    model: nn.Module, data: str, point: dict[str, Any], parts: tuple[Tensor, Tensor, Tensor, Tensor]
) -> dict[str, Any]:
    x, y, test_x, test_y = parts
    started = time.perf_counter()
    config = TrainConfig(
        lr=point["lr"],
        batch_size=point["batch_size"],
        weight_decay=point["weight_decay"],
        epochs=EPOCHS,
        target_loss=TARGET,
    )
    history = train(model, x, y, config=config)
    model.eval()
    own, held = evaluate(model, x, y), evaluate(model, test_x, test_y)
    return {
        "data": data,
        **point,
        "epochs": len(history.epochs),
        "reached": own.loss < TARGET,
        "train_loss": own.loss,
        "train_error": own.error,
        "test_loss": held.loss,
        "test_error": held.error,
        "gap": held.error - own.error,
        "train_seconds": time.perf_counter() - started,
        "measure_seconds": 0.0,
        "measures": {},
    }


def _measure(name: str, initial: nn.Module) -> Any:
    """By name; the distance from initialisation knows where that was."""
    function = catalog.measure_row(name).load()
    if "initial" not in signature(function).parameters:
        return name

    def from_there(minimum: Any) -> Any:
        return function(minimum, initial=initial)

    from_there.__name__ = name
    return from_there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", required=True)
    parser.add_argument("--cifar", required=True)
    parser.add_argument("--output", default="zoo")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    loaded = {}
    for data, source in (("mnist", options.mnist), ("cifar10", options.cifar)):
        loaded[data] = (
            *load_tensors(source, "train", limit=SAMPLES, scaling="standard"),
            *load_tensors(source, "test", limit=TEST, scaling="standard"),
        )
    todo = [(data, point) for point in points for data in loaded]
    for done, (data, point) in enumerate(todo):
        key = hashlib.blake2b(json.dumps([data, point, SAMPLES, TARGET]).encode(), digest_size=8).hexdigest()
        rows.append(one(data, point, loaded[data], folder / f"{key}.json"))
        print(f"\r{done + 1}/{len(todo)}", end="", file=sys.stderr, flush=True)
    target = Path(__file__).parent / "results" / "zoo.csv"
    write_table(rows, target)
    print(f"\n{len(rows)} networks in {target}")
    return 0


def write_table(rows: list[dict[str, Any]], target: Path) -> None:
    """One line a network: hyper-parameters, errors, every measure and its standard error."""
    plain = [k for k in rows[0] if k != "measures"]
    names = sorted({name for row in rows for name in row["measures"]})
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*plain, *names, *(f"{n} stderr" for n in names)])
        for row in rows:
            found = [row["measures"].get(n, {}) for n in names]
            numbers = [e.get(key) for key in ("value", "stderr") for e in found]
            writer.writerow([*(row[k] for k in plain), *("" if v is None else f"{v:.6g}" for v in numbers)])


if __name__ == "__main__":
    sys.exit(main())
