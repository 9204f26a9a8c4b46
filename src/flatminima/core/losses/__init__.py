"""Losses of each sample: torch's own with stable derivatives, and any callable."""

from flatminima.core.losses.cross_entropy import has_softmax_columns
from flatminima.core.losses.loss import Loss, PerSample

__all__ = ["Loss", "PerSample", "has_softmax_columns"]
