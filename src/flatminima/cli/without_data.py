"""`--no-data`: measures that read the weights and nothing else."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flatminima.cli.terminal import out, say_notes
from flatminima.cli.threshold import Threshold, refuse_crossed
from flatminima.errors import UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from torch import nn

    from flatminima.cli.request import Request
    from flatminima.table import MeasureTable

_MEASURES = ("parameter_count", "parameter_norm", "power_law_exponent")


def chosen(measures: str | None) -> list[str]:
    """The measures asked for, or all that need no data.

    Raises:
        UsageError: one that needs data.
    """
    if measures is None:
        return list(_MEASURES)
    names = [n.strip() for n in measures.split(",") if n.strip()]
    needs = [n for n in names if n not in _MEASURES]
    if needs:
        raise UsageError(
            f"{', '.join(needs)} cannot be measured with --no-data, only {', '.join(_MEASURES)}; give --data"
        )
    return names


class _Weights:
    """Statistics of a network that has no data."""

    def __init__(self, model: nn.Module) -> None:
        from flatminima.core.parameters import Parameters
        from flatminima.core.sharing import aliases

        self.model, self.parameters, self.seed = model, Parameters.of(model, aliases(model)), 0

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        found = tuple(k.compute(self) for k in keys)
        return found if isinstance(key, tuple) else found[0]


def table(model: nn.Module, names: list[str]) -> MeasureTable:
    """The measures of the weights."""
    from flatminima import catalog
    from flatminima.table import MeasureTable

    began = time.perf_counter()
    weights: Any = _Weights(model)
    estimates = {name: catalog.measure_row(name).load()(weights) for name in names}
    notes = ("no data: whether the network fits anything was not looked at",)
    seconds = time.perf_counter() - began
    return MeasureTable(estimates, 0, len(weights.parameters), 0.0, 0.0, seconds, "none", "", notes)


def measure_weights(request: Request, output: Path | None, thresholds: list[str] | None, as_json: bool) -> None:
    """The command: what needs no data of a network, printed and written as `measure` does."""
    from flatminima.cli.measure_output import save
    from flatminima.cli.request import load_network

    names = chosen(request.measures)
    limits = [Threshold.of(text, names) for text in thresholds or ()]
    with contextlib.redirect_stdout(sys.stderr):
        network, notes = load_network(request)
        say_notes(notes)
        found = table(network, names)
    document = found.to_dict() | {"command": request.document(), "diagnosis": []}
    if as_json:
        typer.echo(json_text(document))
    else:
        from flatminima.table import render_table

        render_table(found, out())
    if output is not None:
        save(document, {}, output)
    refuse_crossed(limits, found)
