"""The papers' networks: factories that return a module giving logits, one idea a file.

Called without arguments each factory gives the network of its paper, so `flatminima.models:mnist_cnn` is a
model for the command line. Weights come from torch's global random state; `build(name, seed=0)` draws them
from a seed and leaves that state alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from flatminima.errors import ModelError, UnknownName
from flatminima.models.densenet import densenet
from flatminima.models.mlp import mlp
from flatminima.models.mnist_cnn import mnist_cnn
from flatminima.models.perez_ortiz import mnist_cnn4, mnist_fcn
from flatminima.models.plain_cnn import plain_cnn
from flatminima.models.random_features import random_features
from flatminima.models.resnet import resnet20
from flatminima.models.six_layer_cnn import six_layer_cnn
from flatminima.models.small_cnn import small_cnn
from flatminima.models.vgg import vgg
from flatminima.models.wrn import wide_resnet

__all__ = [
    "MODELS",
    "build",
    "densenet",
    "mlp",
    "mnist_cnn",
    "mnist_cnn4",
    "mnist_fcn",
    "plain_cnn",
    "random_features",
    "resnet20",
    "six_layer_cnn",
    "small_cnn",
    "vgg",
    "wide_resnet",
]

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "densenet": densenet,
        "mlp": mlp,
        "mnist_cnn": mnist_cnn,
        "mnist_cnn4": mnist_cnn4,
        "mnist_fcn": mnist_fcn,
        "plain_cnn": plain_cnn,
        "random_features": random_features,
        "resnet20": resnet20,
        "six_layer_cnn": six_layer_cnn,
        "small_cnn": small_cnn,
        "vgg": vgg,
        "wide_resnet": wide_resnet,
    }
)


def build(name: str, *, seed: int | None = None, **options: object) -> nn.Module:
    """The network called `name`, on the CPU, in train mode.

    Args:
        name: a key of `MODELS`.
        seed: of the initial weights, leaving torch's global random state as it was; None draws from that
            state.
        options: of the factory, by name.

    Raises:
        UnknownName: no such network. ModelError: an option that the factory does not have, or a bad value.

    Examples:
        >>> build("mlp", seed=0, widths=(64, 128, 10))[1].weight.shape
        torch.Size([128, 64])
    """
    if name not in MODELS:
        raise UnknownName("model", name, MODELS)
    factory = MODELS[name]
    accepted = inspect.signature(factory).parameters
    for option in options:
        if option not in accepted:
            raise ModelError(f"{name} has no option {option!r}: it takes {', '.join(accepted)}")
    if seed is None:
        return factory(**options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        return factory(**options)
