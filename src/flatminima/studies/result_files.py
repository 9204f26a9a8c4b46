"""The results of every study in a folder: what the index shows, the papers' and one's own, at every scale.

A study's folder has the results of the scale that ran last, and those of another scale in a folder of its name.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from flatminima.catalog.choices import SCALES
from flatminima.errors import UsageError
from flatminima.io import LOCK
from flatminima.untrusted import read_json

RESULTS = "results.json"
_KEYS = ("id", "claims", "runs", "seconds", "versions", "scale")
_ORDER = {"cpu": 0, "half": 1, "paper": 2, "smoke": 3}


def documents(folder: Path, study: str | None = None) -> list[dict[str, Any]]:
    """Every results.json of a folder, or of one study in it, cpu scale before the paper's; each with "place", the
    folder where its figure lies, below `folder`.

    Raises:
        UsageError: a file that does not hold results, or a study named that has none.
    """
    names = [study] if study else sorted(place.name for place in folder.glob("*") if place.is_dir())
    found = []
    for name in names:
        files = [folder / name / RESULTS, *(folder / name / scale / RESULTS for scale in SCALES)]
        own = [_read(file, name) | {"place": str(file.parent.relative_to(folder))} for file in files if file.is_file()]
        found += sorted(own, key=lambda document: _ORDER.get(document["scale"], len(_ORDER)))
    if study and not found:
        raise UsageError(f"cannot read {folder / study / RESULTS}: there is none; run the study first")
    return found


def set_aside(place: Path, scale: str) -> None:
    """Make way for the results of a scale: those of another go into a folder of its name, an older one goes."""
    shutil.rmtree(place / scale, ignore_errors=True)
    try:
        before = read_json(place / RESULTS)["scale"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before == scale or before not in SCALES:
        return
    (place / before).mkdir(exist_ok=True)
    for file in place.iterdir():
        if file.is_file() and file.name != LOCK:
            file.replace(place / before / file.name)


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = read_json(file, finite=True)
        if document["id"] != name or not all(key in document for key in _KEYS):
            raise ValueError("not the results of this study")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read {file}: {error}; run the study first") from None
    return document
