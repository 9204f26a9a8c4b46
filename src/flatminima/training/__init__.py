"""Training to a minimum on tensors, evaluating it, and keeping its weights safely."""

from __future__ import annotations

from flatminima.training.checkpoint import load_checkpoint, save_checkpoint
from flatminima.training.config import TrainConfig
from flatminima.training.evaluate import Evaluation, MeanLoss, assess, evaluate
from flatminima.training.history import Epoch, History
from flatminima.training.loop import Training
from flatminima.training.methods import Method, base_optimizer, method, set_dropout
from flatminima.training.minimise import train
from flatminima.training.session import Session
from flatminima.training.steps import make_optimizer
from flatminima.training.weights_file import read_weights, write_weights

__all__ = [
    "Epoch",
    "Evaluation",
    "History",
    "MeanLoss",
    "Method",
    "Session",
    "TrainConfig",
    "Training",
    "assess",
    "base_optimizer",
    "evaluate",
    "load_checkpoint",
    "make_optimizer",
    "method",
    "read_weights",
    "save_checkpoint",
    "set_dropout",
    "train",
    "write_weights",
]


def __dir__() -> list[str]:
    return __all__
