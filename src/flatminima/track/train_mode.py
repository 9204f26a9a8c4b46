"""A network as it trains: batch statistics of the probe, dropout with one fixed mask.

There samples are not one by one, and a sum of losses over them means nothing batch by batch. So the whole probe is one
sample, and its mean loss that sample's loss: a function of the weights like any other, whose Hessian is well defined.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatminima.core.guard import same_randomness
from flatminima.core.losses import Loss
from flatminima.core.output import logits
from flatminima.core.samples import Inputs, as_samples, call, map_tensors
from flatminima.errors import UsageError

TRAIN_MODE_QUANTITIES = (
    "eigenvalue",
    "preconditioned",
    "trace",
    "gradient_norm",
    "critical_sharpness",
    "update_sharpness",
    "distance",
    "optimizer",
)


class AsItTrains(nn.Module):
    """The network on all of a probe at once, in the modes in which its modules train.

    Buffers that a pass writes (running statistics) are those of before when the look ends, as after any look.

    Args:
        model: the network. output: which entry of what it returns is the logits. seed: of the dropout masks.
    """

    def __init__(self, model: nn.Module, output: Any, seed: int) -> None:
        super().__init__()
        self.model, self.output, self.seed = model, output, seed
        self.modes: tuple[tuple[nn.Module, bool], ...] = ()
        self.remember()

    def remember(self) -> None:
        """The modes of now are those of the looks to come: a frozen BatchNorm stays frozen."""
        self.modes = tuple((module, module.training) for module in self.model.modules())

    def forward(self, probe: Inputs) -> Tensor:
        """Logits (1, samples, ...) of inputs (1, samples, ...)."""
        before = [(module, module.training) for module, _ in self.modes]
        for module, training in self.modes:
            module.training = training
        with same_randomness():
            _seed(self.seed)
            found = logits(call(self.model, map_tensors(lambda t: t[0], probe)), self.output)
        if not torch.is_grad_enabled():  # else a checkpoint may run a part again; whoever opened it sets the modes
            for module, training in before:
                module.training = training
        return found[None]


def one_sample(probe: Any) -> tuple[Inputs, Tensor]:
    """The probe as a batch of one sample."""
    samples = as_samples(probe)
    inputs, targets = samples.take(torch.arange(len(samples)))
    return map_tensors(lambda t: t[None], inputs), targets[None]


def mean_loss(loss: str | Callable[[Any, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a probe that is one sample: the mean over what are samples otherwise."""
    each = Loss.of(loss)
    checked = False

    def mean(output: Tensor, target: Tensor) -> Tensor:
        nonlocal checked
        one, labels = output[0], target[0]
        fitted = each.fitted(one, labels)
        if not checked:
            fitted.check_targets(labels, one.detach(), torch.arange(len(labels)))
            checked = True
        return fitted(one, labels).mean().reshape(1)

    mean.__name__ = each.name
    return mean


def refuse(model: nn.Module, quantities: Any, alone: bool, sharded: bool) -> None:
    """Refuse what has no meaning in train mode.

    Args:
        quantities: names. alone: this process looks without the others. sharded: under FSDP.

    Raises:
        UsageError: naming it.
    """
    for name in quantities:
        if name not in TRAIN_MODE_QUANTITIES:
            raise UsageError(
                f"got mode='train' and the quantity {name!r}, which looks at samples one by one: batch statistics tie "
                "them together; follow it with a tracker of its own in eval mode"
            )
    if sharded:
        raise UsageError("got mode='train' and FSDP's shards, which are looked at in eval mode alone")
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and alone and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        raise UsageError(
            "got mode='train' and SyncBatchNorm, which would wait for the processes that do not look; use mode='eval'"
        )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


__all__ = ["TRAIN_MODE_QUANTITIES", "AsItTrains", "mean_loss", "one_sample", "refuse"]
