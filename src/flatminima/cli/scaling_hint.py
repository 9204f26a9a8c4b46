"""Whether a network that does not fit was trained on inputs of another scaling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatminima.cli.load_samples import read
from flatminima.errors import FlatMinimaError

if TYPE_CHECKING:
    from flatminima.cli.request import Request
    from flatminima.core.minimum import Minimum

_TRIED = 512  # training samples on which other scalings are tried
_FITS = 0.5  # of the error as typed, that another scaling must leave at most


def other_scaling(request: Request, minimum: Minimum, name: str, error: float) -> list[str]:
    """Whether the network fits under another scaling, which then was that of its training."""
    from flatminima.ranking.candidates import answers

    limit = min(request.reading.limit or _TRIED, _TRIED)  # of the training samples: a smaller limit is a part of them
    reading = replace(request.reading, limit=limit, mean=None, std=None)
    tried = [replace(reading, scaling=s) for s in ("unit", "standard", "imagenet", "none")]
    tried.append(replace(reading, scaling="unit", mean="0.5", std="0.5"))
    for one in tried:
        if (one.scaling, one.mean) == (request.reading.scaling, request.reading.mean):
            continue
        try:
            found = answers(minimum, read(str(request.data), request.split, one, loss=request.loss).data)
        except FlatMinimaError:
            continue  # of other channels, or a function's own samples
        if found.finite and found.error is not None and found.error <= _FITS * error:
            typed = "--mean 0.5 --std 0.5" if one.mean else f"--scaling {one.scaling}"
            said = f"{Path(name).stem} errs on {found.error:.1%} of its training labels with {typed}"
            return [f"{said}: it was trained so"]
    return []
