"""A study: a list of runs, each a pure function of its configuration, and the claims that their results decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.catalog.choices import SCALES
from flatminima.errors import UnknownName, UsageError
from flatminima.studies.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Config = dict[str, Any]
Result = dict[str, Any]
Sources = Mapping[str, str]  # a data set's name, as in a configuration's "data", to what `load_tensors` takes
_BLOCK = 1_000  # seeds of one replication, at most


@dataclass(frozen=True)
class Study:
    """One figure or table of a paper.

    Args:
        id: name on the command line. paper: figure and paper. title: one line.
        datasets: names of the data sets it uses ("mnist", "cifar10", ...); empty if it makes its own.
        configurations: scale to configurations that JSON can hold. Those that use data say which under "data": one of
            `datasets`, or "digits" at smoke scale. They hold no path, so results are the same on every machine.
        run: a configuration, and where its data lie, to numbers; pure, and importable by name, so that another process
            can call it.
        claims: results of all runs that succeeded to verdicts.
        figure: the same results to a matplotlib figure of the paper's quantities.
        reduction: how each scale that it has differs from the paper, in plain words.
        extra: writes further files from the results into a folder that exists.
        runs_of: id of a study with the same configurations and the same run, whose results this one reads and adds to.
    """

    id: str
    paper: str
    title: str
    datasets: tuple[str, ...]
    configurations: Callable[[str], list[Config]]
    run: Callable[[Config, Sources], Result]
    claims: Callable[[Sequence[Result]], list[Verdict]]
    figure: Callable[[Sequence[Result]], Figure]
    reduction: dict[str, str]
    extra: Callable[[Sequence[Result], Path], None] | None = None
    runs_of: str | None = None

    @property
    def scales(self) -> tuple[str, ...]:
        """Those that it has: the ones whose reduction it tells."""
        return tuple(scale for scale in SCALES if scale in self.reduction)

    def list_runs(self, scale: str, seed: int = 0) -> list[Config]:
        """The configurations at a scale; with `seed`, of a replication: "seed" is 1000 `seed` higher in each.

        Raises:
            UnknownName: no such scale, or none of this study. UsageError: a negative seed.
        """
        if scale not in self.scales:
            raise UnknownName("scale", scale, self.scales)
        if seed < 0:
            raise UsageError(f"got seed={seed}; a replication is numbered 0, 1, ...")
        configs = self.configurations(scale)
        return [c | {"seed": c["seed"] + seed * _BLOCK} if "seed" in c else c for c in configs]


def is_first(seed: int) -> bool:
    """Whether a seed is the first of its replication: the one whose curves and surfaces a figure shows."""
    return seed % _BLOCK == 0
