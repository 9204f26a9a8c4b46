"""The page of the studies: what the papers' sentences came to, then every figure with its sentences, at every scale."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.catalog import PAPERS
from flatminima.io import write_whole
from flatminima.report.page import render_template
from flatminima.report.verdicts import (
    AGAINST,
    MARKS,
    MEANINGS,
    SCALES_MEAN,
    beside_statistic,
    by_verdict,
    disagreements,
    duration,
    elided,
    here,
    joined,
    needed,
    not_come_out,
    open_question,
    overview,
    paper_effect,
    summary,
    trial_lines,
)
from flatminima.untrusted import read_bytes

_FIRST = 8  # numbers against sentences that are shown before one asks for the others
_CUT = 90  # characters of a quotation there
_POINTS, _SMALLEST, _LARGEST = 96 / 72, 0.85, 1.15  # pixels a point; of a figure's own width, what a page shows it at
_PAGES = {"surface.html": "surface that turns (3D)", "instance.html": "a data set like the papers' picture"}


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
    parts: dict[str, list[dict[str, Any]]] = {"papers": [], "beyond": [], "own": []}
    about = {f["id"]: f for f in findings}
    for document in documents:
        part = "own" if document.get("own") else "beyond" if document.get("beyond") else "papers"
        parts[part].append(_shown(document, folder, about))
    tried = dict.fromkeys(f["paper"] for f in findings)
    words, counted = overview(findings, {key: PAPERS[key].short for key in tried})
    against = [_against(number, same) for number, same in not_come_out(findings)]
    page = render_template(
        "studies.html.j2",
        title="The papers' claims, tried again" if findings else "Studies",
        subtitle=_counted({d["id"] for d in documents}),
        verdict=summary(findings) if findings else [f"{_counted({d['id'] for d in parts['own']})} of your own."],
        findings=bool(findings),
        against=against[:_FIRST],
        more_against=against[_FIRST:],
        counts_against=[(word, sum(f["verdict"] == word for f in findings)) for word in AGAINST],
        disagree=[(f["id"], _cut(f["quote"]), said) for f, said in disagreements(findings)],
        meanings=[*MEANINGS.items(), *SCALES_MEAN.items(), *MARKS.items()] if findings else [],
        documents=[name for name, _ in counted],
        overview=[(word, [counts[i] for _, counts in counted]) for i, word in enumerate(words)],
        **{part: _by_study(shown) for part, shown in parts.items()},
        calculated=by_verdict([_calculated(f) for f in findings if "calculation" in f["scales"]]),
        missing=[_quoted(f) for f in findings if f["verdict"] == "not tried"],
        stated=[_quoted(f) for f in findings if f["verdict"] == "stated"],
        provenance=[
            *([("command", command)] if command else []),
            ("cost", duration(sum(d["seconds"] for d in documents if not d.get("shares")))),
            *_versions(documents),
        ],
    )
    path = folder / "index.html"
    write_whole(path, page)
    return path


def _counted(ids: Collection[str]) -> str:
    return f"{len(ids)} stud{'y' if len(ids) == 1 else 'ies'}"


def _by_study(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A study's scales under one heading."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for document in shown:
        grouped.setdefault(document["id"], []).append(document)
    return [
        {"id": name, "title": own[0]["title"], "paper": own[0]["paper"], "scales": own} for name, own in grouped.items()
    ]


def _versions(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Everything that computed a study of the folder, with all its versions."""
    found: dict[str, dict[str, None]] = {}
    for document in documents:
        for name, version in document["versions"].items():
            found.setdefault(name, {})[str(version)] = None
    return [(name, ", ".join(own)) for name, own in found.items()]


def _against(number: str, same: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One number with the sentences that it speaks against, in short."""
    shown = [(f["id"], _cut(f["quote"])) for f in same]
    return {"number": number, "first": shown[0], "others": shown[1:]}


def _cut(quote: str) -> str:
    return elided(quote) if len(quote) <= _CUT else elided(quote[:_CUT].rpartition(" ")[0])


def _quoted(finding: Mapping[str, Any]) -> dict[str, Any]:
    return {**finding, "quote": elided(finding["quote"])}


def _calculated(finding: Mapping[str, Any]) -> dict[str, Any]:
    own = finding["scales"]["calculation"]
    told = {"verdict": own["verdict"], "numbers": own["note"], "notes": needed(finding)}
    return _quoted(finding) | told | {"remark": finding["note"], "lines": []}


def _shown(document: dict[str, Any], folder: Path, about: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    own = folder / document.get("place", document["id"])
    kinds = {"figure.svg": "image/svg+xml", "figure.png": "image/png"}  # the first follows the reader's theme
    figure = next((own / name for name in kinds if (own / name).is_file()), None)
    picture, style = "", ""
    if figure is not None:
        raw = read_bytes(figure)
        picture, style = f"data:{kinds[figure.name]};base64," + base64.b64encode(raw).decode(), _size(raw)
    claims = [_row(claim, document, about.get(claim.get("id", ""))) for claim in document["claims"]]
    differ = document.get("deviations") or []
    return (
        {"caption": "", "panels": "", "shares": None, "older": 0}
        | document
        | {
            "reduction": document["reduction"] + (f". Of the printed settings: {'; '.join(differ)}" if differ else ""),
            "figure": picture,
            "style": style,
            "pages": [
                (str(page.relative_to(folder)), _PAGES.get(page.name, page.name)) for page in sorted(own.glob("*.html"))
            ],
            "cost": duration(document["seconds"]),
            "claims": by_verdict([c for c in claims if not c["control"]]),
            "controls": by_verdict([c for c in claims if c["control"]]),
            "failed": [run for run in document["runs"] if "error" in run],
        }
    )


def _size(figure: bytes) -> str:
    """Widths between which a figure's text is neither too small nor out of proportion, by the figure's own."""
    found = re.search(rb'<svg [^>]*width="([\d.]+)pt"', figure[:2_000])
    if found is None:
        return ""
    own = float(found[1]) * _POINTS
    return f"min-width: {_SMALLEST * own:.0f}px; max-width: {_LARGEST * own:.0f}px"


def _row(claim: dict[str, Any], document: dict[str, Any], finding: Mapping[str, Any] | None) -> dict[str, Any]:
    """One row of a study's table; `finding`, of a paper's sentence, has what all scales came to."""
    said, other = here(claim), claim.get("decided_by", "")
    alone = claim.get("alone")
    if other:
        said = "These runs alone: " + ("not tried" if alone is None else here(alone))
    if finding is None:
        notes = [claim["note"] if claim["note"] != said else "", open_question(claim)]
    else:
        notes = [] if other else beside_statistic(claim, finding)
    counts = finding is not None and finding["scale"] == document["scale"] and not other
    more = {
        "quoted": bool(claim.get("id")),
        "said": elided(claim["claim"]) if claim.get("id") else claim["claim"],
        "reads": "" if finding is None else finding["reads"].rstrip("."),
        "paper": claim.get("paper") or "" if finding is None else paper_effect(finding),
        "here": said,
        "notes": joined(notes),
        "remark": "" if finding is None else finding["note"].rstrip("."),
        "revised": finding is not None and finding.get("revised"),
        "lines": [] if other else trial_lines(claim),
        "counts": counts,
        "other": other,
        "place": f"claim-{claim['id']}" if finding and finding["scale"] == document["scale"] else "",
    }
    return {"premise": "", "where": ""} | claim | more
