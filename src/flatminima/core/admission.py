"""Conditions that a network meets before it is measured: deterministic, without memory, one sample at a time.

Two forward passes of one pair of samples cannot show state, capacity, equal samples or generators other than torch's;
several random samples, other batch sizes and chosen states of every generator can.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatminima.core.batch import Batch
from flatminima.core.chance import DIFFER, refuse_chance, states_of
from flatminima.core.gradient_check import out_of_memory
from flatminima.core.guard import random_marks
from flatminima.core.identity import differing, settings
from flatminima.core.kept_values import refuse_kept_values
from flatminima.core.output_graph import Reach
from flatminima.core.samples import Inputs, check_every_target, leaves
from flatminima.core.scaled_gradients import refuse_scaled_gradients
from flatminima.errors import DataError, FlatMinimaError, ModelError
from flatminima.escaping import shown

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_SAMPLES = 8  # random ones, as many as are there
_NAMED = 3  # parameters
_LOOKED_AT = 2  # samples whose outputs are compared at other weights
_MIXING = {torch.float64: 1e-6, torch.float32: 1e-2}  # between batches of several and of one, relative
_MIXING_HALF = 0.2
_LARGEST_OUTPUT = 1 << 26  # entries of the outputs of a whole batch that is tried


def admit(minimum: Minimum) -> int:
    """Reach at small forward passes: shapes, labels, finiteness, determinism, memory, independence of samples.

    Returns:
        Entries of one sample's output.

    Raises:
        DataError: data or a loss that does not fit the network. ModelError: a network that cannot be measured.
        NumericalError: not even one sample fits into memory.
    """
    return minimum.within_memory(lambda: _admit(minimum))


def _admit(minimum: Minimum) -> int:
    n = len(minimum.samples)
    random_ones = torch.randint(0, n, (_SAMPLES - 1,), generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([torch.tensor([0]), random_ones]).unique()
    if minimum.halvings:  # memory ran out
        chosen = chosen[: minimum.batch_size]
    with minimum.open(), torch.no_grad():
        batch = minimum.batch(chosen)
        before_settings = settings(minimum.model)
        versions = [t._version for t in leaves(batch.inputs)]
        before = random_marks(minimum.device)
        output = _first(minimum, batch)
        minimum.forget(differing(before_settings, settings(minimum.model)))  # a cache, empty until the first pass, too
        minimum.loss = minimum.loss.fitted(output, batch.targets)
        batch._receive(output)
        draws = random_marks(minimum.device) != before
        minimum.writes_inputs = [t._version for t in leaves(batch.inputs)] != versions
        _refuse_randomness(minimum, batch, draws)
    minimum.chance.watched, minimum.chance.closely = True, draws
    check_every_target(minimum.samples, minimum.loss, batch.outputs)
    _refuse_memory(minimum, batch)
    _refuse_mixing(minimum, batch)
    _refuse_crowding(minimum, batch)
    with minimum.open():
        before_settings = settings(minimum.model)
        rows, weights = batch.indices[: min(_LOOKED_AT, minimum.batch_size)], minimum.parameters.tensors
        refuse_scaled_gradients(minimum.model, minimum.forward(minimum.batch(rows).inputs))
        reach = refuse_kept_values(lambda: minimum.forward(minimum.batch(rows).inputs), weights, minimum.written)
        minimum.forget(differing(before_settings, settings(minimum.model)))  # what passes with gradients write
    _remember(minimum, reach)
    return batch.outputs[0].numel()


def _remember(minimum: Minimum, reach: Reach) -> None:
    """Note how the outputs are made: what the numbers' reader must know, and what they are rounded to."""
    minimum.trainable = reach.missed is not None
    remarks = []
    if reach.missed is None:
        remarks = ["the outputs depend on no trainable parameter (merged adapters? unmerge them)"]
    elif reach.missed:
        names = [shown(minimum.parameters.names[i]) for i in reach.missed]
        few = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        remarks = [f"no gradient reaches {few} in the samples looked at: unused, detached or cached?"]
    if reach.coarsest is not None and torch.finfo(reach.coarsest).eps > minimum.eps:
        minimum.eps = torch.finfo(reach.coarsest).eps
        name = str(reach.coarsest).removeprefix("torch.")
        remarks.append(f"computed in {name} in part (autocast in its forward?): small rises of the loss are rounding")
    minimum.remarks.update(dict.fromkeys(remarks))


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model of `fully_shard`, whose weights are whole for a while after a pass.

    Raises:
        ModelError: it is one.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)  # else none can be
    if kind is not None and any(isinstance(module, kind) for module in model.modules()):
        raise ModelError("the model is sharded by fully_shard: make a flatminima.ShardedMinimum of it, on every rank")


def refuse_training_mode(model: nn.Module) -> None:
    """Refuse a model that is not deterministic in the mode it is in.

    Raises:
        ModelError: naming the module.
    """
    for name, module in model.named_modules():
        if getattr(module, "training", False) and _acts_in_training(module):
            raise ModelError(
                f"the model is in training mode and {name or 'it'} is {_kind(module)}; "
                "measures look at the deterministic network: call model.eval() first"
            )


def _kind(module: nn.Module) -> str:
    """Of TorchScript the class that was compiled."""
    return str(getattr(module, "original_name", type(module).__name__))


def _acts_in_training(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return _kind(module).startswith(("BatchNorm", "SyncBatchNorm")) or (
            "Dropout" in _kind(module) and getattr(module, "p", 1) != 0
        )
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p != 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout != 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _first(minimum: Minimum, batch: Batch) -> Tensor:
    """The first forward pass of all, where data that does not fit the network shows."""
    try:
        return minimum.forward(batch.inputs)
    except FlatMinimaError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if out_of_memory(error):
            raise
        if "more than 1 value per channel" in str(error):  # BatchNorm in eval mode without running statistics
            raise ModelError(_MIXES) from None
        raise unfit(batch.inputs, error) from error


def unfit(inputs: Inputs, error: Exception) -> DataError:
    """The error of a network that cannot take inputs (k, ...), from its own."""
    parts = leaves(inputs)
    seen = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in parts)
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(
        f"the network cannot take the inputs {seen} (of {len(parts[0])} samples): {reason}; check their shape and dtype"
    )


_MIXES = (
    "the output of a sample changes with the others in its batch (BatchNorm without running statistics?): "
    "measures need a network that treats samples one by one"
)


def _refuse_randomness(minimum: Minimum, batch: Batch, draws: bool) -> None:
    """Refuse outputs that random numbers of torch, numpy or Python change, each tried at the ends of its range."""
    refuse_chance(batch.outputs, lambda: minimum.forward(minimum.batch(batch.indices).inputs), states_of(draws))


def _refuse_memory(minimum: Minimum, batch: Batch) -> None:
    """Refuse what a network remembers of other samples in eval mode: a running range, a cache, a count that matters."""
    for first in range(min(2, len(batch))):
        with minimum.open(), torch.no_grad():
            alone = minimum.batch(batch.indices[first : first + 1])
            before = _try(minimum, alone.inputs)
            kept = _floating_buffers(minimum.model)
            for rows in (batch.indices, batch.indices.flip(0)):
                _try(minimum, minimum.batch(rows).inputs)
            changed = _changed(kept, _floating_buffers(minimum.model))
            after = _try(minimum, minimum.batch(alone.indices).inputs)
        if before is None or after is None or torch.equal(before, after):
            continue
        raise ModelError(
            "the output of a sample in eval mode changes after others went through the network: it keeps state"
            + (f" in buffer {changed!r} (a quantisation observer? freeze it first)" if changed else "")
            + "; measures need a network without memory"
        )


def _try(minimum: Minimum, inputs: Any) -> Tensor | None:
    """Outputs, or None where a batch of this size is refused (what mixes samples says so below)."""
    try:
        return minimum.forward(inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise
        return None


def _floating_buffers(model: nn.Module) -> dict[str, Tensor]:
    named = model.named_buffers()
    return {n: b.detach().clone() for n, b in named if b.is_floating_point() and b.layout == torch.strided}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> str | None:
    """A buffer that holds other numbers than before; None: none does."""
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape or not torch.equal(new.nan_to_num(), old.nan_to_num()):
            return name
    return None


def _refuse_mixing(minimum: Minimum, batch: Batch) -> None:
    """Refuse outputs and losses that depend on the other samples of the batch: each alone, in pairs, in other order."""
    if len(batch) < 2:
        return
    scale = max(float(batch.outputs.abs().max()), float(batch.losses.abs().max()))
    allowed = scale * _MIXING.get(batch.outputs.dtype, _MIXING_HALF)
    k = len(batch)
    groups = [torch.tensor([0]), torch.tensor([k - 1]), torch.arange(k).flip(0), torch.arange(k // 2, k)]
    if k > 2:
        groups.append(torch.tensor([k // 2, 0]))
    with minimum.open(), torch.no_grad():
        for rows in groups:
            part = minimum.batch(batch.indices[rows])
            try:
                part._receive(minimum.forward(part.inputs))
                same = _close(part.outputs, batch.outputs[rows], allowed)
            except ValueError as error:  # BatchNorm's, of a single value a channel
                if isinstance(error, FlatMinimaError):
                    raise
                same = False
            if not same:
                raise ModelError(_MIXES)
            _refuse_other_losses(minimum, part.losses, batch.losses[rows], allowed)


def _refuse_crowding(minimum: Minimum, few: Batch) -> None:
    """Refuse what mixes samples in whole batches alone: experts that take so many and no more.

    Data may lie by class, so that the last batch is crowded otherwise than the first.
    """
    n, entries = len(minimum.samples), max(1, few.outputs[0].numel())
    size = min(minimum.batch_size, n, _LARGEST_OUTPUT // entries)
    if size <= len(few):  # tried
        return
    with minimum.open(), torch.no_grad():
        for start in sorted({0, n - size}):
            _refuse_parts(minimum, torch.arange(start, start + size))


def _refuse_parts(minimum: Minimum, indices: Tensor) -> None:
    """A batch against the same samples in smaller ones, in other order, each three fifths of what is left."""
    before = random_marks(minimum.device)
    whole = _passed(minimum, indices)
    if random_marks(minimum.device) != before:
        minimum.chance.settle(minimum, indices)
    if whole is None:  # not finite, or too much at once: whoever reads these samples will say
        return
    scale = max(float(whole.outputs.abs().max()), float(whole.losses.abs().max()))
    allowed = scale * _MIXING.get(whole.outputs.dtype, _MIXING_HALF)
    left = torch.arange(len(indices)).flip(0)
    while len(left):
        rows, left = left.split([-(-3 * len(left) // 5), 2 * len(left) // 5])
        part = _passed(minimum, indices[rows])
        if part is None or not _close(part.outputs, whole.outputs[rows], allowed):
            again = _passed(minimum, indices)
            raise ModelError(DIFFER if again is None or not torch.equal(again.outputs, whole.outputs) else _MIXES)
        _refuse_other_losses(minimum, part.losses, whole.losses[rows], allowed)


def _passed(minimum: Minimum, indices: Tensor) -> Batch | None:
    """A batch with its outputs and losses; None where it has none."""
    try:
        batch = minimum.batch(indices)
        output = _try(minimum, batch.inputs)
        if output is not None:
            batch._receive(output)
    except FlatMinimaError:
        return None
    return None if output is None else batch


def _refuse_other_losses(minimum: Minimum, losses: Tensor, others: Tensor, allowed: float) -> None:
    if not _close(losses, others, allowed):
        raise DataError(
            f"loss {minimum.loss.name!r} of a sample changes with the others in its batch; measures need a "
            "sum over samples"
        )


def _close(a: Tensor, b: Tensor, allowed: float) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= allowed
