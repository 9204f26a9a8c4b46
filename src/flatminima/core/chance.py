"""Whether the random numbers that a network draws change its outputs: in the first samples, and wherever it draws some.

Samples that are looked at first may draw none (a gate in front of a functional dropout). So the generators of torch,
numpy and Python are compared around every sweep and every graph; where they moved, each batch is passed again with
chosen states of all three. Data that draws (augmentation, a loader's seed) moves them too, and is left alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flatminima.core.guard import random_marks, same_randomness
from flatminima.errors import ModelError

if TYPE_CHECKING:
    from flatminima.core.network import Network

_DRAWS = 8  # random numbers of a forward pass, each of which is tried at both ends of its range
_EXTREME = 0.004  # a branch that is taken less often than this may be missed
_ORDINARY = 16  # passes with ordinary random numbers
_AGAIN = 3  # of these, for batches after the first that draws
DIFFER = (
    "two forward passes in eval mode differ: the network draws random numbers (functional dropout with training=True?) "
    "or keeps state; measures need a deterministic network"
)


class Chance:
    """Batches of a network whose random numbers are known to change nothing.

    Attributes:
        watched: the network was admitted, and its later passes are looked at.
        closely: random numbers were drawn in a sweep, and each batch is looked at from then on.
    """

    def __init__(self) -> None:
        self.watched = self.closely = False
        self._settled: set[bytes] = set()

    def settle(self, network: Network, indices: Tensor) -> None:
        """Pass a batch again with other random numbers, where it draws some.

        Raises:
            ModelError: they change its outputs.
        """
        key = indices.cpu().numpy().tobytes()
        if key in self._settled:
            return
        passes = replace(network.passes)
        states = _states() if not self._settled else (_seeded(seed) for seed in range(_AGAIN))

        def forward() -> Tensor:
            return network.forward(network.batch(indices).inputs)

        with network.open(), torch.no_grad(), same_randomness():
            inputs = network.batch(indices).inputs
            before = random_marks(network.device)
            outputs = network.forward(inputs)
            if random_marks(network.device) != before:
                refuse_chance(outputs, forward, states)
                self._settled.add(key)
        network.passes.checks += network.passes.forward - passes.forward
        network.passes.forward = passes.forward


@contextmanager
def refusing_chance(
    network: Network, batches: Callable[[], Iterable[Tensor]], *, closely: bool = False
) -> Iterator[None]:
    """Look at the generators around the block, and at its batches where they moved.

    Args:
        network: that goes over batches in the block. batches: indices of each, in order.
        closely: the block passes one batch, whose samples were read before it.

    Raises:
        ModelError: random numbers change the outputs.
    """
    chance = network.chance
    if not chance.watched or (closely and not chance.closely):
        yield
        return
    before = random_marks(network.device)
    yield
    if random_marks(network.device) != before and (closely or not chance.closely):
        chance.closely = True
        for indices in batches():
            chance.settle(network, indices)


def refuse_chance(outputs: Tensor, forward: Callable[[], Tensor], states: Iterable[Callable[[], None]]) -> None:
    """Refuse outputs that are others in one of the states.

    Raises:
        ModelError: they are.
    """
    for state in states:
        with same_randomness():
            state()
            if not torch.equal(outputs, forward()):
                raise ModelError(DIFFER)


def states_of(draws: bool) -> Iterable[Callable[[], None]]:
    """All states that are tried; of a network that draws nothing the one there is."""
    return _states() if draws else [lambda: None]


def _states() -> Iterator[Callable[[], None]]:
    """Ways to set every generator: such that one of its next draws is near 0 or near 1, and as they come."""
    for position in range(_DRAWS):
        for low in (True, False):
            yield lambda position=position, low=low: _set_extreme(position, low)  # type: ignore[misc]
    for seed in range(_ORDINARY):
        yield _seeded(seed)


def _seeded(seed: int) -> Callable[[], None]:
    return lambda: _seed(seed)


def _set_extreme(position: int, low: bool) -> None:
    def wanted(value: float) -> bool:
        return value < _EXTREME if low else value > 1 - _EXTREME

    seeds = range(position * 1_000_000, position * 1_000_000 + 20_000)
    python = next((s for s in seeds if wanted([random.Random(s).random() for _ in range(position + 1)][-1])), 0)
    legacy = next((s for s in seeds if wanted(float(np.random.RandomState(s % 2**32).rand(position + 1)[-1]))), 0)
    of_torch = next(
        (s for s in seeds if wanted(float(torch.rand(position + 1, generator=torch.Generator().manual_seed(s))[-1]))), 0
    )
    random.seed(python)
    np.random.seed(legacy % 2**32)
    torch.manual_seed(of_torch)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
