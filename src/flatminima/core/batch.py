"""One batch of a sweep: its outputs, losses and gradients, each made once for all folds that read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.gradient_check import (
    LayerComparison,
    LayersDisagree,
    Watch,
    following_errors,
    out_of_memory,
    row_weights,
    watching,
)
from flatminima.core.layer_gradient import LayerGradient
from flatminima.core.layers import NoLayerRule, Tape
from flatminima.core.parameters import dense, frozen, gradients
from flatminima.core.perturbation import generator, mix
from flatminima.core.samples import Inputs, leaves, map_tensors
from flatminima.core.statistic import Reads
from flatminima.errors import Absent, DataError, ModelError, NumericalError, Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass
class Recorded:
    """A forward pass with the tape running: what its layers hand out, and whether it is checked against autograd."""

    tape: Tape
    output: Tensor
    check: bool
    route: int


_Listener = Callable[[LayerGradient], None]
Draws = Mapping[tuple[int, int], list[_Listener]]  # by how many random combinations of columns, and their seed
Backward = Callable[[Tensor, list[_Listener], bool], list[Tensor]]  # seed, listeners, keep the graph -> input gradients


@dataclass(frozen=True)
class Listeners:
    """Listeners to the loss's gradients, to those of each Gauss-Newton column, and of random combinations of these."""

    layers: list[_Listener]
    columns: list[_Listener]
    drawn: Draws


class Batch:
    """Samples `start` to `start + count` of the sweep's order.

    Attributes:
        inputs, targets: on the model's device.
        indices (count,): where the samples stand in the data.
        start: position of the first in the sweep's order.
        outputs (count, ...): detached logits.  losses (count,): per-sample, detached.
        log_norms (count,) float64: ln ||d loss / d output||; the layer gradients are for the unit vector.
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

    def read(
        self, reads: Reads, layers: list[_Listener], columns: list[_Listener], drawn: Draws | None = None
    ) -> dict[Reads, Absent]:
        """Prepare what the folds read; layer gradients go to the listeners as they come.

        Args:
            reads: the union of what the folds read.
            layers, columns: listeners to the loss's gradients and to those of each Gauss-Newton column.
            drawn: listeners to random combinations of these columns, by (how many, seed).

        Returns:
            what has no meaning here, with the reason; nothing of it was sent to a listener.
        """
        if reads & (Reads.LAYERS | Reads.COLUMNS | Reads.DRAWN | Reads.INPUTS):
            return self._with_layers(reads, Listeners(layers, columns, drawn or {}))
        if reads & Reads.OUTPUTS:
            with torch.no_grad():
                self._receive(self.minimum.forward(self.inputs))
        return {}

    def graph(self) -> Tensor:
        """Flat gradient (W,) of the sum of the losses, with a graph to the parameters."""
        total, tensors = self._total()
        grads = torch.autograd.grad(total, tensors, create_graph=True, allow_unused=True)
        pairs = zip(grads, tensors, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else dense(g)).reshape(-1) for g, p in pairs])

    def gradient(self) -> Tensor:
        """Gradient of the summed loss (W,), detached."""
        total, tensors = self._total()
        return torch.cat([g.reshape(-1) for g in gradients(total, tensors)])

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

    def _with_layers(self, reads: Reads, listeners: Listeners) -> dict[Reads, Absent]:
        minimum = self.minimum
        lost: dict[Reads, Absent] = {}
        inputs: list[Tensor] = []
        if reads & Reads.INPUTS:
            try:
                inputs = self.open_inputs()
            except Undefined as reason:
                lost[Reads.INPUTS] = Absent.of(reason)
        if not minimum.follows_layers:
            with frozen(minimum.parameters):
                back = self._sample_by_sample(inputs)
                return lost | self._send_back(reads, listeners, back, bool(inputs))
        check = minimum.following.due()
        recorded = self._record(check)
        if not check and minimum.following.unseen(recorded.route):
            minimum.passes.forward -= len(self)
            minimum.passes.checks += len(self)
            recorded.tape.release()
            recorded = self._record(True)
        try:
            self._receive(recorded.output)
            with nullcontext() if recorded.check else frozen(minimum.parameters):
                back = self._by_layers(recorded, inputs)
                lost |= self._send_back(reads, listeners, back, bool(inputs), recorded)
        finally:
            recorded.tape.release()
        minimum.following.passed(recorded.route)
        return lost

    def _record(self, check: bool) -> Recorded:
        """One forward pass with the tape running.

        Raises:
            LayersDisagree: a layer, or a weight used outside of one, that the tape cannot follow.
        """
        minimum = self.minimum
        watch = Watch(minimum.units, len(self)) if minimum.watchable else None
        tape = Tape(minimum.units, len(self), minimum.following.level, watch)
        try:
            with nullcontext() if check else frozen(minimum.parameters), following_errors():
                with tape.recording(), watching(watch):
                    output = minimum.forward(self.inputs)
                if check and not (output.requires_grad and minimum.trainable):
                    raise Undefined("the network's output does not depend on a trainable parameter")
            if watch is not None and watch.behind:
                name, function = next(iter(watch.behind.items()))
                raise LayersDisagree(f"{name!r} is used outside of its layer, by {function}")
        except BaseException:
            tape.release()
            raise
        return Recorded(tape, output, check, watch.route if watch is not None else 0)

    def _by_layers(self, recorded: Recorded, inputs: list[Tensor]) -> Backward:
        """One graph to the layers' outputs; a backward pass hands out each layer's gradients of all samples."""

        def back(seed: Tensor, listeners: list[_Listener], retain: bool) -> list[Tensor]:
            self.minimum.passes.backward += len(self)
            with following_errors():
                return recorded.tape.backward(recorded.output, seed, _broadcast(listeners), inputs, retain)

        return back

    def _send_back(
        self,
        reads: Reads,
        listeners: Listeners,
        back: Backward,
        inputs: bool,
        recorded: Recorded | None = None,
    ) -> dict[Reads, Absent]:
        """Run the backward passes that are read: of the loss, then of each Gauss-Newton column; check the first."""
        loss = self.minimum.loss
        lost: dict[Reads, Absent] = {}
        unit = factor = None
        drawn = listeners.drawn if reads & Reads.DRAWN else {}
        # all seeds before the first backward pass, so that no fold gets half of what it reads
        if reads & Reads.LAYERS:
            try:
                unit, self.log_norms = loss.seed(self.outputs, self.targets)
            except Undefined as reason:
                lost[Reads.LAYERS] = Absent.of(reason)
        if reads & Reads.COLUMNS or inputs:
            try:
                factor = loss.columns(self.outputs, self.targets)
            except Undefined as reason:
                lost |= {Reads.COLUMNS: Absent.of(reason), Reads.INPUTS: Absent.of(reason)}
        wanted = [(seed, c, count) for count, seed in drawn for c in range(count)]
        first: Tensor | None = None
        if wanted:
            try:
                first = self._drawn(*wanted[0])
            except Undefined as reason:
                lost[Reads.DRAWN] = Absent.of(reason)
        more = first is not None
        check = recorded is not None and recorded.check and (unit is not None or factor is not None or more)
        if recorded is not None and check:
            self._check(recorded, unit, listeners.layers, back, factor is not None or more)
        elif unit is not None:
            back(unit, listeners.layers, factor is not None or more)
        if factor is not None:
            grads = [back(seed, listeners.columns, more or c + 1 < len(factor)) for c, seed in enumerate(factor)]
            if inputs:
                self.input_columns = torch.stack([torch.cat([g.reshape(len(self), -1) for g in gs], 1) for gs in grads])
        while first is not None:
            (seed, _, count), *wanted = wanted
            back(first, drawn[count, seed], bool(wanted))
            first = self._drawn(*wanted[0]) if wanted else None
        return lost

    def _drawn(self, seed: int, index: int, count: int) -> Tensor:
        """Combination `index` of `count` of the loss's Gauss-Newton columns, over sqrt(count).

        The signs of a sample depend on its place in the order, and not on the batch.
        """
        own, shape = mix(seed, index), self.outputs.shape[1:]
        signs = [torch.randint(0, 2, shape, generator=generator(own, self.start + i), dtype=torch.int8)
                 for i in range(len(self))]  # fmt: skip
        both = torch.stack(signs).mul_(2).sub_(1).to(self.outputs.device)
        return self.minimum.loss.drawn_column(self.outputs, self.targets, both) / math.sqrt(count)

    def _check(
        self, recorded: Recorded, unit: Tensor | None, layers: list[_Listener], back: Backward, retain: bool
    ) -> None:
        """The first backward pass, its layers' gradients compared with an ordinary one's.

        Raises:
            LayersDisagree: naming the parameter whose gradient differs.
        """
        if unit is None:
            seed = torch.randn(recorded.output.shape, generator=torch.Generator().manual_seed(0)).to(recorded.output)
        else:
            seed = unit
        rows = row_weights(len(self)).to(recorded.output.device)
        scaled = seed * rows.to(seed).view(-1, *[1] * (seed.dim() - 1))
        names = self.minimum.parameters.names
        comparison = LayerComparison(
            rows, dict(zip(names, self._ordinary(recorded.output, scaled), strict=True)), seed.dtype
        )
        if unit is None:
            self.minimum.passes.backward -= len(self)
            self.minimum.passes.checks += len(self)
        back(seed, [comparison] if unit is None else [*layers, comparison], retain)
        reason = comparison.disagreement()
        if reason is not None:
            raise LayersDisagree(reason)

    def _ordinary(self, output: Tensor, seed: Tensor) -> list[Tensor]:
        """Gradients of the parameters by an ordinary backward pass.

        Raises:
            Undefined: it fails.
        """
        self.minimum.passes.checks += len(self)
        try:
            return gradients(output, self.minimum.parameters.tensors, seed, retain_graph=True)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise Undefined(f"the network's own backward pass fails: {str(error).splitlines()[0]}") from None

    def _sample_by_sample(self, leaves_in: list[Tensor]) -> Backward:
        """The slow truth: one graph to the parameters, one backward pass a sample. For models no tape can follow."""
        minimum = self.minimum
        parameters = minimum.parameters
        for p in parameters.tensors:
            p.requires_grad_()
        singles = [minimum.forward(map_tensors(lambda t, i=i: t[i : i + 1], self.inputs)) for i in range(len(self))]
        self._receive(torch.cat(singles))
        _refuse_constant(singles[0])

        def back(seed: Tensor, listeners: list[_Listener], retain: bool) -> list[Tensor]:
            minimum.passes.backward += len(self)
            rows: list[list[Tensor]] = []
            for i, output in enumerate(singles):
                try:
                    row = gradients(output, [*parameters.tensors, *leaves_in], seed[i : i + 1], retain_graph=retain)
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    raise Undefined(f"the network's own backward pass fails: {str(error).splitlines()[0]}") from None
                rows.append(row)
            stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
            n = len(parameters.tensors)
            by_name = dict(zip(parameters.names, stacked[:n], strict=True))
            _broadcast(listeners)(LayerGradient("all parameters", summed=by_name))
            return [g.sum(0) for g in stacked[n:]]  # sample i alone depends on row i

        return back

    def open_inputs(self) -> list[Tensor]:
        """Make the floating-point inputs leaves that ask for gradients. Raises Undefined where there are none."""
        self.inputs = map_tensors(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, self.inputs)
        opened = [t for t in leaves(self.inputs) if t.requires_grad]
        if not opened:
            raise Undefined("the network's input is not continuous (token ids or categories)")
        return opened

    def _receive(self, output: Tensor, *, differentiable: bool = False) -> Tensor:
        """Check and keep the outputs and their losses (n,), which are returned; `differentiable` with their graph."""
        minimum = self.minimum
        if not output.is_floating_point():
            raise ModelError(f"the network returned {output.dtype}; expected real floating-point logits")
        if output.dim() == 0 or len(output) != len(self):
            raise ModelError(
                f"the network returned {tuple(output.shape)} for {len(self)} samples; the first dimension of its "
                "output must be the sample"
            )
        self.outputs = output.detach()
        minimum.loss.check_targets(self.targets, self.outputs, self.indices)
        with torch.set_grad_enabled(differentiable):
            losses = minimum.loss(output if differentiable else self.outputs, self.targets)
        self.losses = losses.detach()
        bad = (~torch.isfinite(self.losses)).nonzero()
        if len(bad):
            self._explain(int(bad[0]))
        return losses

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


def _broadcast(listeners: list[_Listener]) -> _Listener:
    def each(layer: LayerGradient) -> None:
        for listener in listeners:
            listener(layer)

    return each


__all__ = ["Batch", "NoLayerRule"]
