"""A network's logits, whatever it returns them in, and the labels that its error is counted by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.guard import same_randomness
from flatminima.core.losses import Loss
from flatminima.core.output import logits
from flatminima.errors import DataError, UsageError

_IGNORED = -100  # torch's ignore_index


class Logits(nn.Module):
    """A network that returns a tensor of logits.

    Args:
        network: that returns them in an object, a dictionary or a tuple.
        which: entry of what it returns, as for `Minimum`.
    """

    def __init__(self, network: nn.Module, which: Any = None) -> None:
        super().__init__()
        self.network, self.which = network, which

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return logits(self.network(*args, **kwargs), self.which)

    @classmethod
    @torch.no_grad()
    def needed(cls, network: nn.Module, x: Any, which: Any = None) -> nn.Module:
        """The network itself where it returns a tensor for `x`, else wrapped, so that names of weights stay short."""
        modes = [(m, m.training) for m in network.modules()]
        with same_randomness():
            output = network.eval()(x)
        for module, training in modes:
            module.training = training
        return network if which is None and isinstance(output, Tensor) else cls(network, which)


def two_class(output: Tensor) -> Tensor:
    """Logits (batch, classes): one logit z a sample is that of the second of two classes, (0, z)."""
    if output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1):
        z = output.reshape(-1)
        return torch.stack([torch.zeros_like(z), z], 1)
    return output


def class_labels(targets: Tensor, output: Tensor, loss: Loss, start: int = 0) -> Tensor:
    """Class indices (batch,) of targets, checked against the network's output.

    Args:
        output: of these or other samples. loss: of the Minimum. start: number of the first sample, for the message.

    Raises:
        UsageError: no classifier. DataError: a label that is none of its classes.
    """
    one_logit = two_class(output) is not output
    classes = two_class(output).shape[-1]
    if output.dim() > 2 or (one_logit and loss.name != "binary_cross_entropy"):
        raise UsageError(
            f"got outputs of shape {tuple(output.shape[1:])} a sample with loss {loss.name!r}: a certificate is about "
            "the 0-1 error of a classifier, with logits (classes,) of at least two classes, or one logit and "
            "loss='binary_cross_entropy'"
        )
    labels = targets.reshape(len(targets)) if one_logit and targets.numel() == len(targets) else targets
    if labels.dim() != 1 or (labels.is_floating_point() and not one_logit):
        raise UsageError(
            f"got targets of dtype {targets.dtype} and shape {tuple(targets.shape)} with loss {loss.name!r}: a "
            "certificate is about the 0-1 error, which needs one class index a sample"
        )
    whole = labels.long()
    if one_logit and not bool((whole == labels).all()):
        raise UsageError(f"got targets between 0 and 1 with loss {loss.name!r}: the 0-1 error needs labels 0 and 1")
    check_labels(whole, classes, start)
    return whole


def check_labels(labels: Tensor, classes: int, start: int = 0) -> None:
    """Refuse labels that are none of the network's classes.

    Raises:
        DataError: naming the sample.
    """
    bad = ((labels < 0) | (labels >= classes)).nonzero()
    if not len(bad):
        return
    place, label = int(bad[0]) + start, int(labels[bad[0]])
    if label == _IGNORED:
        raise DataError(
            f"sample {place} has the label {_IGNORED}, torch's mark for what a loss ignores: a certificate counts "
            "every sample; leave those out"
        )
    raise DataError(f"sample {place} has the label {label}; the network has {classes} classes, 0 to {classes - 1}")
