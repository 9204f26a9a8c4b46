"""The papers' networks: factories that return a module giving logits, one idea a file.

Called without arguments each factory gives the network of its paper, so `flatminima.models:mnist_cnn` is a
model for the command line. Weights come from torch's global random state; `build(name, seed=0)` draws them
from a seed and leaves that state alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from flatminima.catalog.models import NETWORKS
from flatminima.errors import ModelError, UnknownName

if TYPE_CHECKING:
    from flatminima.models.densenet import *
    from flatminima.models.mlp import *
    from flatminima.models.mnist_cnn import *
    from flatminima.models.perez_ortiz import *
    from flatminima.models.plain_cnn import *
    from flatminima.models.random_features import *
    from flatminima.models.resnet import *
    from flatminima.models.six_layer_cnn import *
    from flatminima.models.small_cnn import *
    from flatminima.models.vgg import *
    from flatminima.models.wrn import *

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({name: row.load() for name, row in NETWORKS.items()})
globals().update(MODELS)

__all__ = sorted(["MODELS", "build", *NETWORKS])


def __getattr__(name: str) -> Callable[..., nn.Module]:
    raise AttributeError(f"no network {name!r}: `flatminima list` shows all")


def __dir__() -> list[str]:
    return __all__


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
