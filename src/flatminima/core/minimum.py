"""`Minimum`: a trained network, its data and its per-sample loss, as a lazy mapping from statistic to value.

It owns the only loops over the data and never leaves the model changed: weights, buffers, modes, gradients, hooks and
random state are as before after every use, and after every exception.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flatminima.core.batch import Batch, frozen, logits
from flatminima.core.distributed import Ranks
from flatminima.core.guard import differentiable, fingerprint, random_marks, same_randomness, untouched
from flatminima.core.layers import COPIES, LayerGradient, Tape, Unit, units_of
from flatminima.core.losses import Loss
from flatminima.core.parameters import Parameters, unwrap
from flatminima.core.perturbation import Perturbation
from flatminima.core.samples import (
    Inputs,
    Samples,
    as_samples,
    check_every_target,
    leaves,
    map_tensors,
    refuse_extra_entries,
    spread,
)
from flatminima.core.statistic import Fold, Statistic
from flatminima.core.sweep import rides, sweep
from flatminima.errors import (
    DataError,
    FlatMinimaError,
    ModelError,
    NumericalError,
    StaleMinimum,
    Undefined,
    UsageError,
)

T = TypeVar("T")

_AUDIT_SAMPLES = 4  # of the check that layer rules agree with autograd
_AUDIT_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2}  # relative, of a Gram matrix
_AUDIT_DEFAULT = 5e-2  # float32 and below: a forgotten parameter or use is off by far more
_MIXING_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}  # between batches of 2 and of 1, relative
_MIXING_DEFAULT = 0.2
_REPEATS = 16  # forward passes of a network that draws random numbers, to see whether they matter


@dataclass
class Passes:
    """Samples that went forward and backward so far."""

    forward: int = 0
    backward: int = 0


class Minimum:
    """A trained network at its weights w.

    Args:
        model: an `nn.Module` in eval mode (or without dropout and BatchNorm); compiled and DDP-wrapped ones are
            unwrapped.
        data: ``(x, y)`` tensors or arrays, a Dataset, a DataLoader that does not shuffle, a list of batches or a
            stream. ``x`` may be a tensor, tuple or dict.
        loss: ``"cross_entropy"``, ``"mse"``, ``"binary_cross_entropy"``, ``"token_cross_entropy"``, ``"causal_lm"``,
            one of torch's losses (``nn.CrossEntropyLoss(weight=w, reduction="none")``, ``functional.mse_loss``), or a
            callable ``(output, target) -> losses`` of shape (batch,).
        batch_size: samples at a time; results do not depend on it beyond rounding. Halved where memory runs out.
        device: where to compute; elsewhere than the model's, a copy of the model is used.
        seed: of every statistic that draws and is not given a seed of its own.
        ranks: of several processes that share the passes, each a part of the samples; weights, data and options are
            the same on all of them, and so are the results (those of one process, to rounding).
        limit: the first so many samples of the data; needed for streams without an end.

    Raises:
        ModelError, DataError, NumericalError: what was seen, what was expected, what to do.

    Examples:
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> m = Minimum(nn.Linear(3, 2).eval(), (x, y))
        >>> len(m.parameters), len(m.samples)
        (8, 20)
    """

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
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(f"got a model of type {type(model).__name__}; expected a torch.nn.Module")
        if batch_size < 1:
            raise UsageError(f"got batch_size={batch_size}; it must be at least 1")
        model = unwrap(model)
        refuse_training_mode(model)
        self.loss = Loss.of(loss)
        with same_randomness():  # a loader draws a seed when it is read
            self.samples: Samples = as_samples(data, limit=limit)
            refuse_extra_entries(self.samples, model)
        self.batch_size, self.seed = batch_size, seed
        self.halvings = 0  # of the batch size, because memory ran out
        self._source = model
        self.parameters = Parameters.of(model)
        here = self.parameters.tensors[0].device
        self.device = torch.device(device) if device is not None else here
        if self.device.type == here.type and self.device.index in (None, here.index):
            self.device = here
        else:
            model = copy.deepcopy(model).to(self.device)
            self.parameters = Parameters.of(model)
        self.model = model
        self.passes = Passes()
        self._writes_inputs = False
        self._cache: dict[Statistic[Any], Any] = {}
        self._depth = 0
        self._mark = fingerprint(self._source)
        self.output_size = self._probe()
        self.ranks = ranks
        if ranks is not None:
            weights = [float(p.detach().double().sum()) for p in self.parameters.tensors]
            ranks.agree("weights, data or options", (weights, self.samples.fingerprint, self.loss.name, seed))

    # -- the mapping -------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        self.compute(keys)
        values = tuple(self._cache[k] for k in keys)
        for value in values:
            if isinstance(value, Undefined):
                raise value
        return values if isinstance(key, tuple) else values[0]

    def __contains__(self, key: object) -> bool:
        return key in self._cache

    def __iter__(self) -> Iterator[Statistic[Any]]:
        return iter(self._cache)

    def __len__(self) -> int:
        return len(self._cache)

    def compute(self, keys: Sequence[Statistic[Any]]) -> None:
        """Make the missing ones of `keys` known, folds in as few sweeps as possible."""
        self._refuse_stale()
        missing = [k for k in dict.fromkeys(keys) if k not in self._cache]
        folds = [k for k in missing if isinstance(k, Fold)]
        self._cache.update(self.sweep(folds))
        for key in missing:
            if not isinstance(key, Fold):
                try:
                    self._cache[key] = self._within_memory(lambda key=key: key.compute(self))  # type: ignore[misc]
                except Undefined as reason:
                    self._cache[key] = reason

    def sweep(self, folds: Sequence[Fold[Any, Any]]) -> dict[Any, Any]:
        """Values of `folds` (an `Undefined` where one has none), without the cache."""
        out: dict[Any, Any] = {}
        if folds:
            with self.open():
                for ride in rides(folds):
                    out.update(self._within_memory(lambda ride=ride: sweep(self, ride)))  # type: ignore[misc]
        return out

    def _within_memory(self, work: Callable[[], T]) -> T:
        """The value of `work`, begun anew with batches half as large as often as memory runs out.

        Raises:
            NumericalError: one sample at a time is still too large.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # outside of the handler, whose traceback keeps the tensors alive
            if self.batch_size == 1:
                raise NumericalError(
                    f"out of memory with one sample at a time ({reason}); measure fewer things at once or elsewhere"
                )
            self.batch_size //= 2
            self.halvings += 1
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def open(self) -> Iterator[None]:
        """The model in eval mode, restored afterwards; nests."""
        if self._depth:
            yield
            return
        self._refuse_stale()
        self._depth += 1
        try:
            with untouched(self.model), differentiable(self.model), torch.enable_grad():
                yield
        finally:
            self._depth -= 1
            self._mark = fingerprint(self._source)

    @contextmanager
    def moved(self, perturbation: Perturbation, seed: int, index: int, sign: float = 1.0) -> Iterator[None]:
        """Weights w + sign u within the block; for statistics that evaluate elsewhere than at w."""
        kept, self._cache = self._cache, {}  # what is found there is not of w
        try:
            with self.open(), perturbation.applied(self.parameters, seed, index, sign):
                yield
        finally:
            self._cache = kept

    # -- what statistics use -----------------------------------------------------------------------------------------

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits of a batch already on the device; counted."""
        if self._writes_inputs:
            inputs = map_tensors(torch.clone, inputs)
        if isinstance(inputs, Tensor):
            output = self.model(inputs)
        elif isinstance(inputs, dict):
            output = self.model(**inputs)
        else:
            output = self.model(*inputs)
        out = logits(output)
        self.passes.forward += len(out)
        return out

    def batch(self, indices: Tensor, start: int = 0) -> Batch:
        """The samples at `indices`, on the device."""
        return Batch(self, indices, start)

    def own_products(self, indices: Tensor, curvature: str) -> Any:
        """Products with the curvature in a way of its own; None: by double backward, as `Products` makes them."""
        return None

    def mean_gradient(self, indices: Tensor) -> tuple[float, Tensor]:
        """Mean loss over the samples at `indices` and its gradient (W,) float64.

        Raises:
            Undefined: a loss that is not finite.
        """
        total, gradient = 0.0, torch.zeros(len(self.parameters), device=self.device, dtype=torch.float64)
        for part in indices.split(self.batch_size):
            batch = self.batch(part)
            losses = self.loss(self.forward(batch.inputs), batch.targets)
            refuse_overflow(losses)
            tensors = self.parameters.tensors
            grads = torch.autograd.grad(losses.sum(), tensors, allow_unused=True, materialize_grads=True)
            self.passes.backward += len(part)
            gradient += torch.cat([g.reshape(-1) for g in grads]).double()
            total += float(losses.detach().double().sum())
        return total / len(indices), gradient / len(indices)

    @cached_property
    def units(self) -> list[Unit]:
        """The layers that own trainable parameters."""
        return units_of(self.model, self.parameters)

    @property
    def follows_layers(self) -> bool:
        """Whether layer-by-layer gradients agree with autograd here; else per-sample backward passes are used."""
        return self._audit[0]

    @property
    def copies(self) -> int:
        """What the tape has to copy because the model writes in place (see `Tape`)."""
        return self._audit[1]

    @cached_property
    def _audit(self) -> tuple[bool, int]:
        """Compare the tape with autograd once: the Gram matrix of a few samples, each with its own backward pass."""
        indices = spread(len(self.samples), _AUDIT_SAMPLES)
        with self.open():
            batch = self.batch(indices)
            for p in self.parameters.tensors:
                p.requires_grad_()
            output = self.forward(batch.inputs)
            if not output.requires_grad:
                raise Undefined("the network's output does not depend on a trainable parameter")
            seed, _ = self.loss.seed(output.detach(), batch.targets)
            try:
                truth = _gram(output, seed, self.parameters)
            except RuntimeError as error:
                raise Undefined(f"the network's own backward pass fails: {str(error).splitlines()[0]}") from error
            tolerance = _AUDIT_TOLERANCE.get(output.dtype, _AUDIT_DEFAULT)
            for copies in range(COPIES + 1):
                found = torch.zeros_like(truth)

                def hear(layer: LayerGradient, found: Tensor = found) -> None:
                    found += layer.gram()[0].to(found)

                try:
                    with frozen(self):
                        tape = Tape(self.units, len(indices), copies)
                        with tape.recording():
                            output = self.forward(batch.inputs)
                        tape.backward(output, seed, hear)
                except Exception as error:  # whatever it is, one backward pass a sample needs none of this
                    if out_of_memory(error):
                        raise
                    continue
                if float((found - truth).abs().max()) <= tolerance * float(truth.abs().max()):
                    return True, copies
        return False, 0

    def _probe(self) -> int:
        """One small forward pass, more than once: shapes, labels, finiteness, determinism, independence of samples."""
        with self.open(), torch.no_grad():
            one = self.batch(torch.arange(min(2, len(self.samples))))
            versions = [t._version for t in leaves(one.inputs)]
            before = random_marks(self.device)
            output = self._first(one)
            draws = random_marks(self.device) != before
            self._writes_inputs = [t._version for t in leaves(one.inputs)] != versions
            self.loss = self.loss.fitted(output, one.targets)
            one._receive(output)
            for _ in range(_REPEATS if draws else 1):
                again = self.forward(self.batch(one.indices).inputs)
                if not torch.equal(one.outputs, again):
                    raise ModelError(
                        "two forward passes in eval mode differ: the network draws random numbers (functional dropout "
                        "with training=True?) or keeps state; measures need a deterministic network"
                    )
            self._refuse_mixing(one)
            check_every_target(self.samples, self.loss, one.outputs)
        self.passes = Passes()
        return one.outputs[0].numel()

    def _first(self, batch: Batch) -> Tensor:
        """The first forward pass of all, where data that does not fit the network shows."""
        try:
            return self.forward(batch.inputs)
        except FlatMinimaError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            seen = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in leaves(batch.inputs))
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(
                f"the network cannot take the inputs {seen} (of {len(batch)} samples): {reason}; check their shape "
                "and dtype"
            ) from error

    def _refuse_mixing(self, batch: Batch) -> None:
        """Refuse outputs and losses that depend on the other samples of the batch."""
        if len(batch) < 2:
            return
        alone = self.batch(batch.indices[:1])
        scale = max(float(batch.outputs.abs().max()), float(batch.losses.abs().max()))
        allowed = scale * _MIXING_TOLERANCE.get(batch.outputs.dtype, _MIXING_DEFAULT)
        try:
            alone._receive(self.forward(alone.inputs))
            same = _close(alone.outputs, batch.outputs[:1], allowed)
        except ValueError:  # BatchNorm's, of a single value a channel
            same = False
        if not same:
            raise ModelError(
                "the output of a sample changes with the others in its batch (BatchNorm without running statistics?): "
                "measures need a network that treats samples one by one"
            )
        if not _close(alone.losses, batch.losses[:1], allowed):
            raise DataError(
                f"loss {self.loss.name!r} of a sample changes with the others in its batch; measures need a sum over "
                "samples"
            )

    def _refuse_stale(self) -> None:
        if self._depth == 0 and fingerprint(self._source) != self._mark:
            raise StaleMinimum("the model's weights or buffers changed since this Minimum was made; make a new Minimum")


def refuse_overflow(losses: Tensor) -> None:
    """Losses at weights that a search chose.

    Raises:
        Undefined: one is not finite.
    """
    if not bool(torch.isfinite(losses).all()):
        raise Undefined("the loss overflows within the box: use a smaller alpha")


def _gram(output: Tensor, seed: Tensor, parameters: Parameters) -> Tensor:
    """J J^T (n, n) float64, one row of J a backward pass."""
    gradients = []
    for i in range(len(output)):
        one = torch.zeros_like(seed)
        one[i] = seed[i]
        gradients.append(
            torch.autograd.grad(
                output, parameters.tensors, one, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
    gram = torch.zeros(len(output), len(output), dtype=torch.float64, device=output.device)
    for rows in zip(*gradients, strict=True):
        part = torch.stack([row.reshape(-1) for row in rows]).double()
        gram += part @ part.T
    return gram


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA's has a type, the CPU allocator's only its words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _close(a: Tensor, b: Tensor, allowed: float) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= allowed


def refuse_training_mode(model: nn.Module) -> None:
    """Refuse a model that is not deterministic in the mode it is in.

    Raises:
        ModelError: naming the module.
    """
    for name, module in model.named_modules():
        if module.training and _acts_in_training(module):
            raise ModelError(
                f"the model is in training mode and {name or 'it'} is {type(module).__name__}; "
                "measures look at the deterministic network: call model.eval() first"
            )


def _acts_in_training(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p != 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout != 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


__all__ = ["DataError", "Minimum", "Passes"]
