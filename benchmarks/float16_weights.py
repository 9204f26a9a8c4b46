"""What rounding the kept networks of the studies to float16 changes: each number of a run, measured on both.

Networks are taken from results/studies/networks, so that nothing is trained. A minute a run:

    python benchmarks/float16_weights.py --data DATA neyshabur-width wang-pertopt
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file

from flatminima.studies import STUDIES
from flatminima.studies.engines import Work, attempt
from flatminima.studies.networks import FOLDER
from flatminima.studies.runner import sources_of

STUDIES_MADE = Path(__file__).resolve().parents[1] / "results" / "studies"
KEPT = STUDIES_MADE / FOLDER


def first_kept(name: str) -> dict[str, Any]:
    """The first run at half scale of which all networks are kept."""
    runs = json.loads((STUDIES_MADE / name / "results.json").read_text())["runs"]
    return next(r for r in runs if r.get("networks") and all((KEPT / file).is_file() for file in r["networks"]))


def measured(name: str, run: dict[str, Any], data: str, *, rounded: bool) -> dict[str, float]:
    """The run's numbers, taken anew from its networks."""
    with tempfile.TemporaryDirectory() as folder:
        for file in run["networks"]:
            with safetensors.safe_open(KEPT / file, "pt") as opened:
                metadata = opened.metadata()
            weights = load_file(KEPT / file)
            if rounded:
                weights = {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in weights.items()}
            place = Path(folder) / FOLDER / file
            place.parent.mkdir(exist_ok=True)
            save_file(weights, place, metadata=metadata)
        work = Work(run["config"], sources_of(STUDIES[name], "half", data), Path(folder) / name / "runs" / "run.json")
        work.file.parent.mkdir(parents=True)
        found = attempt(STUDIES[name].run, work)
        if found is None or found.get("networks") != run["networks"]:
            raise SystemExit(f"{name}: its networks were not taken, or the run failed: {found and found.get('error')}")
        return dict(numbers(found["result"]))


def numbers(value: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result, by its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{at}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield at, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("studies", nargs="+")
    given = parser.parse_args()
    for name in given.studies:
        run = first_kept(name)
        whole, half = (measured(name, run, given.data, rounded=rounded) for rounded in (False, True))
        changed = {at: abs(half[at] / was - 1) if was else float("inf") for at, was in whole.items() if half[at] != was}
        most = max(changed, key=lambda at: changed[at], default="none")
        print(f"{name}: {len(changed)} of {len(whole)} numbers change; most: {most}, {changed.get(most, 0.0):.2%}")


if __name__ == "__main__":
    main()
