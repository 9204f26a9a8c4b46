"""A study from its configurations to its verdicts; what is done already, also in another clone, is not done again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from flatminima import progress
from flatminima.catalog.choices import SCALES
from flatminima.errors import FolderInUse, UsageError
from flatminima.io import PATIENCE, claimed, json_text, refuse_in_use, versions, write_whole
from flatminima.report.axes import legends_beside
from flatminima.report.theme import style, svg, themed
from flatminima.studies.claims import of_study
from flatminima.studies.engines import Work, check_engine, execute
from flatminima.studies.images import find
from flatminima.studies.result_files import RESULTS, SCHEMA, refuse_other, set_aside
from flatminima.studies.resumable import share
from flatminima.studies.run_store import RunStore, read_run, succeeded, under_way
from flatminima.studies.study import Config, Result, Sources, Study, calling
from flatminima.studies.verdict import Verdict

_KEPT = "the runs are kept"
_PIXELS = 90  # an inch of figure.png
_MOMENT = 0.1  # seconds between two looks at a run that another process is at


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
    device: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run what of a study is not done yet, and write its verdicts to ``<output>/<id>/results.json``.

    Args:
        study: what to run. output: folder; made if absent. scale: "smoke", "cpu", "half" or "paper".
        data: where the data sets lie, see `images.find`; None for the Hugging Face hub. Smoke scale needs none.
        jobs: processes, at least 1; more than one start afresh ("spawn"), each with one thread.
        engine: "local", or "ray" with `jobs` processors of its own or the cluster at `address`; see `engines.execute`.
        device: where data and networks lie, e.g. "cuda"; None for the CPU. It is no part of a run's configuration:
            results differ by rounding, and each run says where it was computed.
        seed: number of a replication: all its seeds are others; 0 is the one whose results are committed.
        shard: (i, N): only every N-th run from the i-th, 1 <= i <= N; whatever other shards left is read.

    Returns:
        schema, id, paper, title, scale, replication, reduction, runs (config, result or error, seconds), missing,
        claims, seconds, versions. A failed run is recorded, is tried again by the next call, and ends nothing. The
        claims are the papers' that this study's runs try, then the study's own; see `judged`.

    Raises:
        UsageError: jobs or a shard out of range, or a folder that cannot be written. UnknownName: no such scale or
            engine. MissingExtra: Ray is not installed.
    """
    ours = _part(jobs, shard)
    configs = study.list_runs(scale, seed)
    sources = sources_of(study, scale, data)
    check_engine(study, engine, jobs)
    refuse_other(Path(output) / study.id, scale, seed)
    store = _opened(study, Path(output), configs)
    files = [store.file(config) for config in configs]
    todo = [
        Work(config, sources, file, device)
        for config, file in zip(configs[ours], files[ours], strict=True)
        if not succeeded(read_run(file))
    ]
    _run(study, store, todo, jobs, engine, address)
    return collect(study, output, scale=scale, seed=seed)


def sources_of(study: Study, scale: str, data: str | None) -> Sources:
    """Find the data sets that a scale's configurations use, see `images.find`."""
    used = [config.get("data") for config in study.list_runs(scale)]
    unsaid = not all(isinstance(name, str) for name in used)  # a study that does not say which
    return find([name for name in study.datasets if unsaid or name in used], data)


def collect(study: Study, output: str | Path, *, scale: str = "smoke", seed: int = 0) -> dict[str, Any]:
    """Judge the runs of a scale that are done and write results.json and the figure; runs nothing.

    Args, Returns and Raises as of `reproduce`.
    """
    configs, folder = study.list_runs(scale, seed), Path(output) / study.id
    store = _opened(study, Path(output), configs)
    runs = [run for config in configs if (run := read_run(store.file(config))) is not None]
    results = [run["result"] for run in runs if succeeded(run)]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "id": study.id,
        "paper": study.paper,
        "title": study.title,
        "scale": scale,
        "replication": seed,
        "reduction": study.reduction[scale],
        "runs": runs,
        "missing": len(configs) - len(results),
        "claims": [],
        "seconds": sum(run["seconds"] for run in runs),
        "versions": versions(),
    }
    document["claims"] = judged(study, document)
    with claimed(folder, wait=PATIENCE):
        set_aside(folder, scale)
        write_whole(folder / RESULTS, json_text(document) + "\n")
        if results:
            _draw(study, results, folder)
    return document


def judged(study: Study, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims of a results.json anew, from its runs: the papers' by the registry, then the study's own.

    At smoke scale a study of the papers has no verdict: it only shows that the machinery works.
    """
    of_papers = of_study(document)
    results = [run["result"] for run in document["runs"] if succeeded(run)]
    own: Sequence[Verdict] = ()
    if not of_papers or document["scale"] != "smoke":
        with calling(study, "claims(results)", _KEPT):
            own = study.claims(results)
            if not isinstance(own, (list, tuple)) or not all(isinstance(verdict, Verdict) for verdict in own):
                raise TypeError("what it gives is no list of verdicts, such as trend(...) makes")
    return [verdict.to_dict() for verdict in (*of_papers, *own)]


def plan(
    study: Study,
    output: str | Path,
    *,
    scale: str = "smoke",
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    seed: int = 0,
) -> dict[str, Any]:
    """Plan what `reproduce` would do; reads the folder, writes nothing.

    Returns:
        id, scale, reduction, runs, done, to_do, seconds_left: by the median of the runs that are done, as one may have
        slept with the machine, on so many processes; 0 if none is left, None if none is done.
    """
    configs = study.list_runs(scale, seed)[_part(jobs, shard)]
    folder = Path(output)
    store = RunStore(folder, study)
    places = [folder / study.id, *(folder / study.id / name for name in SCALES)]
    known = [store.committed(place / RESULTS) for place in places]
    found = [read_run(store.file(c)) or next((run for of in known if (run := of(c))), None) for c in configs]
    seconds = [run["seconds"] for run in found if run is not None and succeeded(run)]
    left = len(configs) - len(seconds)
    each = median(seconds) if seconds else None
    return {
        "id": study.id,
        "scale": scale,
        "reduction": study.reduction[scale],
        "runs": len(configs),
        "done": len(seconds),
        "to_do": left,
        "seconds_left": 0.0 if not left else None if each is None else each * left / jobs,
    }


def _opened(study: Study, output: Path, configs: list[Config]) -> RunStore:
    """The run store, with those of the runs that a results.json of the folder has."""
    store = RunStore(output, study)
    store.open()
    for place in (output / study.id, *(output / study.id / name for name in SCALES)):
        store.adopt(place / RESULTS, configs)
    return store


def _part(jobs: int, shard: tuple[int, int]) -> slice:
    """The runs of a shard (i, N)."""
    index, shards = shard
    if jobs < 1 or not 1 <= index <= shards:
        raise UsageError(f"got jobs={jobs}, shard={index}/{shards}; need jobs >= 1 and 1 <= i <= N")
    return slice(index - 1, None, shards)


def _run(study: Study, store: RunStore, todo: list[Work], jobs: int, engine: str, address: str | None) -> None:
    """Do the work, store each run as it is done, and report how far the whole study is."""
    open_, total = {under_way(work.file) for work in todo}, len(todo)

    def told() -> None:
        progress.report(study.id, total - len(open_) + sum(map(share, open_)), total)

    told()
    others = []
    for work, outcome in execute(study, todo, jobs=jobs, engine=engine, address=address, told=told):
        if outcome is not None:
            store.put(work.config, outcome)
        else:
            others.append(work)
        open_.discard(under_way(work.file))
        told()
    _await(others)


def _await(others: list[Work]) -> None:
    """Let runs that other processes are at end, for a minute in all: two commands at once then say the same."""
    until = time.monotonic() + PATIENCE
    for work in others:
        while time.monotonic() < until:
            try:
                refuse_in_use(under_way(work.file), wait=0.0)
            except FolderInUse:
                time.sleep(_MOMENT)
            else:
                break


def redraw(study: Study, output: Path, document: dict[str, Any]) -> None:
    """The figures and the claims of a results.json anew, as this version draws and judges them.

    Args:
        output: folder of the studies. document: of `result_files.documents`, of this study.
    """
    folder = output / document["place"]
    stored = {key: value for key, value in document.items() if key != "place"} | {"claims": judged(study, document)}
    write_whole(folder / RESULTS, json_text(stored) + "\n")
    results = [run["result"] for run in document["runs"] if succeeded(run)]
    if results:
        _draw(study, results, folder)


def _draw(study: Study, results: list[Result], folder: Path) -> None:
    """figure.png, figure.svg, which follows the reader's theme, and whatever else the study writes."""
    from matplotlib.figure import Figure

    with style(study.id):
        with calling(study, "figure(results)", _KEPT):
            figure = study.figure(results)
            if not isinstance(figure, Figure):
                raise TypeError("what it gives is no figure of matplotlib")
        legends_beside(figure)
        figure.dpi = _PIXELS  # of what an SVG has as a picture, too
        save = partial(figure.savefig, format="png", dpi=_PIXELS, facecolor="white")
        write_whole(folder / "figure.png", save)
        write_whole(folder / "figure.svg", themed(svg(figure, f"Figure of {study.id}: {study.title}")) + "\n")
    if study.extra is not None:
        with calling(study, "extra(results, folder)", _KEPT):
            study.extra(results, folder)
