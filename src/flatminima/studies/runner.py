"""Runs of a study: keyed by the hash of their configuration, each a file written whole, so a kill loses one run."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch

import flatminima
from flatminima import progress
from flatminima.errors import UsageError
from flatminima.report.theme import style
from flatminima.studies.engines import execute
from flatminima.studies.images import find
from flatminima.studies.study import Config, Result, Study
from flatminima.table import write_whole

SCHEMA = 1
_PIXELS = 90  # an inch of figure.png


def reproduce(
    study: Study,
    output: str | Path,
    *,
    scale: str = "smoke",
    data: str | None = None,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    engine: str = "local",
    address: str | None = None,
) -> dict[str, Any]:
    """Run what of a study is not done yet, and write its verdicts to ``<output>/<id>/results.json``.

    Args:
        study: what to run. output: folder; made if absent. scale: "smoke", "cpu" or "paper".
        data: where the data sets lie, see `images.find`; None for the Hugging Face hub. Smoke scale needs none.
        jobs: processes, at least 1; more than one start afresh ("spawn"), each with one thread.
        engine: "local", or "ray" with `jobs` processors of its own or the cluster at `address`; see `engines.execute`.
        shard: (i, N): only every N-th run from the i-th, 1 <= i <= N; whatever other shards left is read.

    Returns:
        schema, id, paper, title, scale, data, reduction, runs (config, result or error, seconds), missing, claims,
        seconds, versions. A failed run is recorded, is tried again by the next call, and ends nothing.

    Raises:
        UsageError: jobs or a shard out of range, or a folder that cannot be written. UnknownName: no such scale or
            engine. MissingExtra: Ray is not installed.
    """
    index, shards = shard
    if jobs < 1 or not 1 <= index <= shards:
        raise UsageError(f"got jobs={jobs}, shard={index}/{shards}; need jobs >= 1 and 1 <= i <= N")
    configs = study.list_runs(scale)
    sources = find(study.datasets, data)
    folder = Path(output) / study.id
    shelf = Path(output) / (study.runs_of or study.id) / "runs"
    try:
        for needed in (folder, shelf):
            needed.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None
    paths = [shelf / f"{key(study, config)}.json" for config in configs]
    todo = [i for i in range(index - 1, len(configs), shards) if not _succeeded(_read(paths[i]))]
    outcomes = execute(study, configs, sources, todo, jobs=jobs, engine=engine, address=address)
    for done, (i, outcome) in enumerate(outcomes, 1):
        write_whole(paths[i], json.dumps(outcome, indent=1, allow_nan=False) + "\n")
        progress.report(study.id, done, len(todo))
    runs = [run for path in paths if (run := _read(path)) is not None]
    succeeded = [run["result"] for run in runs if _succeeded(run)]
    document = {
        "schema": SCHEMA,
        "id": study.id,
        "paper": study.paper,
        "title": study.title,
        "scale": scale,
        "reduction": study.reduction[scale],
        "runs": runs,
        "missing": len(configs) - len(succeeded),
        "claims": [v.to_dict() for v in study.claims(succeeded)],
        "seconds": sum(run["seconds"] for run in runs),
        "versions": _versions(),
    }
    write_whole(folder / "results.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    if succeeded:
        _draw(study, succeeded, folder)
    return document


def key(study: Study, config: Config) -> str:
    """The hash that names a run: the study, its configuration and the versions that computed it."""
    text = json.dumps({"study": study.runs_of or study.id, "config": config, "versions": _versions()}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _draw(study: Study, results: list[Result], folder: Path) -> None:
    """figure.png and figure.svg, and whatever else the study writes."""
    with style(study.id):
        figure = study.figure(results)
        for kind in ("png", "svg"):
            save = partial(figure.savefig, format=kind, dpi=_PIXELS, facecolor="white")
            write_whole(folder / f"figure.{kind}", save)
    if study.extra is not None:
        study.extra(results, folder)


def _succeeded(run: dict[str, Any] | None) -> bool:
    return run is not None and "result" in run


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "seconds" in found else None


def _versions() -> dict[str, str]:
    return {
        "flatminima": flatminima.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
