"""Samples beside those of training: the gates that the training data has passed, before they decide anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.core.admission import unfit
from flatminima.core.gradient_check import out_of_memory
from flatminima.core.losses.user import UserLoss
from flatminima.core.minimum import Minimum
from flatminima.core.samples import Inputs, Samples, as_samples, check_every_target, map_tensors
from flatminima.errors import DataError, FlatMinimaError
from flatminima.escaping import shown
from flatminima.ranking.labels_read import reader_of

_ALONE = 1e-2  # between a sample's loss in a batch and alone, relative


def batches(minimum: Minimum, samples: Samples) -> Iterator[tuple[Inputs, Tensor]]:
    """Inputs and targets on the device, a batch at a time."""
    for rows in torch.arange(len(samples)).split(minimum.batch_size):
        yield on_device(minimum, *samples.take(rows))


def on_device(minimum: Minimum, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    """Inputs and targets as the network and its loss take them."""
    whole = not targets.is_floating_point() and targets.dtype != torch.bool
    inputs = map_tensors(lambda t: t.to(minimum.device), inputs)
    return inputs, targets.to(minimum.device, torch.int64 if whole else None)


def refuse_unfit(minimum: Minimum, samples: Samples) -> Samples:
    """The samples, with targets in the training data's form (`in_shape`).

    Raises:
        DataError: NaN or Inf, inputs that the network does not take, targets that do not fit its outputs.
    """
    _ = samples.hashes  # reads all of them: NaN and Inf are refused
    own = _one_target(minimum.samples)
    samples = in_shape(minimum, samples)
    with minimum.open(), torch.no_grad():
        inputs, targets = next(batches(minimum, samples))
        output = forward(minimum, inputs)
        check_every_target(samples, minimum.loss, output)
        reader = reader_of(minimum)
        if isinstance(minimum.loss, UserLoss):
            _refuse_other_targets(minimum, samples, output, own)
            if reader is not None:
                reader.refuse_others(samples)
            _refuse_broadcast(minimum, output, targets)
    return samples


def _one_target(samples: Samples) -> Tensor:
    return samples.take(torch.arange(1))[1]


def in_shape(minimum: Minimum, samples: Samples) -> Samples:
    """The samples, with targets as the training data's where these are numbers: their dtype, and one's shape."""
    one, own = _one_target(samples), _one_target(minimum.samples)
    shape = own.shape[1:] if one.numel() == own.numel() == 1 else one.shape[1:]
    dtype = own.dtype if own.is_floating_point() and not one.is_floating_point() else one.dtype
    return samples if (shape, dtype) == (one.shape[1:], one.dtype) else _Shaped(samples, shape, dtype)


class _Shaped(Samples):
    """Samples whose targets have another shape and dtype."""

    def __init__(self, samples: Samples, shape: torch.Size, dtype: torch.dtype) -> None:
        self._samples, self._shape, self._dtype = samples, shape, dtype

    def __len__(self) -> int:
        return len(self._samples)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        inputs, targets = self._samples.take(indices)
        return inputs, targets.reshape(len(targets), *self._shape).to(self._dtype)


def without_targets(data: Any) -> Samples:
    """Samples whose targets are not looked at, whatever these hold."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor | np.ndarray):
        data = (data[0], torch.zeros(len(data[1]), dtype=torch.int64))
    return as_samples(data)


def forward(minimum: Minimum, inputs: Inputs) -> Tensor:
    try:
        return minimum.forward(inputs)
    except FlatMinimaError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if out_of_memory(error):
            raise
        raise unfit(inputs, error) from error


def losses_of(minimum: Minimum, output: Tensor, targets: Tensor) -> Tensor:
    """Losses of held-out samples, which a callable may never have seen the like of."""
    if not isinstance(minimum.loss, UserLoss):
        return minimum.loss(output, targets)
    try:
        return minimum.loss(output, targets)
    except FlatMinimaError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the loss {shown(minimum.loss.name)!r} cannot be computed on these samples: {reason}; check their targets"
        ) from error


def _refuse_other_targets(minimum: Minimum, samples: Samples, output: Tensor, own: Tensor) -> None:
    """Refuse targets of another form than in training: a callable would broadcast them, or read them otherwise."""
    one = _one_target(samples)
    alike = one.dim() == own.dim() and one.is_floating_point() == own.is_floating_point()
    elementwise = own.shape[1:] == output.shape[1:]
    if not alike or (elementwise and one.shape[1:] != output.shape[1:]):
        raise DataError(
            f"got targets of shape {tuple(one.shape[1:])} and {one.dtype} a sample, but {tuple(own.shape[1:])} and "
            f"{own.dtype} in the training data: give them the form that the loss {shown(minimum.loss.name)!r} takes"
        )


def _refuse_broadcast(minimum: Minimum, output: Tensor, targets: Tensor) -> None:
    """Refuse a callable whose loss of a sample changes with the others."""
    together = losses_of(minimum, output, targets)
    alone = losses_of(minimum, output[:1], targets[:1])
    if len(output) > 1 and not torch.allclose(together[:1], alone, _ALONE, _ALONE, equal_nan=True):
        raise DataError(
            f"loss {shown(minimum.loss.name)!r} of a held-out sample changes with the others in its batch; measures "
            "need a sum over samples"
        )


# -- samples of training among them ------------------------------------------------------------------------------------


def seen_in_training(minimum: Minimum, test: Samples) -> tuple[str, ...]:
    """A caution about held-out samples that are training samples too.

    Raises:
        DataError: they are nothing but training samples, inputs and targets.
    """
    own = minimum.samples
    whole = np.isin(test.hashes, own.hashes)
    if whole.all() and len(np.unique(own.input_hashes)) == len(own):  # of few distinct inputs copies are no sign
        raise DataError(
            f"every one of the {len(test):,} held-out samples is a training sample; what was trained on judges nothing"
        )
    seen = int(np.isin(test.input_hashes, own.input_hashes).sum())
    if not seen:
        return ()
    return (f"{seen:,} of {len(test):,} test samples are training samples too: errors on them are too low",)


def unlabelled_in_training(minimum: Minimum, samples: Samples) -> tuple[str, ...]:
    """A caution about samples without labels that are training samples too."""
    seen = int(np.isin(samples.input_hashes, minimum.samples.input_hashes).sum())
    if not seen:
        return ()
    return (
        f"{seen:,} of {len(samples):,} samples without labels are training samples too: agreement and confidence on "
        "them are too high",
    )
