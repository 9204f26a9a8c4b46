"""The whole of what the fault tests try a part of: ``python tests/campaign.py --output tests/faults/campaign.json``.

Each part is a test file with an environment variable that says how much of it to try. Every test's outcome is written
down when it ends; one that the file has already is not run again, so that a campaign may be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAULTS = "tests/faults/"


@dataclass(frozen=True)
class Part:
    """Arguments of pytest, and the environment that makes its tests try everything."""

    what: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def _mutations(count: int, *formats: str) -> Part:
    chosen = tuple(f"{FAULTS}test_fuzz.py::test_damaged_files[{name}]" for name in formats)
    return Part(f"{count:,} damaged files of each format", chosen, {"FLATMINIMA_MUTATIONS": str(count)})


DATA = tuple(f"data.{kind}" for kind in ("json", "jsonl", "csv", "npz", "pt"))
CONFIGURATIONS = tuple(f"config.{kind}" for kind in ("json", "yaml", "toml"))
RUNS = (
    "results.json",
    "metrics.jsonl",
    "run.json",
    "rank.json",
    "landscape.json",
    "result.json",
    "certificate.json",
    "a study's run",
)
PARTS = {
    "mutations": _mutations(
        10_000,
        "weights.safetensors",
        "weights.pt",
        "gaps.csv",
        "ledger.json",
        "ranked table",
        *DATA,
        *CONFIGURATIONS,
        *RUNS,
    ),
    "threads": Part(
        "100 trials of each pairing in two threads", (f"{FAULTS}test_threads.py",), {"FLATMINIMA_TRIALS": "100"}
    ),
    "untouched": Part(
        "every entry in 16 ambient modes, in one and in two threads, by 40 and more items of state",
        (f"{FAULTS}test_untouched.py",),
        {"FLATMINIMA_HOSTILE": "1"},
    ),
    "crash": Part(
        "a crash, a full disk and a failing one at every write",
        (f"{FAULTS}test_crash.py", "-k", "not reproduce and not demo"),
        {"FLATMINIMA_POINTS": "all"},
    ),
    "kills": Part(
        "20 kills of each command at random moments, and every run that ended between them",
        (f"{FAULTS}test_killed.py", "-k", "same_command"),
        {"FLATMINIMA_KILLS": "20"},
    ),
    "crash of long commands": Part(
        "a crash, a full disk or a failing one, in turn, at twelve of the writes",
        (f"{FAULTS}test_crash.py", "-k", "reproduce or demo"),
        {"FLATMINIMA_POINTS": "12"},
    ),
    "readers": Part(
        "every attack on every text of every document", (f"{FAULTS}test_readers.py",), {"FLATMINIMA_HOSTILE": "1"}
    ),
    "mutations by commands": _mutations(  # 30 to 200 ms of a core each
        500,
        "state.pt",
        "track.jsonl",
        "measures.json",
    ),
}


class Record:
    """Of pytest: writes each outcome down, and leaves out the tests that have one.

    Args:
        output: the JSON file. name: of the part.
    """

    def __init__(self, output: Path, name: str) -> None:
        self.output, self.name = output, name
        self.commit = os.environ.get("FLATMINIMA_COMMIT") or _commit()
        self.before = time.process_time()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        known = self._read()["parts"].get(self.name, {}).get("tests", {})
        config.hook.pytest_deselected(items=[item for item in items if item.name in known])
        items[:] = [item for item in items if item.name not in known]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped or (report.when != "call" and report.passed):
            return
        found = {"outcome": report.outcome, **dict(report.user_properties), "seconds": round(report.duration, 1)}
        found |= {"cpu_seconds": round(time.process_time() - self.before, 1), "commit": self.commit}
        found |= {"on": time.strftime("%Y-%m-%d", time.gmtime())}
        if report.failed:
            found["said"] = str(report.longrepr)[-3000:]
        self.before = time.process_time()
        document = self._read()
        part = PARTS[self.name]
        about = {"what": part.what, "environment": part.environment}
        tests = document["parts"].get(self.name, {}).get("tests", {}) | {report.nodeid.split("::")[-1]: found}
        failed = sum(test["outcome"] != "passed" for test in tests.values())
        document["parts"][self.name] = {**about, "passed": len(tests) - failed, "failed": failed, "tests": tests}
        self.output.write_text(json.dumps(document, indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        if self.output.exists():
            found: dict[str, Any] = json.loads(self.output.read_text())
            return found
        return {"python": platform.python_version(), "parts": {}}


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """One process a part, since its environment is read when the tests are imported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of outcomes; those that it has stay")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, by commas")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    output = options.output.resolve()
    if options.part is not None:
        os.chdir(ROOT)
        words = ["-q", "-p", "no:cacheprovider", *PARTS[options.part].arguments]
        sys.exit(pytest.main(words, plugins=[Record(output, options.part)]))
    if os.name == "posix":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do tests
    for name in options.parts.split(","):
        command = [sys.executable, __file__, "--output", str(output), "--part", name]
        subprocess.run(command, env=os.environ | PARTS[name].environment, check=False)


if __name__ == "__main__":
    main()
