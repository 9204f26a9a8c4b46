"""`flatminima train`: to a minimum, with the base optimizer, PertOPT, SAM or the Fisher-trace regularizer.

Killed at any moment, the same command goes on and ends with the same bits; with more --epochs it goes on from the end.
In this order: what needs no torch is checked, then the network is built, data is read, the folder is claimed, and it is
trained.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import typer

from flatminima.cli.option_groups import grouped
from flatminima.cli.sample_options import Reading
from flatminima.cli.terminal import bars, say, tell
from flatminima.cli.torchrun import first
from flatminima.cli.train_options import (
    KeepingOptions,
    LengthOptions,
    MachineOptions,
    MethodOptions,
    NetworkOptions,
    RateOptions,
    SampleOptions,
    TrainRequest,
)
from flatminima.io import json_text


@grouped
def train(
    network: NetworkOptions,
    samples: SampleOptions,
    reading: Reading,
    keeping: KeepingOptions,
    method: MethodOptions,
    rate: RateOptions,
    length: LengthOptions,
    machine: MachineOptions,
) -> None:
    """Train a network to a minimum; killed, the same command goes on where it was."""
    request = TrainRequest(network, samples, reading, method, rate, length, machine)
    request.check()
    from flatminima.cli.train_run import METRICS, WEIGHTS, run  # torch, only now

    with bars(), contextlib.redirect_stdout(sys.stderr):
        result = run(request, keeping)
    if not first():
        return
    if keeping.as_json:
        typer.echo(json_text(result))
    else:
        tell(_summary(result))
    sys.stdout.flush()  # before the notes, where both go to one terminal
    say("", f"Weights: {keeping.output / WEIGHTS}", f"Metrics: {keeping.output / METRICS}")
    say("Next:    flatminima measure with the same --model, --data and --loss, and these weights as --checkpoint")


def _summary(result: dict[str, Any]) -> str:
    lines = [f"{result['method']} with {result['optimizer']}: {result['epochs']} epochs, {result['steps']} steps, "
             f"{result['seconds']:.1f} s"]  # fmt: skip
    if result["best_epoch"] is not None:
        kept = "whose weights are kept" if result["kept_best"] else "the weights are the last"
        lines[0] += f"; best epoch {result['best_epoch']}, {kept}"
    for name in ("train", "validation", "test"):
        if result[name] is not None:
            found = result[name]
            error = "" if found["error"] is None else f"  error {100 * found['error']:.2f}%"
            lines.append(f"{name:<10} loss {found['loss']:.4f}{error} of {found['n']}")
    return "\n".join(lines)
