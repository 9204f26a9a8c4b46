"""The epoch with the lowest validation loss: its weights, and how many epochs have passed since."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Best:
    """The lowest validation loss so far; the first of equals.

    Args:
        keep: whether to keep the weights of that epoch, a copy of the model's state.

    Attributes:
        epoch: counted from 1; 0 before the first. waited: epochs since.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.loss, self.epoch, self.waited = math.inf, 0, 0
        self.weights: dict[str, Tensor] | None = None

    def see(self, epoch: int, loss: float, model: nn.Module) -> None:
        """Note the result of an epoch, counted from 1."""
        if loss < self.loss:
            self.loss, self.epoch, self.waited = loss, epoch, 0
            if self.keep:
                self.weights = {k: v.detach().clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}
            return
        self.waited += 1

    def install(self, model: nn.Module) -> None:
        """The kept weights and buffers into the model, in place."""
        if self.weights is not None:
            state = model.state_dict(keep_vars=True)
            with torch.no_grad():
                for name, value in self.weights.items():
                    state[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "epoch": self.epoch, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.epoch, self.waited = state["loss"], state["epoch"], state["waited"]
        self.weights = state["weights"]
