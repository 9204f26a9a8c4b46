"""`--no-data`: the measures that read the weights and nothing else, discovered by handing them no samples."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima.cli.terminal import out, say_notes
from flatminima.cli.threshold import Threshold, refuse_crossed
from flatminima.errors import Undefined, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatminima.cli.request import Request
    from flatminima.estimate import Estimate
    from flatminima.table import MeasureTable

_CODE = "no-data"
_NEEDS = "it reads the samples: give --data"
_SHAPE = "it depends on the size of an input, which the weights do not say: give --input-shape 3,32,32"
_NO_MARGIN = "not over the margin, which needs data"


@dataclass(frozen=True)
class WeightsOptions:
    """The options of measures that the weights alone decide."""

    no_data: Annotated[bool, typer.Option("--no-data", help="Only measures that read the weights alone.")] = False
    input_shape: Annotated[str | None, typer.Option(help="With it, of one sample: 3,32,32.")] = None
    initial: Annotated[
        str | None, typer.Option(help="Weights before training: a file, or 'factory' for those it makes at --seed.")
    ] = None

    def shape(self) -> tuple[int, ...] | None:
        """The shape of --input-shape.

        Raises:
            UsageError: no sizes there.
        """
        if self.input_shape is None:
            return None
        parts = self.input_shape.replace("x", ",").split(",")
        if not all(p.strip().isdigit() and int(p) > 0 for p in parts):
            raise UsageError(f"got --input-shape {self.input_shape}; expected sizes above 0 such as 3,32,32")
        return tuple(int(p) for p in parts)

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        self.shape()
        if self.input_shape is not None and not self.no_data:
            raise UsageError("--input-shape goes with --no-data; of data the shape is known")
        if self.initial not in (None, "factory") and not Path(str(self.initial)).is_file():
            raise UsageError(f"no file {self.initial} for --initial; name the weights, or 'factory'")


class Weights:
    """A network without samples, as statistics see it: whatever else they ask of it is not there.

    Args:
        model: the network, in eval mode.
        shape: of an input; None: of the first layer where that is linear.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...] | None = None) -> None:
        import torch

        from flatminima.core.parameters import Parameters
        from flatminima.core.sharing import aliases

        self.model, self.parameters, self.seed = model, Parameters.of(model, aliases(model)), 0
        self.device, self.output = torch.device("cpu"), None
        self._shape, self._known = shape, dict[Any, Any]()

    def __getitem__(self, key: Any) -> Any:
        from flatminima.core.statistic import Fold

        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, Fold) for k in keys):
            raise Undefined(_NEEDS, _CODE)
        for k in keys:
            if k not in self._known:
                self._known[k] = k.compute(self)
        found = tuple(self._known[k] for k in keys)
        return found if isinstance(key, tuple) else found[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Undefined(_NEEDS, _CODE)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The network in eval mode, its random numbers put back."""
        from flatminima.core.guard import evaluating, same_randomness

        with evaluating(self.model), same_randomness():
            yield

    def one_input(self) -> Tensor:
        """An input of the shape that is stated, or that a first linear layer takes.

        Raises:
            Undefined: neither.
        """
        import torch
        from torch import nn

        first = next((m for m in self.model.modules() if list(m.parameters(recurse=False))), None)
        shape = self._shape or ((first.in_features,) if isinstance(first, nn.Linear) else None)
        if shape is None:
            raise Undefined(_SHAPE, "no-shape")
        return torch.ones(1, *shape)


def weights_table(
    model: nn.Module, measures: str | None, shape: tuple[int, ...] | None = None, initial: nn.Module | None = None
) -> MeasureTable:
    """The measures of the weights alone: those asked for, or all of the library's that there are.

    Raises:
        UsageError: one is asked for that needs data.
    """
    from flatminima import catalog
    from flatminima.table import MeasureTable

    began = time.perf_counter()
    weights: Any = Weights(model, shape)
    asked = None if measures is None else [n.strip() for n in measures.split(",") if n.strip()]
    names = list(catalog.MEASURES) if asked is None else [catalog.measure_row(name).name for name in asked]
    found = {name: _measured(name, weights, initial) for name in names}
    without = [name for name, estimate in found.items() if estimate.code == _CODE]
    if asked is not None and without:
        raise UsageError(f"{', '.join(without)} cannot be measured with --no-data: {_NEEDS}")
    estimates = {name: estimate for name, estimate in found.items() if name not in without}
    notes = ["no data: whether the network fits anything was not looked at"]
    if without:
        notes.append(f"{len(without)} further measures need --data")
    seconds = time.perf_counter() - began
    return MeasureTable(estimates, 0, len(weights.parameters), 0.0, 0.0, seconds, "none", "", tuple(notes))


def _measured(name: str, weights: Any, initial: nn.Module | None) -> Estimate:
    """The measure, without a margin and with the initial weights where it knows these options."""
    from flatminima import catalog
    from flatminima.measures._measure import with_note

    function: Any = catalog.measure_row(name).load()
    options = signature(function).parameters
    if "initial" in options and initial is not None:
        function = partial(function, initial=initial)
    if "over_margin" not in options:
        return function(weights)  # type: ignore[no-any-return]
    found: Estimate = function(weights, over_margin=False)
    told = found.value is None or "margin" in str(found.details.get("note", ""))  # of a transformer, which has none
    return found if told else with_note(found, _NO_MARGIN)


def measure_weights(
    request: Request, options: WeightsOptions, output: Path | None, thresholds: list[str] | None, as_json: bool
) -> None:
    """The command: what needs no data of a network, printed and written as `measure` does."""
    from flatminima import catalog
    from flatminima.cli.measure_output import save
    from flatminima.cli.request import initial_network, load_network

    limits = [Threshold.of(text, list(catalog.MEASURES)) for text in thresholds or ()]
    with contextlib.redirect_stdout(sys.stderr):
        network, notes = load_network(request)
        found = weights_table(network, request.measures, options.shape(), initial_network(request))
        say_notes(notes)
    for limit in limits:
        if limit.measure not in found:
            raise UsageError(f"got --fail-if of {limit.measure}, which is not among the measures without data")
    document = found.to_dict() | {"command": request.document(), "diagnosis": []}
    if as_json:
        typer.echo(json_text(document))
    else:
        from flatminima.table import render_table

        render_table(found, out())
    if output is not None:
        save(document, {}, output)
    refuse_crossed(limits, found)
