"""The page of the studies: what the papers' sentences came to, then every figure with its sentences, at every scale."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.catalog import PAPERS
from flatminima.io import write_whole
from flatminima.report.page import render_template
from flatminima.untrusted import read_bytes

_SHORT = 0.005  # hours of a core, below which a number says nothing


def write_studies(
    documents: Sequence[dict[str, Any]],
    folder: Path,
    command: str = "",
    findings: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """``index.html`` of all studies in a folder, the papers' and one's own, each scale with its figure.

    Args:
        documents: results, each with "own", "beyond" and "place", where its figure lies below `folder`.
        folder: of them. command: that made the page.
        findings: every claim of the papers, as `claims.Finding.to_dict` has it.

    Raises:
        UsageError: the page cannot be written.
    """
    versions = documents[-1]["versions"] if documents else {}
    parts: dict[str, list[dict[str, Any]]] = {"papers": [], "beyond": [], "own": []}
    for document in documents:
        part = "own" if document.get("own") else "beyond" if document.get("beyond") else "papers"
        parts[part].append(_shown(document, folder))
    tried = dict.fromkeys(f["paper"] for f in findings)
    words, counted = overview(findings, {key: PAPERS[key].short for key in tried})
    page = render_template(
        "studies.html.j2",
        title="The papers' claims, tried again",
        subtitle=f"{len({d['id'] for d in documents})} studies",
        verdict=summary(findings) if findings else [f"{len(parts['own'])} studies of your own."],
        documents=[name for name, _ in counted],
        overview=[(word, [counts[i] for _, counts in counted]) for i, word in enumerate(words)],
        **{part: _by_study(shown) for part, shown in parts.items()},
        calculated=[f for f in findings if "calculation" in f["scales"]],
        missing=[f for f in findings if f["verdict"] == "not tried"],
        stated=[f for f in findings if f["verdict"] == "stated"],
        provenance=[
            *([("command", command)] if command else []),
            ("cost", duration(sum(d["seconds"] for d in documents))),
            *versions.items(),
        ],
    )
    path = folder / "index.html"
    write_whole(path, page)
    return path


def overview(
    findings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]
) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """The number of claims of each document by what came of them: the verdicts that occur, and a row a document."""
    words = [word for word in (*_WORDS, "not tried", "stated") if any(f["verdict"] == word for f in findings)]
    counted = Counter((f["paper"], f["verdict"]) for f in findings)
    rows = [(title, [counted[key, word] for word in words]) for key, title in titles.items()]
    return words, rows if findings else []


def summary(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdicts on the papers' claims, in sentences."""
    words = Counter(f["verdict"] for f in findings)
    tried = [f for f in findings if f["verdict"] not in ("not tried", "stated")]
    calculated = sum(f["scale"] == "calculation" for f in tried)
    own = [f for f in tried if f["kind"] != "cited"]
    undecided = sum(f["verdict"] == "not informative" for f in own)
    parts = [f"{words[w]} {w}" for w in _WORDS if words[w]]
    return [
        f"The papers make {len(findings)} claims. {words['stated']} are about the papers themselves, which no run can "
        f"decide; {words['not tried']} are not tried.",
        f"Of the {len(tried)} tried, {calculated} by calculation and the others by runs: {', '.join(parts)}. "
        f"{len(own)} of them are the papers' own, not cited ones; of these {undecided} are not informative.",
        "An interval is at 95 %, Student's, each seed with its own level; a verdict holds after Holm's correction over "
        "the tests of a paper at its scale. Comparisons beside the papers' are not counted.",
    ]


_WORDS = ("reproduced", "contradicted", "smaller than claimed", "premise not met", "not informative")


def here(claim: Mapping[str, Any]) -> str:
    """A claim's statistic with its interval, as text."""
    if claim["statistic"] is None:
        return claim["note"] or f"no {claim['measured']}"
    text = f"{claim['measured']} {claim['statistic']:+.3g}"
    if claim["low"] is None or claim["low"] == claim["high"]:
        return text
    return f"{text} ({claim['low']:+.3g} to {claim['high']:+.3g})"


def open_question(claim: Mapping[str, Any]) -> str:
    """The power that a claim without a verdict had, and what would decide it; empty where neither is known."""
    parts = []
    if claim.get("power") is not None and claim.get("effect") is not None:
        parts.append(f"power {100 * claim['power']:.0f} % to see {abs(claim['effect']):.3g}")
    if claim.get("hours") is not None and claim["hours"] >= _SHORT:
        parts.append(f"about {claim['hours']:.2g} core-hours more would decide it")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Examples:
        >>> duration(59.4), duration(600)
        ('59 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _by_study(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A study's scales under one heading."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for document in shown:
        grouped.setdefault(document["id"], []).append(document)
    return [
        {"id": name, "title": own[0]["title"], "paper": own[0]["paper"], "scales": own} for name, own in grouped.items()
    ]


def _shown(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    own = folder / document.get("place", document["id"])
    kinds = {"figure.svg": "image/svg+xml", "figure.png": "image/png"}  # the first follows the reader's theme
    figure = next((own / name for name in kinds if (own / name).is_file()), None)
    picture = ""
    if figure is not None:
        picture = f"data:{kinds[figure.name]};base64," + base64.b64encode(read_bytes(figure)).decode()
    claims = [_row(claim) for claim in document["claims"]]
    differ = document.get("deviations") or []
    return document | {
        "reduction": document["reduction"] + (f". Of the printed settings: {'; '.join(differ)}" if differ else ""),
        "figure": picture,
        "pages": [str(page.relative_to(folder)) for page in sorted(own.glob("*.html"))],
        "cost": duration(document["seconds"]),
        "claims": [c for c in claims if not c["control"]],
        "controls": [c for c in claims if c["control"]],
        "failed": [run for run in document["runs"] if "error" in run],
    }


def _row(claim: dict[str, Any]) -> dict[str, Any]:
    quoted = bool(claim.get("id"))
    said = here(claim)
    notes = [claim["note"] if claim["note"] != said else "", open_question(claim)]
    more = {"quoted": quoted, "here": said, "notes": "; ".join(n for n in notes if n)}
    return {"premise": "", "where": ""} | claim | more
