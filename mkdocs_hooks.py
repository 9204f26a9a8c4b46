"""What the documents' site takes from the catalogue: the measures' pages, two indices, and the reference's names.

`mkdocs.yml` names this file; the catalogue imports no torch, so that the site is built without one.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "src"))

from flatminima import catalog
from flatminima.catalog.bounds import PARTS
from flatminima.catalog.uses import used_by

INDEX = "<!-- the catalogue's measures -->"
STATISTICS = "<!-- the catalogue's statistics -->"
_NAMED = {
    "measures": {name: row.module for name, row in catalog.MEASURES.items()},
    "bounds": {name: row.module for name, row in catalog.BOUNDS.items()}
    | {name: file for file, names in PARTS.items() for name in names},
    "models": {name: row.module for name, row in catalog.NETWORKS.items()},
}


def on_config(config: Any) -> Any:
    """Put a page for each measure under "Measures", after those that mkdocs.yml names."""
    for part in config["nav"]:
        if isinstance(part, dict) and "Measures" in part:
            part["Measures"] += [f"measures/{name}.md" for name in catalog.MEASURES]
    return config


def on_page_markdown(markdown: str, page: Any = None, **_: Any) -> str:
    """Write the index of measures, a line per function where the reference names a package of the catalogue, and the
    path in place of a link to what the site does not hold: results, benchmarks, examples."""
    if INDEX in markdown:
        markdown = markdown.replace(INDEX, index())
    if STATISTICS in markdown:
        markdown = markdown.replace(STATISTICS, index_of_statistics())
    for package, homes in _NAMED.items():
        names = "\n".join(f"::: flatminima.{package}.{homes[name]}.{name}" for name in sorted(homes))
        markdown = markdown.replace(f"::: flatminima.{package}\n", names + "\n")
    return markdown if page is None else _outside(markdown, Path(page.file.src_uri).parent)


def _outside(markdown: str, folder: Path) -> str:
    """Links out of docs/ as paths in the repository."""

    def named(link: re.Match[str]) -> str:
        path = os.path.normpath(Path("docs") / folder / link[2].partition("#")[0])
        return link[0] if path.startswith("docs/") else f"{link[1]} (`{path}` in the repository)"

    return re.sub(r"\[([^\]]+)\]\((?!\w+:)([^)#\s]+(?:#[^)]*)?)\)", named, markdown)


def index() -> str:
    """A table of the measures: what each is, what it costs, what it is not defined for."""
    lines = ["| measure | what it is | better | cost | not defined for |", "|---|---|---|---|---|"]
    for name, row in catalog.MEASURES.items():
        lines.append(
            f"| [{name}]({name}.md) | {row.summary} ({row.paper}, {row.equation}) | {row.direction} | {row.needs} | "
            f"{row.undefined or 'nothing'} |"
        )
    return "\n".join(lines)


def index_of_statistics() -> str:
    """A table of the statistics: what each is, what it costs, where it is from, which measures use it."""
    lines = ["| statistic | what it is | cost | source | used by |", "|---|---|---|---|---|"]
    for name, row in catalog.STATISTICS.items():
        users = ", ".join(used_by()[name]) or "its reader: no measure"
        lines.append(f"| `{name}` | {row.summary} | {row.cost} | {row.source or 'common'} | {users} |")
    return "\n".join(lines)
