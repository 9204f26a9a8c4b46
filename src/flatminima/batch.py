"""One batch of a sweep: its outputs, losses and gradients, each made once for all folds that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima.errors import DataError, NumericalError, Undefined
from flatminima.layers import LayerGradient, NoLayerRule, Tape
from flatminima.samples import Inputs, leaves, map_tensors
from flatminima.statistic import Reads

if TYPE_CHECKING:
    from flatminima.minimum import Minimum

Listener = Callable[[LayerGradient], None]


class Batch:
    """Samples `start` to `start + count` of the sweep's order.

    Attributes:
        inputs, targets: on the model's device.
        indices (count,): where the samples stand in the data.
        start: position of the first in the sweep's order.
        outputs (count, ...): detached logits.  losses (count,): per-sample, detached.
        log_norms (count,) float64: ln ||d loss / d output||; the layer gradients heard are for the unit vector.
        input_columns (columns, count, D): gradients with respect to the input under each Gauss-Newton column.
    """

    outputs: Tensor
    losses: Tensor
    log_norms: Tensor
    input_columns: Tensor

    def __init__(self, minimum: Minimum, indices: Tensor, start: int) -> None:
        self.minimum, self.indices, self.start = minimum, indices, start
        inputs, targets = minimum.samples.take(indices)
        self.inputs: Inputs = map_tensors(lambda t: t.to(minimum.device), inputs)
        self.targets: Tensor = targets.to(minimum.device)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, reads: Reads, layers: list[Listener], columns: list[Listener]) -> None:
        """Prepare what the folds read; layer gradients go to the listeners as they come."""
        deep = reads & (Reads.LAYERS | Reads.COLUMNS | Reads.INPUTS)
        if deep:
            self._with_layers(reads, layers, columns)
        elif reads & Reads.OUTPUTS:
            with torch.no_grad():
                self._receive(self.minimum.forward(self.inputs))

    def graph(self) -> tuple[Tensor, Tensor]:
        """Sum of the losses with a graph to the parameters, and its flat gradient (W,) with a graph of its own."""
        minimum = self.minimum
        output = minimum.forward(self.inputs)
        if not hasattr(self, "losses"):
            self._receive(output)
        total = minimum.loss(output, self.targets).sum()
        grads = torch.autograd.grad(total, minimum.parameters.tensors, create_graph=True, allow_unused=True)
        minimum.passes.backward += len(self)
        parts = [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for g, p in zip(grads, minimum.parameters.tensors, strict=True)
        ]
        return total, torch.cat(parts)

    def gradient(self) -> Tensor:
        """Gradient of the summed loss (W,), detached."""
        minimum = self.minimum
        output = minimum.forward(self.inputs)
        self._receive(output)
        total = minimum.loss(output, self.targets).sum()
        tensors = minimum.parameters.tensors
        grads = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
        minimum.passes.backward += len(self)
        return torch.cat([g.reshape(-1) for g in grads])

    def _with_layers(self, reads: Reads, layers: list[Listener], columns: list[Listener]) -> None:
        minimum = self.minimum
        with frozen(minimum):
            if not minimum.follows_layers:
                self._sample_by_sample(reads, layers, columns)
                return
            tape = Tape(minimum.units, minimum.keeps_copies)
            leaves_in = self._open_inputs() if reads & Reads.INPUTS else []
            with tape.recording():
                output = minimum.forward(self.inputs)
            self._receive(output)

            def back(seed: Tensor, heard: list[Listener], retain: bool) -> list[Tensor]:
                minimum.passes.backward += len(self)
                return tape.backward(output, seed, _broadcast(heard), leaves_in, retain)

            self._seeds(reads, layers, columns, back)

    def _seeds(self, reads: Reads, layers: list[Listener], columns: list[Listener], back: Any) -> None:
        """Run the backward passes that are read: of the loss, then of each Gauss-Newton column."""
        loss = self.minimum.loss
        wants_columns = bool(reads & (Reads.COLUMNS | Reads.INPUTS))
        if reads & Reads.LAYERS:
            unit, self.log_norms = loss.seed(self.outputs, self.targets)
            back(unit, layers, wants_columns)
        if wants_columns:
            factor = loss.columns(self.outputs, self.targets)
            grads = [back(seed, columns, c + 1 < len(factor)) for c, seed in enumerate(factor)]
            if reads & Reads.INPUTS:
                self.input_columns = torch.stack([torch.cat([g.flatten(1) for g in gs], 1) for gs in grads])

    def _sample_by_sample(self, reads: Reads, layers: list[Listener], columns: list[Listener]) -> None:
        """The slow truth: one graph to the parameters, one backward pass a sample. For models no tape can follow."""
        minimum = self.minimum
        parameters = minimum.parameters
        for p in parameters.tensors:
            p.requires_grad_()
        leaves_in = self._open_inputs() if reads & Reads.INPUTS else []
        singles = [minimum.forward(map_tensors(lambda t, i=i: t[i : i + 1], self.inputs)) for i in range(len(self))]
        minimum.passes.forward -= len(self) - sum(len(s) for s in singles)
        self._receive(torch.cat(singles))

        def back(seed: Tensor, heard: list[Listener], retain: bool) -> list[Tensor]:
            minimum.passes.backward += len(self)
            rows: list[list[Tensor]] = []
            for i, output in enumerate(singles):
                grads = torch.autograd.grad(
                    output,
                    [*parameters.tensors, *leaves_in],
                    seed[i : i + 1],
                    retain_graph=retain,
                    materialize_grads=True,
                    allow_unused=True,
                )
                rows.append(list(grads))
            stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
            n = len(parameters.tensors)
            by_name = dict(zip(parameters.names, stacked[:n], strict=True))
            _broadcast(heard)(LayerGradient("all parameters", summed=by_name))
            return [g.sum(0) for g in stacked[n:]]  # sample i alone depends on row i

        self._seeds(reads, layers, columns, back)

    def _open_inputs(self) -> list[Tensor]:
        self.inputs = map_tensors(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, self.inputs)
        opened = [t for t in leaves(self.inputs) if t.requires_grad]
        if not opened:
            raise Undefined("the network's input is not continuous (token ids or categories)")
        return opened

    def _receive(self, output: Tensor) -> None:
        minimum, first = self.minimum, int(self.indices[0])
        self.outputs = output.detach()
        minimum.loss.check_targets(self.targets, self.outputs, first)
        with torch.no_grad():
            self.losses = minimum.loss(self.outputs, self.targets)
        bad = (~torch.isfinite(self.losses)).nonzero()
        if len(bad):
            self._explain(int(bad[0]))

    def _explain(self, i: int) -> None:
        index = int(self.indices[i])
        for tensor in leaves(self.inputs):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor[i]).all()):
                raise DataError(f"sample {index} holds NaN or Inf in its input; clean or drop it")
        if self.targets.is_floating_point() and not bool(torch.isfinite(self.targets[i]).all()):
            raise DataError(f"sample {index} holds NaN or Inf in its target; clean or drop it")
        what = "output" if not bool(torch.isfinite(self.outputs[i]).all()) else "loss"
        raise NumericalError(
            f"the {what} of sample {index} is not finite (loss {float(self.losses[i])}); "
            "a measure of it would be meaningless: check the weights and the loss"
        )


def _broadcast(listeners: list[Listener]) -> Listener:
    def each(layer: LayerGradient) -> None:
        for listener in listeners:
            listener(layer)

    return each


@contextmanager
def frozen(minimum: Minimum) -> Iterator[None]:
    """No parameter requires a gradient within the block."""
    parameters = minimum.parameters.tensors
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def logits(output: Any) -> Tensor:
    """The tensor in what a model returned: itself, `.logits`, the entry 'logits', or a tuple's first.

    Raises:
        DataError: none of these.
    """
    if isinstance(output, Tensor):
        return output
    inner = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if inner is None and isinstance(output, tuple | list) and output:
        inner = output[0]
    if isinstance(inner, Tensor):
        return inner
    raise DataError(
        f"the model returned {type(output).__name__}; expected a tensor, an object with .logits, or a tuple "
        "whose first entry is a tensor"
    )


__all__ = ["Batch", "NoLayerRule", "frozen", "logits"]
