"""Numbers and networks that hold them, in ways that a network should not; and one that holds none."""

from __future__ import annotations

import abc
import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

TABLE = torch.randn(20, 10)
TRAINED = nn.Linear(10, 20)
NUMBERS = [float(v) for v in torch.randn(300, generator=torch.Generator().manual_seed(1))]


class Plain(nn.Module):
    """Holds none but its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class Helper:
    """Holds nothing itself; what its method reads does."""

    def __call__(self) -> Any:
        return TABLE


class WithBuffer(Plain):
    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.register_buffer(name, value)


def reaching(value: Any, body: str = "return TABLE") -> nn.Module:
    """A network whose code names a value of the caller's."""
    space: dict[str, Any] = {"Plain": Plain, "TABLE": value, "__name__": "somewhere"}
    exec(f"class Reaching(Plain):\n    def forward(self, x):\n        {body}", space)
    network: nn.Module = space["Reaching"]()
    return network


log = logging.getLogger(__name__)
REGISTRY: dict[str, type[nn.Module]] = {}


class Block(nn.Module, abc.ABC):
    """What blocks have in common."""

    __constants__ = ("width",)
    width: int = 10

    def __init_subclass__(cls) -> None:
        REGISTRY[cls.__name__] = cls

    @abc.abstractmethod
    def mixed(self, x: Tensor) -> Tensor: ...


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


class Dressed(Block):
    """A block with all that people write.

    Its documentation goes on for longer than any table of the code would, which is why nobody counts it by its length:
    a network is made of an attention over positions, which are rotated, and of a mask, which hides those to come; what
    it is trained with, and how long, is written in its configuration, of which there are as many as there are papers.
    """

    def __init__(self, act: str = "gelu", **options: Any) -> None:
        super().__init__()
        if act not in ("relu", "gelu"):
            raise ValueError(f"got act={act!r}; expected 'relu' or 'gelu', of which the second is what was published")
        self.head, self.act, self.options, self.parent = nn.Linear(10, 2), act, options, [self]
        self.blocks = {"last": self.head}
        self.norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.register_buffer("inv_freq", 1e4 ** (-torch.arange(0, 64, 2) / 64), persistent=False)
        self.register_buffer("causal", torch.ones(1, 1, 128, 128).tril().bool(), persistent=False)
        self.register_buffer("position_ids", torch.arange(512)[None])
        self.head.register_forward_hook(self.watched)

    def watched(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        log.debug("%s gave %s", module, output.shape)

    @functools.cached_property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def mixed(self, x: Tensor) -> Tensor:
        import math
        from collections import OrderedDict

        assert REGISTRY and OrderedDict
        return x * math.sqrt(self.width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.head(Round.apply(getattr(nn.functional, self.act)(self.mixed(x))))


def dressed(seed: int = 0, *, width: int = 10) -> nn.Module:
    return nn.Sequential(Dressed(width=width), nn.BatchNorm1d(2))
