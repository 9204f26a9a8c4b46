"""A study: a list of runs, each a pure function of its configuration, and the claims that their results decide."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.catalog.choices import SCALES
from flatminima.errors import FlatMinimaError, UnknownName, UsageError
from flatminima.studies.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Config = dict[str, Any]
Result = dict[str, Any]
Sources = Mapping[str, str]  # a data set's name, as in a configuration's "data", to what `load_tensors` takes
_BLOCK = 1_000  # seeds of one replication, at most
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TAKEN = ("networks", *SCALES)  # folders that an output has already, or may have within a study's


@dataclass(frozen=True)
class Study:
    """One figure or table of a paper.

    Args:
        id: name on the command line and of its folder: letters, digits, "-", "_" and "."; no scale, nor "networks".
        paper: figure and paper. title: one line.
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

    Raises:
        UsageError: an id that cannot be a folder's name.
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

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _NAME.fullmatch(self.id) or self.id in _TAKEN:
            raise UsageError(
                f"got a study's id {self.id!r}; it names a folder: letters, digits, '-', '_' and '.', not "
                f"{', '.join(_TAKEN)}"
            )

    @property
    def scales(self) -> tuple[str, ...]:
        """Those that it has: the ones whose reduction it tells."""
        return tuple(scale for scale in SCALES if scale in self.reduction)

    def list_runs(self, scale: str, seed: int = 0) -> list[Config]:
        """The configurations at a scale; with `seed`, of a replication: "seed" is 1000 `seed` higher in each.

        Raises:
            UnknownName: no such scale, or none of this study. UsageError: a negative seed, or one for configurations
                without seeds; configurations that are no list of dictionaries that JSON can hold.
        """
        if scale not in self.scales:
            raise UnknownName("scale", scale, self.scales)
        if seed < 0:
            raise UsageError(f"got seed={seed}; a replication is numbered 0, 1, ...")
        with calling(self, f"configurations({scale!r})"):
            configs = self.configurations(scale)
        self._check(configs, scale)
        if not seed:
            return list(configs)
        if not all(isinstance(c.get("seed"), int) for c in configs):
            raise UsageError(f"got seed={seed}; {self.id} has configurations without a whole number as their 'seed'")
        return [c | {"seed": c["seed"] + seed * _BLOCK} for c in configs]

    def _check(self, configs: Any, scale: str) -> None:
        if not isinstance(configs, (list, tuple)) or not all(isinstance(c, dict) for c in configs):
            raise UsageError(f"{self.id}: configurations({scale!r}) gives no list of dictionaries")
        for config in configs:
            try:
                json.dumps(config, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{self.id}: a configuration that JSON cannot hold: {error}: {config}") from None


@contextmanager
def calling(study: Study, what: str, kept: str = "") -> Iterator[None]:
    """Say which of a study's functions failed; `kept`: what is not lost by it.

    Raises:
        UsageError: in the place of whatever a study's own code raises.
    """
    try:
        yield
    except FlatMinimaError:
        raise
    except Exception as error:
        told = f"{study.id}: {what} raised {type(error).__name__}: {error}"
        raise UsageError(f"{told}; mend it{f': {kept}' if kept else ''}") from error


def is_first(seed: int) -> bool:
    """Whether a seed is the first of its replication: the one whose curves and surfaces a figure shows."""
    return seed % _BLOCK == 0
