"""docs/which-measure.md, and the line of every measure's page that says how well it ranked, from results/zoo.csv.

python benchmarks/zoo.py --mnist FOLDER --cifar FOLDER && python benchmarks/which_measure.py
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

from flatminima import catalog
from flatminima.estimate import Estimate
from flatminima.ranking import RankTable, rank
from flatminima.table import MeasureTable

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs"
HYPERPARAMETERS = ("width", "dropout", "lr", "batch_size", "weight_decay")
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
MARK = "**In our zoo.**"


def tables(rows: list[dict[str, str]]) -> list[MeasureTable]:
    """The rows as tables of measures."""
    out = []
    for row in rows:
        estimates = {}
        for name in catalog.MEASURES:
            if name in row:
                direction = catalog.measure_row(name).direction
                value = float(row[name]) if row[name] else None
                missing = None if row[name] else "undefined for this network"
                estimates[name] = Estimate(value, undefined=missing, direction=direction)
        out.append(MeasureTable(estimates, 500, 0, 0.0, 0.0, 0.0, "cross_entropy", ""))
    return out


def scored(rows: list[dict[str, str]]) -> RankTable:
    """Every measure, scored on the networks that reached the target loss."""
    gaps = [float(row["gap"]) for row in rows]
    points = [{k: row[k] for k in HYPERPARAMETERS} for row in rows]
    return rank(tables(rows), gaps, hyperparameters=points)


def line(name: str, found: dict[str, RankTable]) -> str:
    """For the measure's page."""
    parts = []
    for data, table in found.items():
        c = table.correlations.get(name)
        if c is None or c.tau is None:
            parts.append(f"{NAMES[data]}: undefined ({'not measured' if c is None else c.undefined})")
            continue
        k = table.controlled[name]
        parts.append(
            f"{NAMES[data]}: τ {c.tau:+.2f} [{c.low:+.2f}, {c.high:+.2f}], granulated {k.granulated:+.2f}, "
            f"{k.worst:.0%} of pairs wrong in the worst comparison"
        )
    return f"{MARK} {'; '.join(parts)}. [What that means](../which-measure.md)."


def insert(page: Path, text: str) -> None:
    """The line ahead of the references, in place of an earlier one."""
    body = page.read_text(encoding="utf-8")
    body = re.sub(rf"^{re.escape(MARK)}.*\n\n", "", body, flags=re.MULTILINE)
    body = body.replace("**References", f"{text}\n\n**References", 1)
    page.write_text(body, encoding="utf-8")


def rows_of(table: RankTable) -> list[str]:
    out = []
    for name, c in table.correlations.items():
        page = PAGES / "measures" / f"{name}.md"
        shown = f"[{name}](measures/{name}.md)" if page.exists() else name
        if c.tau is None:
            out.append(f"| {shown} | – | – | – | – | {c.networks} |")
            continue
        k = table.controlled[name]
        worst = k.environment or ("", "", "")
        out.append(
            f"| {shown} | {c.tau:+.2f} [{c.low:+.2f}, {c.high:+.2f}] | {k.granulated:+.2f} | {k.conditional:.3f} | "
            f"{k.worst:.0%} ({worst[0]} {worst[1]} / {worst[2]}) | {c.networks} |"
        )
    return out


def verdict(found: dict[str, RankTable]) -> list[str]:
    """Which measures are above, below and beside 0 on both data sets."""
    sure: dict[str, list[str]] = {"above": [], "below": [], "mixed": []}
    shared = set.intersection(*(set(t.correlations) for t in found.values()))
    for name in sorted(shared):
        cs = [t.correlations[name] for t in found.values()]
        if any(c.low is None or c.high is None for c in cs):
            continue
        if all(c.low > 0 for c in cs):
            sure["above"].append(name)
        elif all(c.high < 0 for c in cs):
            sure["below"].append(name)
        else:
            sure["mixed"].append(name)
    return [
        f"- **Above 0 beyond the interval on both:** {', '.join(sure['above']) or 'none'}.",
        f"- **Below 0 on both** (they order networks against their gap): {', '.join(sure['below']) or 'none'}.",
        f"- **Neither:** {', '.join(sure['mixed']) or 'none'}.",
    ]


def main() -> int:
    with open(HERE / "results" / "zoo.csv", newline="", encoding="utf-8") as file:
        every: list[dict[str, Any]] = list(csv.DictReader(file))
    reached = [row for row in every if row["reached"] == "True"]
    found = {}
    for data in NAMES:
        mine = [row for row in reached if row["data"] == data]
        if mine:
            found[data] = scored(mine)
    text = [(HERE / "which_measure.head.md").read_text(encoding="utf-8").rstrip(), ""]
    text.append(
        f"{len(every)} of the grid's 216 networks were trained so far; {len(reached)} reached the target loss and are "
        "compared.\n"
    )
    text += verdict(found)
    for data, table in found.items():
        text += [
            f"\n## {NAMES[data]}, {table.networks} networks\n",
            "| measure | Kendall's τ [95%] | granulated | conditional | worst comparison, pairs wrong | networks |",
            "|---|---|---|---|---|---|",
            *rows_of(table),
        ]
    (PAGES / "which-measure.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    for page in (PAGES / "measures").glob("*.md"):
        if page.stem in catalog.MEASURES:
            insert(page, line(page.stem, found))
    print(PAGES / "which-measure.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
