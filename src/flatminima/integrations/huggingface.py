"""A Hugging Face `Trainer` that trains with PertOPT, SAM or FisherTrace; everything else is the Trainer's.

A subclass and no callback, because SAM and FisherTrace need passes of their own. The perturbation lives within
`training_step`, so evaluation, saving, clipping, schedulers and resuming meet an ordinary optimizer and true weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.errors import MissingExtra, UnknownName, UsageError
from flatminima.optim import SAM, FisherTrace, PertOPT
from flatminima.optim.difference import random_state, set_random_state
from flatminima.optim.running_statistics import kept
from flatminima.optim.sub_batches import size

try:
    from transformers import Trainer
except ImportError:
    raise MissingExtra("transformers", "hf", "flatminima.integrations.huggingface") from None

__all__ = ["FlatMinimaTrainer"]

_METHODS = ("fisher_trace", "pertopt", "sam")
_MASKED = -100  # the label that cross-entropy ignores


class FlatMinimaTrainer(Trainer):
    """`Trainer` with one more choice.

    The optimizer is the one that the arguments ask for, or that `optimizers=` gives, wrapped. PertOPT's epoch is the
    Trainer's, from 1. Under gradient accumulation PertOPT keeps one perturbation a step, SAM repeats the micro-batches
    of a step at w + e, and FisherTrace cuts each micro-batch. Where the Trainer counts a step's items (unmasked
    labels), micro-batches and their parts weigh what they have of them.

    Args:
        args, kwargs: of `Trainer`.
        method: "pertopt", "sam" or "fisher_trace".
        options: keyword arguments of that class, but for `base`, `model` and `steps_per_epoch`.

    Raises:
        UnknownName: no such method. UsageError: FisherTrace in 16 bits or on several ranks; an optimizer that is
            PertOPT or SAM already, and is not the method's, or would not get the options.

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
        self._repeated: list[tuple[dict[str, Any], Any, Tensor]] = []  # the step's micro-batches, for SAM's second pass
        self._own: torch.optim.Optimizer | None = None  # made here, and kept by a later train()
        super().__init__(*args, **kwargs)
        self._check_the_users(self.optimizer)
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
        self._repeated = []
        self._check_the_users(base)
        if isinstance(_inner(base), PertOPT | SAM) or self.method == "fisher_trace":
            return base  # wrapped already: an earlier call of train(), or the user's own
        found: PertOPT | SAM
        if self.method == "pertopt":
            found = PertOPT(base, **{"model": self.model, **self.method_options})
        else:
            found = SAM(base, **{"model": self.model, **self.method_options})
        self.optimizer = self._own = found
        return found

    def _check_the_users(self, optimizer: Any) -> None:
        """Refuse a PertOPT or SAM of the user's that is not what `method` and `options` say."""
        inner = _inner(optimizer)
        if inner is self._own or not isinstance(inner, PertOPT | SAM):
            return
        name = "PertOPT" if isinstance(inner, PertOPT) else "SAM"
        if name.lower() != self.method:
            raise UsageError(
                f"got method={self.method!r} and an optimizer that is {name} already: "
                f"give method={name.lower()!r}, or the optimizer within it"
            )
        if self.method_options:
            raise UsageError(
                f"got options {', '.join(self.method_options)} beside a {name} of your own, which has its own: give "
                f"them to {name}, or give the optimizer within it"
            )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: its gradient where the method wants it."""
        wrapper = _inner(self.optimizer)
        if self.method == "fisher_trace":
            return self._fisher_step(model, inputs, num_items_in_batch)
        if wrapper.clock.steps_per_epoch is None:
            wrapper.epoch = 1.0 + int(self.state.epoch or 0.0)
        self._optimizer_in_train_mode()  # as the Trainer's own step asks for, but outside of the block
        if isinstance(wrapper, PertOPT):
            with wrapper.perturbed():
                return self._plain_step(model, inputs, num_items_in_batch)
        loss = self._plain_step(model, inputs, num_items_in_batch)
        self._repeated.append((inputs, num_items_in_batch, loss))
        if self.accelerator.sync_gradients:
            again, self._repeated = self._repeated, []
            if wrapper.due:
                there: list[Tensor] = []
                with wrapper.perturbed():
                    for some, count, _ in again:
                        there.append(self._plain_step(model, some, count))
                wrapper.note(torch.stack([here for *_, here in again]).sum(), torch.stack(there).sum())
        return loss

    def _plain_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _optimizer_in_train_mode(self) -> None:
        train = getattr(self.optimizer, "train", None)
        if callable(train):
            train()

    def _fisher_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """One micro-batch, whose share of the step is the share of its items where the Trainer counts them."""
        model.train()
        self._optimizer_in_train_mode()
        loss_of = None if self.fisher_trace is None else self.fisher_trace.model
        if self.fisher_trace is None or not isinstance(loss_of, _Loss) or loss_of.model is not model:
            loss_of = _Loss(model, self)
            self.fisher_trace = FisherTrace(loss_of, **self.method_options)
        inputs = self._prepare_inputs(inputs)
        scaled = getattr(self, "loss_is_scaled_for_ga", None)  # the user's word, in transformers 5
        if scaled is None:
            accepts = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = accepts or self.compute_loss_func is not None
        scale = 1.0 if scaled else 1.0 / self.current_gradient_accumulation_steps
        loss_of.by_items = num_items_in_batch is not None and loss_of.divides(inputs)
        if loss_of.by_items:
            scale *= self._items(inputs) / float(num_items_in_batch)
        loss: Tensor = scale * self.fisher_trace.backward(
            lambda loss, _: loss, inputs, {}, scale=scale, count=lambda part, _: self._items(part)
        )
        return loss

    def _items(self, inputs: dict[str, Any]) -> float:
        """What the loss of these inputs divides by: labels that are not masked, or samples where there are no such."""
        labels = inputs["shift_labels"] if "shift_labels" in inputs else inputs.get("labels")
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return float(size(inputs))
        if "shift_labels" not in inputs and getattr(self, "_loss_shifts_labels", False):
            labels = labels[..., 1:]
        return float((labels != _MASKED).sum())


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # accelerate has wrapped it


class _Loss(nn.Module):
    """The Trainer's loss of a batch, as a module of the model's parameters."""

    def __init__(self, model: nn.Module, trainer: FlatMinimaTrainer) -> None:
        super().__init__()
        self.model = model
        self.by_items = False  # whether the loss is a sum divided by a number of items that it is given
        self._divides: bool | None = None  # the same, once it is known
        self._of, self._items, self._context = (
            trainer.compute_loss,
            trainer._items,
            trainer.compute_loss_context_manager,
        )

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        return self._loss(inputs, max(self._items(inputs), 1.0) if self.by_items else None)

    def divides(self, inputs: dict[str, Any]) -> bool:
        """Whether the loss divides by the number of items that it is given; many take the number and ignore it.

        Two passes without gradients, once, that leave buffers and random numbers as they were.
        """
        if self._divides is None:
            parameters = list(self.model.parameters())
            state = random_state(parameters)
            found: list[float] = []
            with torch.no_grad(), kept(self.model):
                for items in (1.0, 2.0):
                    set_random_state(state)
                    found.append(float(self._loss(inputs, items)))
            set_random_state(state)
            if found[0] == 0 or not math.isfinite(found[0]):
                return True  # nothing counts here; a later batch will tell
            self._divides = abs(found[0]) > 1.5 * abs(found[1])
        return self._divides

    def _loss(self, inputs: dict[str, Any], items: float | None) -> Tensor:
        given = {} if items is None else {"num_items_in_batch": items}
        with self._context():
            loss: Tensor = self._of(self.model, dict(inputs), **given)
        return loss
