"""Destinations of rows beside the table: any function, a file, or an experiment tracker that the caller has set up.

A sink is a function of (step, values), values by name and all of them numbers. Trackers are recognised by what they can
do, so that none of them is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flatminima.errors import UsageError
from flatminima.io import json_text
from flatminima.track.log import Lines

Values = dict[str, float]
Sink = Callable[[int, Values], None]
PREFIX = "flatminima/"


def as_sink(target: Any) -> Sink:
    """A sink of whatever can take numbers.

    Args:
        target: a function of (step, values); the path of a JSON-lines file; TensorBoard's `SummaryWriter`; a W&B or
            trackio run or module; the `mlflow` module with its active run; anything with `log(dict, step=)`,
            `log_metrics(dict, step=)` or `add_scalar(name, value, step)`.

    Raises:
        UsageError: none of these.
    """
    if isinstance(target, str | os.PathLike):
        return jsonl(target)
    if hasattr(target, "add_scalar"):
        return tensorboard(target)
    if hasattr(target, "log_metrics"):  # mlflow, and Lightning's loggers
        return mlflow(target)
    if callable(getattr(target, "log", None)):
        return wandb(target)
    if callable(target):
        return target  # type: ignore[no-any-return]
    raise UsageError(
        f"got a sink of type {type(target).__name__}; give a function of (step, values), a path, or an object with "
        "log(), log_metrics() or add_scalar()"
    )


def jsonl(path: str | os.PathLike[str]) -> Sink:
    """A line a check: {"step": ..., name: value, ...}."""
    lines = Lines(Path(path))

    def write(step: int, values: Values) -> None:
        lines.write(json_text({"step": step, **values}, None))

    return write


def tensorboard(writer: Any) -> Sink:
    """`torch.utils.tensorboard.SummaryWriter`, or whatever has its `add_scalar`."""

    def write(step: int, values: Values) -> None:
        for name, value in values.items():
            writer.add_scalar(PREFIX + name, value, step)

    return write


def wandb(run: Any) -> Sink:
    """A W&B run or module, or trackio's, which have the same `log`."""

    def write(step: int, values: Values) -> None:
        run.log({PREFIX + name: value for name, value in values.items()}, step=step)

    return write


trackio = wandb


def mlflow(client: Any) -> Sink:
    """The `mlflow` module with its active run, or whatever has its `log_metrics`."""

    def write(step: int, values: Values) -> None:
        client.log_metrics({PREFIX + name: value for name, value in values.items()}, step=step)

    return write


def as_sinks(targets: Any) -> list[Sink]:
    """One sink or several."""
    if targets is None:
        return []
    several = isinstance(targets, Iterable) and not isinstance(targets, str | os.PathLike) and not callable(targets)
    named = several and not any(hasattr(targets, name) for name in ("log", "log_metrics", "add_scalar"))
    return [as_sink(target) for target in targets] if named else [as_sink(targets)]


__all__ = ["Sink", "as_sink", "as_sinks", "jsonl", "mlflow", "tensorboard", "trackio", "wandb"]
