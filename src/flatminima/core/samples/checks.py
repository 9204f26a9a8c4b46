"""Conditions on samples for a network and its loss: entries that it takes, and targets of which every one fits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatminima.core.samples.base import Samples
from flatminima.core.samples.structure import Inputs, shapes
from flatminima.core.samples.tensors import TensorSamples
from flatminima.errors import DataError

if TYPE_CHECKING:
    from flatminima.core.losses import Loss

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def refuse_extra_entries(samples: Samples, model: nn.Module) -> None:
    """Refuse flat samples of three and more entries, unless the network's forward takes all but the last.

    Raises:
        DataError: naming the entries; a weight or an index would otherwise be the target.
    """
    count = samples.flat_entries
    takes = _positional(model) if count > 1 else None
    if takes is None or takes == (count, count):
        return
    low, high = takes
    raise DataError(
        f"got samples of {count + 1} entries ({shapes(*samples.take(torch.arange(1)))}), and the network takes "
        f"{low if low == high else f'{low} to {high}'}: which is the target is not known; give samples "
        "((inputs, ...), target)"
    )


def _positional(model: nn.Module) -> tuple[int, int] | None:
    """The fewest and most positional inputs of the network's forward; None where any number, or unknown."""
    schema = getattr(model.forward, "schema", None)  # of TorchScript
    if schema is not None:
        arguments = schema.arguments[1:]
        return sum(not a.has_default_value() for a in arguments), len(arguments)
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    return sum(p.default is inspect.Parameter.empty for p in positional), len(positional)


def call(model: Any, inputs: Inputs) -> Any:
    """Call the model on a batch: one tensor, several by position or by name, or all in one argument.

    A forward of exactly one argument, as `forward(self, batch)`, is given several inputs as the tuple or dict that
    they are.
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    if takes_batch(model, inputs):
        if isinstance(inputs, dict) and len(inputs) == 1 and type(model).__module__.startswith("torch.nn."):
            return model(*inputs.values())  # whose argument is a tensor, whatever the data calls it
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def takes_batch(model: Any, inputs: Inputs) -> bool:
    """Whether the forward has one argument, and it is none of several inputs."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (AttributeError, TypeError, ValueError):
        return False
    if len(parameters) != 1 or parameters[0].kind not in _POSITIONAL:
        return False
    return parameters[0].name not in inputs if isinstance(inputs, dict) else len(inputs) > 1


def check_every_target(samples: Samples, loss: Loss, output: Tensor) -> None:
    """Refuse targets that do not fit the outputs, wherever in the data they are.

    Args:
        samples: whose targets are all read, in the pass that also makes their hashes.
        loss: of the samples.
        output: of at least one sample.

    Raises:
        DataError: naming the sample, its label and the class count.
    """
    output = output.detach().cpu()
    whole = [(torch.arange(len(samples)), samples.targets)] if isinstance(samples, TensorSamples) else None
    for indices, targets in whole or samples.each_target():
        own = targets.detach().cpu()
        loss.check_targets(own if own.is_floating_point() or own.dtype == torch.bool else own.long(), output, indices)
