"""Stochastic weight averaging (Izmailov et al. 2018) by torch's own `AveragedModel`.

The average is of the weights at the ends of epochs. BatchNorm's running statistics belong to no average and are
measured again by `torch.optim.swa_utils.update_bn`, which a network without BatchNorm does not need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from flatminima.training.objective import Called, count, rows


class Average:
    """The running mean of a model's weights; `count` says of how many."""

    def __init__(self, model: nn.Module) -> None:
        self._average = AveragedModel(model)

    @property
    def count(self) -> int:
        return int(self._average.n_averaged)

    def update(self, model: nn.Module) -> None:
        """Take the model's weights into the mean."""
        self._average.update_parameters(model)

    def install(self, model: nn.Module, inputs: Any, batch_size: int) -> None:
        """The averaged weights into the model, and running statistics measured with them on the inputs."""
        with torch.no_grad():
            for ours, averaged in zip(model.parameters(), self._average.module.parameters(), strict=True):
                ours.copy_(averaged)
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            n = count(inputs)
            parts = ([rows(inputs, slice(a, min(a + batch_size, n)))] for a in range(0, n, batch_size))
            modes = [(module, module.training) for module in model.modules()]
            update_bn(parts, Called(model))  # which takes the first of each list
            for module, training in modes:
                module.training = training

    def state_dict(self) -> dict[str, Any]:
        return dict(self._average.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)
