"""The store of a study's runs: a file each, written whole when done; beside it a folder while it is under way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatminima.io import DAY, clear_left, json_text, make_folder, run_key, write_whole
from flatminima.studies.releases import computed_alike, computed_by
from flatminima.studies.study import Config, Study
from flatminima.untrusted import Unreadable, read_json

UNDER_WAY = ".part"
Run = dict[str, Any]  # config, result or error, seconds


@dataclass(frozen=True)
class RunStore:
    """The runs of a study in an output folder; a study that reads another's runs has that one's store."""

    output: Path
    study: Study

    @property
    def folder(self) -> Path:
        return self.output / self._name / "runs"

    @property
    def _name(self) -> str:
        return self.study.runs_of or self.study.id

    def open(self) -> None:
        """Make the folders.

        Raises:
            UsageError, WriteFailed: they cannot be written.
        """
        for needed in (self.folder, self.output / self.study.id):
            make_folder(needed)
        clear_left(self.folder, DAY)  # other processes may be writing runs

    def file(self, config: Config) -> Path:
        """Named by the hash of the study, the configuration and the versions that compute it."""
        return _file(self.folder, self._name, config)

    def put(self, config: Config, run: Run) -> None:
        """Write a run down; if it has a result, clear away what it kept while it was under way."""
        file = self.file(config)
        write_whole(file, json_text(run) + "\n")
        if succeeded(run):
            shutil.rmtree(under_way(file), ignore_errors=True)

    def committed(self, results: Path) -> Callable[[Config], Run | None]:
        """The runs of a results.json of releases that compute alike: a clone has that file, and not the store."""
        try:
            document = read_json(results, finite=True)
            runs = document["runs"] if computed_alike(document["versions"]) else []
            known = {json.dumps(run["config"], sort_keys=True): run for run in runs if succeeded(run)}
        except (OSError, ValueError, KeyError, TypeError):
            known = {}
        return lambda config: known.get(json.dumps(config, sort_keys=True))

    def adopt(self, results: Path, configs: list[Config]) -> None:
        """Put the runs of a results.json here that are absent."""
        known = self.committed(results)
        for config in configs:
            run = known(config)
            if run is not None and read_run(self.file(config)) is None:
                self.put(config, run)


def result_beside(file: Path, config: Config) -> Any:
    """The result of another run of the study whose run lies in `file`; None if it is not done."""
    run = read_run(_file(file.parent, file.parent.parent.name, config))
    return run["result"] if run is not None and succeeded(run) else None


def _file(folder: Path, study: str, config: Config) -> Path:
    key = run_key({"study": study, "config": config, "versions": computed_by()})
    return folder / f"{key}.json"


def read_run(file: Path) -> Run | None:
    """A run that was written down; None if there is none, or the file is damaged."""
    try:
        found: Run = read_json(file, finite=True)
    except Unreadable:
        return None
    return found if _whole(found) else None


def _whole(found: Any) -> bool:
    """Whether it has the form of a run."""
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        return False
    seconds = found.get("seconds")
    return (
        isinstance(seconds, int | float) and not isinstance(seconds, bool) and ("result" in found or "error" in found)
    )


def succeeded(run: Run | None) -> bool:
    """Whether it has a result; one that failed is tried again."""
    return run is not None and "result" in run


def under_way(file: Path) -> Path:
    """The folder of a run while it is computed."""
    return file.with_suffix(UNDER_WAY)
