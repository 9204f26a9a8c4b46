"""State that a tracker carries from look to look, and how it is kept beside a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flatminima.core.distributed import Ranks
from flatminima.errors import UsageError
from flatminima.track.eigenvalue import Follower

_DECAY = 0.7  # weight of a look's spread at the next one


@dataclass(frozen=True)
class Options:
    """Options of a look.

    Attributes:
        mode: ``"eval"``, dropout off and BatchNorm with its running statistics, the function that is evaluated; or
            ``"train"``, each module in its own mode of now, BatchNorm with the statistics of the probe, which is then
            never split, and dropout with one fixed mask, named by `seed`.
        tolerance: of the eigenvalues, relative. cap: products a check and eigenvalue, at most.
        fresh_every: checks between two searches from a random direction.
        step_tolerance: of the critical step, relative.
        batch_size: samples of the probe at a time, halved where memory runs out; None: the whole probe.
        output, seed: as for `Minimum`.
        ranks: processes that share the passes of a check, or None: under DDP the first process looks alone.
    """

    mode: str = "eval"
    tolerance: float = 0.01
    cap: int = 60
    fresh_every: int = 20
    step_tolerance: float = 0.02
    batch_size: int | None = None
    output: int | str | Callable[[Any], Tensor] | None = None
    seed: int = 0
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("eval", "train"):
            raise UsageError(f"got mode={self.mode!r}; it is 'eval' or 'train'")


@dataclass
class Spread:
    """Variance of the trace's probes, over looks: two probes alone would say next to nothing of it."""

    squares: float = 0.0
    freedom: float = 0.0

    def add(self, forms: Tensor) -> float:
        """The pooled variance of one probe with these among them."""
        self.squares = _DECAY * self.squares + float((forms - forms.mean()).square().sum())
        self.freedom = _DECAY * self.freedom + len(forms) - 1
        return self.squares / self.freedom


@dataclass
class Memory:
    """Followers by quantity, the trace's spread, the last critical steps, and weights of before.

    Attributes:
        followers: by quantity; their directions are flat as the parameters named in `layout`.
        initial: where tracking began (W,). before: ahead of the last step (W,).
        layout: names and sizes of the parameters.
    """

    followers: dict[str, Follower] = field(default_factory=dict)
    spread: Spread = field(default_factory=Spread)
    steps: dict[str, float] = field(default_factory=dict)
    initial: Tensor | None = None
    before: Tensor | None = None
    layout: tuple[tuple[str, int], ...] = ()

    def follower(self, name: str, options: Options) -> Follower:
        """The quantity's, made when it is first asked for."""
        if name not in self.followers:
            self.followers[name] = Follower(
                tolerance=options.tolerance, cap=options.cap, fresh_every=options.fresh_every, seed=options.seed
            )
        return self.followers[name]

    def fit(self, layout: Sequence[tuple[str, int]], device: torch.device) -> None:
        """Directions for the parameters of now: what a parameter that is new has of them is 0."""
        old, self.layout = self.layout, tuple(layout)
        for follower in self.followers.values():
            if follower.carried is not None:
                follower.carried = _fitted(follower.carried, old, self.layout).to(device)
        if old and old != self.layout:  # distances would be between other spaces
            self.initial = self.before = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text alone."""
        return {
            "layout": [list(entry) for entry in self.layout],
            "directions": {n: f.carried.cpu() for n, f in self.followers.items() if f.carried is not None},
            "looks": {n: f.looks for n, f in self.followers.items()},
            "spread": [self.spread.squares, self.spread.freedom],
            "steps": dict(self.steps),
            "initial": None if self.initial is None else self.initial.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any], options: Options) -> None:
        """Go on from `state_dict`, for the parameters that `fit` gets next."""
        self.layout = tuple((str(name), int(size)) for name, size in state["layout"])
        self.followers = {}
        for name, looks in state["looks"].items():
            follower = self.follower(name, options)
            follower.looks, follower.carried = int(looks), state["directions"].get(name)
        self.spread = replace(self.spread, squares=float(state["spread"][0]), freedom=float(state["spread"][1]))
        self.steps = {name: float(step) for name, step in state["steps"].items()}
        self.initial, self.before = state["initial"], None


def _fitted(carried: Tensor, old: Sequence[tuple[str, int]], new: Sequence[tuple[str, int]]) -> Tensor:
    """Rows (2, W) by parameter into another layout."""
    if tuple(old) == tuple(new) and carried.shape[1] == sum(size for _, size in new):
        return carried
    sizes = [size for _, size in old]
    if sum(sizes) != carried.shape[1]:
        return carried.new_zeros(len(carried), sum(size for _, size in new))
    parts = {entry: part for entry, part in zip(old, carried.split(sizes, 1), strict=True)}
    return torch.cat([parts.get(entry, carried.new_zeros(len(carried), entry[1])) for entry in new], 1)
