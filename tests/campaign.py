"""The whole of what the fault tests try a part of: ``python tests/campaign.py --output benchmarks/results/hostile.json``.

Each part is a test file with an environment variable that says how much of it to try. The results are written after
each part, so that a campaign may be stopped, and continued with `--parts`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
FAULTS = "tests/faults/"


@dataclass(frozen=True)
class Part:
    """Arguments of pytest, and the environment that makes its tests try everything."""

    what: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def _mutations(*formats: str, count: int = 10_000) -> Part:
    chosen = tuple(f"{FAULTS}test_fuzz.py::test_damaged_files[{name}]" for name in formats)
    return Part(f"{count:,} damaged files of each format", chosen, {"FLATMINIMA_MUTATIONS": str(count)})


PARTS = {
    "mutations": _mutations("weights.safetensors", "weights.pt", "gaps.csv", "ledger.json", "ranked table"),
    "threads": Part(
        "100 trials of each pairing in two threads", (f"{FAULTS}test_threads.py",), {"FLATMINIMA_TRIALS": "100"}
    ),
    "untouched": Part(
        "every entry of the library in 16 ambient modes, in one and in two threads, 40 and more items of state",
        (f"{FAULTS}test_untouched.py",),
        {"FLATMINIMA_HOSTILE": "1"},
    ),
    "crash": Part(
        "a crash, a full disk and a failing one at every write",
        (f"{FAULTS}test_crash.py", "-k", "not reproduce and not demo"),
        {"FLATMINIMA_POINTS": "all"},
    ),
    "mutations by commands": _mutations("certificate.json", "run.json", "metrics.jsonl", "state.pt", "results.json"),
    "kills": Part(
        "20 kills of each command at random moments", (f"{FAULTS}test_killed.py",), {"FLATMINIMA_KILLS": "20"}
    ),
    "crash of long commands": Part(
        "a crash, a full disk or a failing one, in turn, at every write",
        (f"{FAULTS}test_crash.py", "-k", "reproduce or demo"),
        {"FLATMINIMA_POINTS": "each"},
    ),
    "mutations by pages": _mutations("measures.json", "a study's run", count=3000),  # 50 to 100 ms each
    "readers": Part("every attack on every text of every document", (f"{FAULTS}test_readers.py",),
                    {"FLATMINIMA_HOSTILE": "1"}),
}  # fmt: skip


def run(part: Part, only: str | None) -> dict[str, Any]:
    """Every test's outcome, with what it recorded and its first failures; `only` those that pytest's -k selects."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-o", "junit_family=xunit1"]  # the one that has properties
        command += ["-k", only] if only is not None else []  # the last one counts
        started, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command[:3], *part.arguments, *command[3:], "--basetemp", f"{folder}/files"],
            cwd=ROOT,
            env=os.environ | part.environment,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        tests = [_outcome(case) for case in ElementTree.parse(report).iter("testcase")]
    return {
        "what": part.what,
        "environment": part.environment,
        "begun": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(started)),
        "seconds": round(time.time() - started),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "tests": {test.pop("name"): test for test in tests if test["outcome"] != "skipped"},
    }


def together(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A part that was tried in pieces."""
    tests = before.get("tests", {}) | found["tests"]
    clocks = {clock: before.get(clock, 0) + found[clock] for clock in ("seconds", "cpu_seconds")}
    return found | clocks | {"failed": sum(t["outcome"] != "passed" for t in tests.values()), "tests": tests}


def _outcome(case: ElementTree.Element) -> dict[str, Any]:
    found: dict[str, Any] = {"name": case.attrib["name"], "outcome": "passed"}
    found |= {p.attrib["name"]: int(p.attrib["value"]) for p in case.iter("property")}
    for kind in ("failure", "error", "skipped"):
        for child in case.iter(kind):
            found["outcome"] = kind
            found["said"] = (child.attrib.get("message") or "")[:2000]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; tests that it has already are replaced")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, by commas")
    parser.add_argument("--only", help="tests of them, as pytest's -k; the others of a part stay as they are")
    options = parser.parse_args()
    if os.name == "posix":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do tests
    document = json.loads(options.output.read_text()) if options.output.exists() else {"parts": {}}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in options.parts.split(","):
        found = run(PARTS[name], options.only)
        for test in found["tests"].values():
            test["commit"] = os.environ.get("FLATMINIMA_COMMIT", commit.stdout.strip())
        document["parts"][name] = together(document["parts"].get(name, {}), found)
        document["python"] = platform.python_version()
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
