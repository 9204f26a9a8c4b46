"""A Hugging Face `Trainer` that trains with PertOPT, SAM or FisherTrace; everything else is the Trainer's.

A subclass and no callback, because SAM and FisherTrace need passes of their own. The perturbation lives within
`training_step`, so evaluation, saving, clipping, schedulers and resuming meet an ordinary optimizer and true weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.errors import MissingExtra, UnknownName, UsageError
from flatminima.optim import SAM, FisherTrace, PertOPT

try:
    from transformers import Trainer
except ImportError:
    raise MissingExtra("transformers", "hf", "flatminima.integrations.huggingface") from None

__all__ = ["FlatMinimaTrainer"]

_METHODS = ("fisher_trace", "pertopt", "sam")


class FlatMinimaTrainer(Trainer):
    """`Trainer` with one more choice.

    The optimizer is the one that the arguments ask for, or that `optimizers=` gives, wrapped. PertOPT's epoch is the
    Trainer's, from 1. Under gradient accumulation PertOPT keeps one perturbation a step, SAM repeats the micro-batches
    of a step at w + e, and FisherTrace cuts each micro-batch, whose loss it takes as the mean over its own items.

    Args:
        args, kwargs: of `Trainer`.
        method: "pertopt", "sam" or "fisher_trace".
        options: keyword arguments of that class, but for `base`, `model` and `steps_per_epoch`.

    Raises:
        UnknownName: no such method. UsageError: FisherTrace in 16 bits or on several ranks.

    Example (needs a model and a data set):
        trainer = FlatMinimaTrainer(model, arguments, train_dataset=data, method="pertopt", options={"gamma": 0.1})
        trainer.train()
    """

    def __init__(
        self,
        *args: Any,
        method: Literal["pertopt", "sam", "fisher_trace"],
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if method not in _METHODS:
            raise UnknownName("method", method, _METHODS)
        self.method, self.method_options = method, dict(options or {})
        self.fisher_trace: FisherTrace | None = None
        self._repeated: list[tuple[dict[str, Any], Any]] = []  # the step's micro-batches, for SAM's second pass
        super().__init__(*args, **kwargs)
        if method == "fisher_trace":
            if self.args.fp16 or self.args.bf16:
                raise UsageError(
                    "FisherTrace differences gradients, which 16 bits would drown: leave out fp16 and bf16"
                )
            if self.args.world_size > 1:
                raise UsageError(f"FisherTrace in this Trainer runs on one rank; got {self.args.world_size}")
            _ = FisherTrace(nn.Linear(1, 1), **self.method_options)  # refuse options now, not after the first batch

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own, wrapped."""
        base: torch.optim.Optimizer = super().create_optimizer(model)
        if isinstance(base, PertOPT | SAM) or self.method == "fisher_trace":
            return base
        found: PertOPT | SAM
        if self.method == "pertopt":
            found = PertOPT(base, **self.method_options)
        else:
            found = SAM(base, model=self.model, **self.method_options)
        self.optimizer = found
        return found

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: its gradient where the method wants it."""
        wrapper = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate has wrapped it
        if self.method == "fisher_trace":
            return self._fisher_step(model, inputs)
        if isinstance(wrapper, PertOPT):
            wrapper.epoch = 1.0 + int(self.state.epoch or 0.0)
            with wrapper.perturbed():
                return self._plain_step(model, inputs, num_items_in_batch)
        loss = self._plain_step(model, inputs, num_items_in_batch)
        self._repeated.append((inputs, num_items_in_batch))
        if self.accelerator.sync_gradients:
            again, self._repeated = self._repeated, []
            with wrapper.perturbed():
                for some, count in again:
                    self._plain_step(model, some, count)
        return loss

    def _plain_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _fisher_step(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        model.train()
        if self.fisher_trace is None or self.fisher_trace.model.model is not model:
            self.fisher_trace = FisherTrace(_Loss(model, self), **self.method_options)
        scale = 1.0 / self.current_gradient_accumulation_steps
        inputs = self._prepare_inputs(inputs)
        loss: Tensor = scale * self.fisher_trace.backward(lambda loss, _: loss, inputs, {}, scale=scale)
        return loss


class _Loss(nn.Module):
    """The Trainer's loss of a batch, as a module of the model's parameters."""

    def __init__(self, model: nn.Module, trainer: FlatMinimaTrainer) -> None:
        super().__init__()
        self.model = model
        self._of = trainer.compute_loss

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = self._of(self.model, dict(inputs))
        return loss
