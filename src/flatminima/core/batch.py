"""One batch of a sweep: its outputs, losses and gradients, each made once for all folds that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima.core.layers import LayerGradient, NoLayerRule, Tape
from flatminima.core.samples import Inputs, leaves, map_tensors
from flatminima.core.statistic import Reads
from flatminima.errors import DataError, ModelError, NumericalError, Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

Listener = Callable[[LayerGradient], None]
Backward = Callable[[Tensor, list[Listener], bool], list[Tensor]]  # seed, who hears, keep the graph -> input gradients


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
        whole = not targets.is_floating_point() and targets.dtype != torch.bool
        self.targets: Tensor = targets.to(minimum.device, torch.int64 if whole else None)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, reads: Reads, layers: list[Listener], columns: list[Listener]) -> dict[Reads, Undefined]:
        """Prepare what the folds read; layer gradients go to the listeners as they come.

        Returns:
            what has no meaning here, with the reason; nothing of it was sent to a listener.
        """
        if reads & (Reads.LAYERS | Reads.COLUMNS | Reads.INPUTS):
            return self._with_layers(reads, layers, columns)
        if reads & Reads.OUTPUTS:
            with torch.no_grad():
                self._receive(self.minimum.forward(self.inputs))
        return {}

    def graph(self) -> Tensor:
        """Flat gradient (W,) of the sum of the losses, with a graph to the parameters."""
        total, tensors = self._total()
        grads = torch.autograd.grad(total, tensors, create_graph=True, allow_unused=True)
        parts = [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(grads, tensors, strict=True)]
        return torch.cat(parts)

    def gradient(self) -> Tensor:
        """Gradient of the summed loss (W,), detached."""
        total, tensors = self._total()
        grads = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in grads])

    def _total(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Sum of the losses, to be differentiated by the parameters."""
        minimum = self.minimum
        output = minimum.forward(self.inputs)
        self._receive(output)
        total = minimum.loss(output, self.targets).sum()
        if not total.requires_grad:
            raise Undefined(f"loss {minimum.loss.name!r} has no gradient with respect to the parameters")
        minimum.passes.backward += len(self)
        return total, minimum.parameters.tensors

    def _with_layers(self, reads: Reads, layers: list[Listener], columns: list[Listener]) -> dict[Reads, Undefined]:
        minimum = self.minimum
        lost: dict[Reads, Undefined] = {}
        leaves_in: list[Tensor] = []
        if reads & Reads.INPUTS:
            try:
                leaves_in = self.open_inputs()
            except Undefined as reason:
                lost[Reads.INPUTS] = reason
        follows = minimum.follows_layers  # its own check thaws the parameters: before they are frozen
        with frozen(minimum):
            back = self._by_layers(leaves_in) if follows else self._sample_by_sample(leaves_in)
            lost |= self._send_back(reads, layers, columns, back, bool(leaves_in))
        return lost

    def _by_layers(self, leaves_in: list[Tensor]) -> Backward:
        """One graph to the layers' outputs; a backward pass hands out each layer's gradients of all samples."""
        minimum = self.minimum
        tape = Tape(minimum.units, len(self), minimum.copies)
        with tape.recording():
            output = minimum.forward(self.inputs)
        self._receive(output)

        def back(seed: Tensor, heard: list[Listener], retain: bool) -> list[Tensor]:
            minimum.passes.backward += len(self)
            return tape.backward(output, seed, _broadcast(heard), leaves_in, retain)

        return back

    def _send_back(
        self, reads: Reads, layers: list[Listener], columns: list[Listener], back: Backward, inputs: bool
    ) -> dict[Reads, Undefined]:
        """Run the backward passes that are read: of the loss, then of each Gauss-Newton column."""
        loss = self.minimum.loss
        lost: dict[Reads, Undefined] = {}
        unit = factor = None
        # all seeds before the first backward pass, so that no fold hears half of what it reads
        if reads & Reads.LAYERS:
            try:
                unit, self.log_norms = loss.seed(self.outputs, self.targets)
            except Undefined as reason:
                lost[Reads.LAYERS] = reason
        if reads & Reads.COLUMNS or inputs:
            try:
                factor = loss.columns(self.outputs, self.targets)
            except Undefined as reason:
                lost |= {Reads.COLUMNS: reason, Reads.INPUTS: reason}
        if unit is not None:
            back(unit, layers, factor is not None)
        if factor is not None:
            grads = [back(seed, columns, c + 1 < len(factor)) for c, seed in enumerate(factor)]
            if inputs:
                self.input_columns = torch.stack([torch.cat([g.reshape(len(self), -1) for g in gs], 1) for gs in grads])
        return lost

    def _sample_by_sample(self, leaves_in: list[Tensor]) -> Backward:
        """The slow truth: one graph to the parameters, one backward pass a sample. For models no tape can follow."""
        minimum = self.minimum
        parameters = minimum.parameters
        for p in parameters.tensors:
            p.requires_grad_()
        singles = [minimum.forward(map_tensors(lambda t, i=i: t[i : i + 1], self.inputs)) for i in range(len(self))]
        self._receive(torch.cat(singles))
        _refuse_constant(singles[0])

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

        return back

    def open_inputs(self) -> list[Tensor]:
        """Make the floating-point inputs leaves that ask for gradients. Raises Undefined where there are none."""
        self.inputs = map_tensors(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, self.inputs)
        opened = [t for t in leaves(self.inputs) if t.requires_grad]
        if not opened:
            raise Undefined("the network's input is not continuous (token ids or categories)")
        return opened

    def _receive(self, output: Tensor) -> None:
        minimum = self.minimum
        if output.dim() == 0 or len(output) != len(self):
            raise ModelError(
                f"the network returned {tuple(output.shape)} for {len(self)} samples; the first dimension of its "
                "output must be the sample"
            )
        self.outputs = output.detach()
        minimum.loss.check_targets(self.targets, self.outputs, self.indices)
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


def _refuse_constant(output: Tensor) -> None:
    if not output.requires_grad:
        raise Undefined("the network's output does not depend on a trainable parameter")


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
