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
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.batch import Batch, NoLayerRule, frozen, logits
from flatminima.errors import DataError, ModelError, StaleMinimum, Undefined, UsageError
from flatminima.guard import differentiable, fingerprint, untouched
from flatminima.layers import LayerGradient, Tape, Unit, units_of
from flatminima.losses import Loss
from flatminima.parameters import Parameters, unwrap
from flatminima.perturbation import Perturbation
from flatminima.samples import Inputs, Samples, as_samples, map_tensors
from flatminima.statistic import Fold, Statistic
from flatminima.sweep import rides, sweep

_AUDIT_SAMPLES = 4  # of the check that layer rules agree with autograd
_AUDIT_TOLERANCE = {torch.float64: 1e-8}  # relative, of a squared norm
_AUDIT_DEFAULT = 1e-2  # float32 and below: a forgotten parameter or use is off by far more


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
        data: ``(x, y)`` tensors, a Dataset or a DataLoader that does not shuffle. ``x`` may be a tensor, tuple or dict.
        loss: ``"cross_entropy"``, ``"mse"``, ``"binary_cross_entropy"``, ``"token_cross_entropy"``, ``"causal_lm"``,
            or a callable ``(output, target) -> losses`` of shape (batch,).
        batch_size: samples at a time; results do not depend on it beyond rounding.
        device: where to compute; elsewhere than the model's, a copy of the model is used.
        seed: of every statistic that draws and is not given a seed of its own.

    Raises:
        ModelError, DataError, NumericalError: what was seen, what was expected, what to do.

    Example:
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
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(f"got a model of type {type(model).__name__}; expected a torch.nn.Module")
        if batch_size < 1:
            raise UsageError(f"got batch_size={batch_size}; it must be at least 1")
        model = unwrap(model)
        _refuse_training_mode(model)
        self.loss = Loss.of(loss)
        self.samples: Samples = as_samples(data)
        self.batch_size, self.seed = batch_size, seed
        self._source = model
        self.parameters = Parameters.of(model)
        here = self.parameters.tensors[0].device
        self.device = torch.device(device) if device is not None else here
        if self.device != here and self.device.type != here.type:
            model = copy.deepcopy(model).to(self.device)
            self.parameters = Parameters.of(model)
        self.model = model
        self.passes = Passes()
        self._cache: dict[Statistic[Any], Any] = {}
        self._depth = 0
        self._mark = fingerprint(self._source)
        self.output_size = self._probe()

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
                    self._cache[key] = key.compute(self)
                except Undefined as reason:
                    self._cache[key] = reason

    def sweep(self, folds: Sequence[Fold[Any, Any]]) -> dict[Any, Any]:
        """Values of `folds` (an `Undefined` where one has none), without the cache."""
        out: dict[Any, Any] = {}
        if folds:
            with self.open():
                for ride in rides(folds):
                    out.update(sweep(self, ride))
        return out

    @contextmanager
    def open(self) -> Iterator[None]:
        """The model in eval mode, restored afterwards; nests."""
        if self._depth:
            yield
            return
        self._depth += 1
        try:
            with untouched(self.model), differentiable(), torch.enable_grad():
                yield
        finally:
            self._depth -= 1
            self._mark = fingerprint(self._source)

    @contextmanager
    def moved(self, perturbation: Perturbation, seed: int, index: int, sign: float = 1.0) -> Iterator[None]:
        """Weights w + sign u within the block; for statistics that evaluate elsewhere than at w."""
        with self.open(), perturbation.applied(self.parameters, seed, index, sign):
            yield

    # -- what statistics use -----------------------------------------------------------------------------------------

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits of a batch already on the device; counted."""
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

    @cached_property
    def units(self) -> list[Unit]:
        """The layers that own trainable parameters."""
        return units_of(self.model, self.parameters)

    @property
    def follows_layers(self) -> bool:
        """Whether layer-by-layer gradients agree with autograd here; else per-sample backward passes are used."""
        return self._audit[0]

    @property
    def keeps_copies(self) -> bool:
        """Whether layer inputs have to be copied because the model writes into them."""
        return self._audit[1]

    @cached_property
    def _audit(self) -> tuple[bool, bool]:
        """Compare the tape with autograd once, on a few samples: ||sum_i r_i g_i||^2 = r^T G r for random r."""
        indices = torch.linspace(0, len(self.samples) - 1, min(_AUDIT_SAMPLES, len(self.samples))).long()
        inputs, targets = self.samples.take(indices)
        inputs = map_tensors(lambda t: t.to(self.device), inputs)
        with self.open():
            for p in self.parameters.tensors:
                p.requires_grad_()
            output = self.forward(inputs)
            seed, _ = self.loss.seed(output.detach(), targets.to(self.device))
            r = torch.randn(len(indices), generator=torch.Generator().manual_seed(1)).to(seed)
            seed = seed * r.view(-1, *(1,) * (seed.dim() - 1))
            grads = torch.autograd.grad(output, self.parameters.tensors, seed, allow_unused=True)
            truth = sum(float(g.double().square().sum()) for g in grads if g is not None)
            tolerance = _AUDIT_TOLERANCE.get(output.dtype, _AUDIT_DEFAULT)
            for copies in (False, True):
                total = 0.0

                def hear(layer: LayerGradient) -> None:
                    nonlocal total
                    total += float(layer.gram().sum())

                try:
                    with frozen(self):
                        tape = Tape(self.units, copies)
                        with tape.recording():
                            output = self.forward(inputs)
                        tape.backward(output, seed, hear)
                except (NoLayerRule, RuntimeError, NotImplementedError):
                    continue
                if abs(total - truth) <= tolerance * abs(truth):
                    return True, copies
        return False, False

    def _probe(self) -> int:
        """One small forward pass, twice: shapes, labels, finiteness and determinism."""
        indices = torch.arange(min(2, len(self.samples)))
        with self.open(), torch.no_grad():
            one = self.batch(indices)
            one._receive(self.forward(one.inputs))
            two = self.forward(one.inputs)
        if not torch.equal(one.outputs, two):
            raise ModelError(
                "two forward passes in eval mode differ: the network draws random numbers (functional dropout with "
                "training=True?) or keeps state; measures need a deterministic network"
            )
        targets = getattr(self.samples, "targets", None)
        if isinstance(targets, Tensor) and self.loss.labels:
            self.loss.check_targets(targets, one.outputs, 0)
        self.passes = Passes()
        return one.outputs[0].numel()

    def _refuse_stale(self) -> None:
        if self._depth == 0 and fingerprint(self._source) != self._mark:
            raise StaleMinimum("the model's weights or buffers changed since this Minimum was made; make a new Minimum")


def _refuse_training_mode(model: nn.Module) -> None:
    if not model.training:
        return
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, kinds) and module.training and getattr(module, "p", 1.0) != 0:
            raise ModelError(
                f"the model is in training mode and {name or 'it'} is {type(module).__name__}; "
                "measures look at the deterministic network: call model.eval() first"
            )


__all__ = ["DataError", "Minimum", "Passes"]
