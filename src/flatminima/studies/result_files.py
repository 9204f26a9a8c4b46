"""The results of every study in a folder: what the index shows, the papers' and one's own, at every scale.

A study's folder has the results of the scale that ran last, and those of another scale in a folder of its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flatminima.catalog.choices import SCALES
from flatminima.errors import UsageError
from flatminima.io import LOCK
from flatminima.untrusted import read_json

RESULTS = "results.json"
SCHEMA = 2
_KEYS = ("id", "claims", "runs", "seconds", "versions", "scale")
_ORDER = {"paper": 0, "half": 1, "cpu": 2, "smoke": 3}  # the larger decides, and comes first


def documents(folder: Path, study: str | None = None, *, besides: Collection[Path] = ()) -> list[dict[str, Any]]:
    """Every results.json of a folder, or of one study in it, cpu scale before the paper's; each with "place", the
    folder where its figure lies, below `folder`.

    Args:
        folder: of the studies; none there is one without results. study: its id. besides: files that are left out.

    Raises:
        UsageError: a file that does not hold results, or a study named that has none; no folder but a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot read {folder}: it is no folder; name the folder of the studies")
    names = [study] if study else sorted(place.name for place in folder.glob("*") if place.is_dir())
    found = []
    for name in names:
        files = [folder / name / RESULTS, *(folder / name / scale / RESULTS for scale in SCALES)]
        own = [
            _read(file, name) | {"place": str(file.parent.relative_to(folder))}
            for file in files
            if file.is_file() and file not in besides
        ]
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
        _check(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot read {file}: {error}; run the study again, or remove the file") from None
    return document


def _check(document: dict[str, Any]) -> None:
    """Refuse what a page would fail at."""
    if document.get("schema", SCHEMA) > SCHEMA:
        raise ValueError(f"written by a newer version (schema {document['schema']}, here {SCHEMA}): update flatminima")
    if document["scale"] not in SCALES:
        raise ValueError(f"no such scale: {document['scale']!r}")
    document.setdefault("missing", 0)
    forms: dict[str, type | tuple[type, ...]] = {"runs": list, "claims": list, "versions": dict, "missing": int}
    for key, form in (forms | {"seconds": (int, float)}).items():
        if not isinstance(document[key], form):
            raise ValueError(f"{key!r} is of another form")
    for run in document["runs"]:
        if not isinstance(run["config"], dict) or not ("error" in run or isinstance(run.get("result"), dict)):
            raise ValueError("a run is of another form")
    if not all(isinstance(claim, dict) for claim in document["claims"]):
        raise ValueError("a claim is of another form")


def refuse_other(place: Path, scale: str, replication: int) -> None:
    """Refuse to replace results of other seeds: a folder holds one replication of a scale.

    Raises:
        UsageError: it has another.
    """
    for file in (place / RESULTS, place / scale / RESULTS):
        try:
            document = read_json(file)
            there = document.get("replication", 0) if document["scale"] == scale else replication
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if there != replication:
            raise UsageError(
                f"{file} has the runs of --seed {there}, and those of --seed {replication} would take its place; "
                "choose another --output"
            )
