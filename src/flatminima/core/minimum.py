"""`Minimum`: a trained network, its data and its per-sample loss, as a lazy mapping from statistic to value.

It owns the only loops over the data and never leaves the model changed: weights, buffers, modes, gradients, hooks and
random state are as before after every use, and after every exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from flatminima.core.admission import admit, refuse_sharded, refuse_training_mode
from flatminima.core.ambient import neutral, the_models_own
from flatminima.core.distributed import Ranks
from flatminima.core.gradient_check import LayerComparison, LayersDisagree, RowSums, row_weights, watchable
from flatminima.core.guard import differentiable, emptied, hooks_left_out, same_randomness, untouched
from flatminima.core.identity import differing, fingerprint, marks_of, structure
from flatminima.core.layer_gradient import Unit
from flatminima.core.layers import units_of
from flatminima.core.losses import Loss
from flatminima.core.moved_weights import refuse_moved
from flatminima.core.network import Network
from flatminima.core.parameters import Parameters, copied, gradients, refuse_reaching_back, unwrap
from flatminima.core.samples import (
    Inputs,
    Samples,
    TensorSamples,
    as_samples,
    leaves,
    map_tensors,
    refuse_extra_entries,
)
from flatminima.core.samples.converted import Converted
from flatminima.core.sharing import aliases, tied
from flatminima.core.spent import Passes
from flatminima.core.statistic import Fold, Needs, Reads, Statistic
from flatminima.core.statistic_store import content_of
from flatminima.errors import DataError, ModelError, StaleMinimum, Undefined, UsageError
from flatminima.escaping import shown

_TRIED = 8  # random samples on which the way to per-sample gradients is chosen


class Minimum(Network):
    """A trained network at its weights w.

    Args:
        model: an `nn.Module` in eval mode (or without dropout and BatchNorm); compiled and DDP-wrapped ones are
            unwrapped.
        data: ``(x, y)`` tensors or arrays, a Dataset, a DataLoader that does not shuffle, a list of batches or a
            stream. ``x`` may be a tensor, tuple or dict.
        loss: ``"cross_entropy"``, ``"mse"``, ``"binary_cross_entropy"``, ``"token_cross_entropy"``, ``"causal_lm"``
            (means over a sample's tokens; with ``_sequence`` at the end sums),
            one of torch's losses (``nn.CrossEntropyLoss(weight=w, reduction="none")``, ``functional.mse_loss``), or a
            callable ``(output, target) -> losses`` of shape (batch,).
        batch_size: samples at a time; results do not depend on it beyond rounding. Halved where memory runs out.
        device: where to compute; where the model is on another device, a copy of it is used.
        seed: of every statistic that draws and is not given a seed of its own.
        ranks: of several processes that share the passes, each a part of the samples; weights, data and options are
            the same on all of them, and so are the results (those of one process, to rounding).
        limit: the first so many samples of the data; needed for streams without an end.
        output: which entry of what the model returns is the logits: its position, its name, or a function of the
            output. None: the output itself, its `.logits`, or its only tensor.

    Raises:
        ModelError, DataError, NumericalError: what was seen, what was expected, what to do.

    Examples:
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> m = Minimum(nn.Linear(3, 2).eval(), (x, y))
        >>> len(m.parameters), len(m.samples)
        (8, 20)
    """

    offers: ClassVar[Needs] = ~Needs(0)

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: str | Callable[[Any, Tensor], Tensor] = "cross_entropy",
        *,
        batch_size: int = 256,
        device: str | torch.device | None = None,
        seed: int = 0,
        ranks: Ranks | None = None,
        limit: int | None = None,
        output: int | str | Callable[[Any], Tensor] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(f"got a model of type {type(model).__name__}; expected a torch.nn.Module")
        super().__init__(loss, batch_size, seed, output)
        with neutral():
            self._load(unwrap(model), data, device, limit)
            self.output_size = admit(self)
            if self.model is not self._source:
                self._refuse_reaching_back(self._source)
            self.passes = Passes()
            if ranks is not None:
                self.ranks = ranks
                weights = [float(p.detach().double().sum()) for p in self.parameters.tensors]
                ranks.agree("weights, data or options", (weights, self.samples.fingerprint, self.loss.name, seed))

    def __repr__(self) -> str:
        parts = (
            f"{len(self.parameters):,} parameters, {len(self.samples):,} samples, loss {shown(self.loss.name)}, "
            f"on {self.device}"
        )
        return f"Minimum of {shown(type(self.model).__name__)}: {parts}"

    def _load(self, model: nn.Module, data: Any, device: str | torch.device | None, limit: int | None) -> None:
        refuse_moved(model.parameters())
        refuse_training_mode(model)
        refuse_sharded(model)
        with same_randomness():  # a loader draws a seed when it is read
            self.samples: Samples = as_samples(data, limit=limit)
            refuse_extra_entries(self.samples, model)
        self._source = model
        self._shared = aliases(model)
        self.parameters = Parameters.of(model, self._shared)
        here = self.parameters.tensors[0].device
        self.device = torch.device(device) if device is not None else here
        if self.device.type == here.type and self.device.index in (None, here.index):
            self.device = here
        else:
            with tied(model, self._shared):
                model = copied(model).to(self.device)
            self._shared = aliases(model)
            self.parameters = Parameters.of(model, self._shared)
        self.model, self.writes_inputs, self.trainable = model, False, True
        self.eps = max(torch.finfo(p.dtype).eps for p in self.parameters.tensors)  # of the coarsest dtype computed in
        self._mark = fingerprint(self._source)
        self._hashed: tuple[tuple[Any, ...], str] | None = None  # hash of the weights, of this mark
        self._state = emptied(self._source)  # and what forward passes write
        self.remarks.update(hooks_left_out(self._source))
        self._structure = structure(self._source)
        self._data_mark = marks_of(self._held())

    # -- the network -------------------------------------------------------------------------------------------------

    @contextmanager
    def open(self) -> Iterator[None]:
        """The model in eval mode, in no ambient mode, restored afterwards; nests."""
        with neutral():  # first: another thread may be in the block
            if self._depth:
                yield
                return
            self.refuse_stale()
            with self._opened():
                yield

    @contextmanager
    def opened_anew(self) -> Iterator[None]:
        """`renew` and `open` in one, for less: what the model is now is known within the block alone.

        Raises:
            As `renew` does. StaleMinimum: the data changed in place; and after the block, whatever does not renew.
        """
        with neutral():
            self._take_parameters()
            if marks_of(self._held()) != self._data_mark:
                raise StaleMinimum("the data changed in place since this Minimum was made; make a new Minimum")
            self._mark = (object(),)
            with self._opened():
                yield

    @contextmanager
    def _opened(self) -> Iterator[None]:
        self._depth += 1
        try:
            with untouched(self.model) as self.written, tied(self.model, self._shared), differentiable(self.model):
                yield
        finally:
            self._depth -= 1

    def compute(self, keys: Sequence[Statistic[Any]], *, tolerant: bool = False) -> None:
        with neutral():
            super().compute(keys, tolerant=tolerant)

    def forward(self, inputs: Inputs) -> Tensor:
        if self.writes_inputs:
            inputs = map_tensors(torch.clone, inputs)
        with the_models_own(self.parameters.tensors[0].dtype, self.device):
            out = self.run(inputs)
        self.passes.forward += len(out) if out.dim() else 0
        return out

    def can_sweep(self, fold: Fold[Any, Any]) -> bool:
        return True

    def own_products(self, indices: Tensor, curvature: str) -> Any:
        return None

    def mean_gradient(self, indices: Tensor) -> tuple[float, Tensor]:
        total, gradient = 0.0, torch.zeros(len(self.parameters), device=self.device, dtype=torch.float64)
        for part in indices.split(self.batch_size):
            batch = self.batch(part)
            losses = self.loss(self.forward(batch.inputs), batch.targets)
            refuse_overflow(losses)
            if not losses.requires_grad:
                raise Undefined("the network's output does not depend on a trainable parameter")
            tensors = self.parameters.tensors
            grads = gradients(losses.sum(), tensors)
            self.passes.backward += len(part)
            gradient += torch.cat([g.reshape(-1) for g in grads]).double()
            total += float(losses.detach().double().sum())
        return total / len(indices), gradient / len(indices)

    def replace(
        self,
        *,
        model: nn.Module | None = None,
        data: Any = None,
        dtype: torch.dtype | None = None,
        returns_logits: bool = False,
    ) -> Self:
        """Another Minimum with the same options, whose passes count here too.

        Args:
            model: another network; None: this one, or a copy of it where `dtype` is given.
            data: other samples; None: these. With `dtype`, floating-point inputs and targets are converted as well.
            dtype: of the copy's weights and buffers.
            returns_logits: `model` returns these themselves, whatever `output` names.
        """
        network = self.model if model is None else model
        samples = self.samples if data is None else as_samples(data)
        if dtype is not None:
            with self.open():  # shared weights are tied there, and stay so in the copy
                network = copied(network).to(dtype).eval()
            samples = Converted(samples, dtype)
        output = None if returns_logits else self.output
        other = type(self)(network, samples, self.loss, batch_size=self.batch_size, seed=self.seed, output=output)
        if dtype is not None:
            other._refuse_reaching_back(self.model if model is None else model)
        other.ranks, other.passes = self.ranks, self.passes
        return other

    def _refuse_reaching_back(self, original: nn.Module) -> None:
        """Refuse to compute on a copy that still uses weights of the original."""
        with self.open():
            inputs = self.batch(torch.arange(1)).inputs
            refuse_reaching_back(lambda: self.run(inputs), original.parameters())

    def in_precision(self, dtype: torch.dtype) -> Self:
        name = str(dtype).removeprefix("torch.")
        self.remarks.setdefault(f"noise around the weights computed in {name}: it is below their own precision", None)
        return self.replace(dtype=dtype)

    # -- gradients layer by layer ------------------------------------------------------------------------------------

    @cached_property
    def units(self) -> list[Unit]:
        """The layers that own trainable parameters."""
        return units_of(self.model, self.parameters)

    @cached_property
    def watchable(self) -> bool:
        """Whether a forward pass may be watched (see `gradient_check`)."""
        return watchable(self.model)

    @property
    def follows_layers(self) -> bool:
        """Whether per-sample gradients are made layer by layer, which every sweep checks; else one pass a sample."""
        if not self.following.tried:
            self.following.tried = True
            if self.following.by_layers:
                try:
                    self._choose()
                except BaseException:  # memory ran out, or somebody stops: the next one tries again
                    self.following.tried = False
                    raise
                self.following.begin()
        return self.following.by_layers

    def _choose(self) -> None:
        """The way that a few random samples allow."""
        n, passes = len(self.samples), replace(self.passes)
        rows = torch.randint(0, n, (_TRIED,), generator=torch.Generator().manual_seed(1)).unique()
        if self.halvings:  # memory ran out
            rows = rows[: self.batch_size]
        with self.open():
            while self.following.by_layers:  # NaN, or gradients below the dtype's range, agree in no way
                self.following.begin()
                try:
                    self._compare_modes(rows)
                except LayersDisagree as disagreement:
                    self.following.degrade(str(disagreement))
                except Undefined:
                    break
                else:
                    break
        spent = self.passes.forward - passes.forward + self.passes.backward - passes.backward
        self.passes.forward, self.passes.backward = passes.forward, passes.backward
        self.passes.checks += spent

    def _compare_modes(self, rows: Tensor) -> None:
        """A checked pass, in which weights ask for gradients, and one like most, in which none does, must agree.

        Raises:
            LayersDisagree: they do not (reentrant checkpoints give other gradients where no input asks for one).
        """
        sums = RowSums(row_weights(len(rows)).to(self.device))
        self.batch(rows).read(Reads.LAYERS, [sums], [])
        for name, p in self.parameters:
            sums.sums.setdefault(name, torch.zeros_like(p))
        frozen = LayerComparison(sums.rows, sums.sums, self.parameters.tensors[0].dtype)
        sums.sums.clear()  # each layer's goes when it is compared
        self.following.skip()
        self.batch(rows).read(Reads.LAYERS, [frozen], [])
        reason = frozen.disagreement()
        if reason is not None:
            raise LayersDisagree(f"{reason} where weights ask for no gradient")

    @property
    def copies(self) -> int:
        """Number of copies that the tape makes because the model writes in place: 0 to 2 (see `Tape`)."""
        return self.following.level if self.follows_layers else 0

    # -- whether it is still the same --------------------------------------------------------------------------------

    def forget(self, written: set[tuple[str, str]]) -> None:
        """Attributes (module, name) that a forward pass writes are state, not settings of the network."""
        self._state |= written

    def _held(self) -> list[Tensor]:
        """Tensors of the data, where it is held as tensors."""
        if not isinstance(self.samples, TensorSamples):
            return []
        return [*leaves(self.samples.inputs), self.samples.targets]

    def renew(self) -> None:
        """Take the model's weights, buffers and settings as they are now, and forget what was computed at others.

        For a network that trains on: whether it can be measured at all is not looked at again.

        Raises:
            NumericalError: NaN or Inf in a parameter. UsageError: this Minimum computes on a copy on another device.
        """
        self._take_parameters()
        self._mark, self._structure = fingerprint(self._source), structure(self._source)

    def _take_parameters(self) -> None:
        if self.model is not self._source:
            raise UsageError(
                "this Minimum is of a copy on another device: make a new one, or compute where the model is"
            )
        self.parameters = Parameters.of(self.model, self._shared)
        for known in self._layers:
            known.clear()

    def content(self) -> str | None:
        kind = type(self.model)
        asked = (kind.__module__, kind.__qualname__, self.loss.name, self.batch_size, self.seed, str(self.device))
        if getattr(self.ranks, "size", 1) > 1 or not isinstance(self.output, int | str | None):
            return None
        if self._hashed is None or self._hashed[0] is not self._mark:  # a pass over the weights, once
            state = {n: p for n, p in self.model.named_parameters()} | dict(self.model.named_buffers())
            self._hashed = self._mark, content_of(state)
        return f"{self._hashed[1]} {self.samples.fingerprint} {asked} {self.output}"

    def refuse_stale(self) -> None:
        if self._depth:
            return
        refuse_moved(self.parameters.tensors)
        if fingerprint(self._source) != self._mark:
            raise StaleMinimum("the model's weights or buffers changed since this Minimum was made; make a new Minimum")
        if differing(self._structure, structure(self._source)) - self._state:
            raise StaleMinimum(
                "the model's layers, forward functions or settings (an active adapter?) changed since this Minimum was "
                "made; make a new Minimum"
            )
        if marks_of(self._held()) != self._data_mark:
            raise StaleMinimum("the data changed in place since this Minimum was made; make a new Minimum")


def refuse_overflow(losses: Tensor) -> None:
    """Losses at weights that a search chose.

    Raises:
        Undefined: one is not finite.
    """
    if not bool(torch.isfinite(losses).all()):
        raise Undefined("the loss overflows within the box: use a smaller alpha", "not_finite")


__all__ = ["DataError", "Loss", "Minimum", "Passes"]
