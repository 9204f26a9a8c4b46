"""The page of the studies: what each claim came to, first, then every figure with its claims and what was reduced."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatminima.io import write_whole
from flatminima.report.page import render


def write_studies(documents: Sequence[dict[str, Any]], folder: Path, command: str = "") -> Path:
    """``index.html`` in a folder that has a folder a study, each with its figure.png.

    Args:
        documents: what `studies.reproduce` returned. folder: its output. command: that made them.

    Raises:
        UsageError: the page cannot be written.
    """
    verdicts = Counter(c["verdict"] for d in documents for c in d["claims"] if not c["control"])
    controls = Counter(c["verdict"] for d in documents for c in d["claims"] if c["control"])
    versions = documents[0]["versions"] if documents else {}
    page = render(
        "studies.html.j2",
        title="The papers' claims, tried again",
        subtitle=f"{len(documents)} studies",
        verdict=[
            f"Of the papers' claims {verdicts['holds']} hold, {verdicts['fails']} fail and "
            f"{verdicts['undecided']} are undecided at this scale.",
            f"Of our own comparisons beside them {controls['holds']} hold, {controls['fails']} fail and "
            f"{controls['undecided']} are undecided.",
            "An interval is at 95 %, over seeds where there are three; a claim is undecided where it contains zero.",
        ],
        studies=[_shown(d, folder) for d in documents],
        provenance=[
            *([("command", command)] if command else []),
            ("cost", duration(sum(d["seconds"] for d in documents))),
            *versions.items(),
        ],
    )
    path = folder / "index.html"
    write_whole(path, page)
    return path


def here(claim: dict[str, Any]) -> str:
    """A claim's statistic with its interval, as text."""
    if claim["statistic"] is None:
        return claim["note"] or f"no {claim['measured']}"
    text = f"{claim['measured']} {claim['statistic']:+.3g}"
    return text if claim["low"] is None else f"{text} ({claim['low']:+.3g} to {claim['high']:+.3g})"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Examples:
        >>> duration(59.4), duration(600)
        ('59 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _shown(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    own = folder / document["id"]
    figure = own / "figure.png"
    picture = ""
    if figure.exists():
        picture = "data:image/png;base64," + base64.b64encode(figure.read_bytes()).decode()
    return document | {
        "figure": picture,
        "pages": [f"{document['id']}/{page.name}" for page in sorted(own.glob("*.html"))],
        "cost": duration(document["seconds"]),
        "claims": [c | {"here": here(c)} for c in document["claims"]],
        "failed": [run for run in document["runs"] if "error" in run],
    }
