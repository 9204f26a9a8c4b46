"""The results of a folder judged together: every claim of the papers, and the claims of each study at each scale."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flatminima.studies import STUDIES
from flatminima.studies.captions import caption, panels_of
from flatminima.studies.claims import Finding, claims as registered, evaluate, of_study
from flatminima.studies.run_store import succeeded
from flatminima.studies.setups import deviations
from flatminima.studies.study import Study

_Document = dict[str, Any]


def together(documents: Sequence[_Document]) -> tuple[list[_Document], list[Finding]]:
    """Documents with their claims judged anew, and what all of them say of the papers.

    Args:
        documents: of `result_files.documents`. A study of one's own keeps the claims that it was written with.

    Returns:
        The documents, each with "own" and, of the package's, with "beyond", where no claim of the papers is on it,
        "missing" and "older", how many of today's runs it lacks and how many it has that are none of them, "deviations"
        from the printed settings, "panels" and "caption" of the figure, and "shares": the study whose
        runs these are, where that one is among the documents; and the findings, Holm's correction over all of a scale.
        Of a claim that another study's runs decide "decided_by" names it, and "alone" is what the own runs say.
    """
    findings = evaluate([d for d in documents if d["id"] in STUDIES])
    there = {(d["id"], d["scale"]) for d in documents}
    judged = [_judged(document, findings) for document in documents]
    return [d | {"shares": _shared(d, there)} for d in judged], findings


def _shared(document: _Document, there: set[tuple[str, str]]) -> str | None:
    study = STUDIES.get(document["id"])
    other = None if study is None else study.runs_of
    return other if (other, document["scale"]) in there else None


def _judged(document: _Document, findings: Sequence[Finding]) -> _Document:
    study = STUDIES.get(document["id"])
    if study is None:
        return document | {"own": True}
    scale = document["scale"]
    if scale == "smoke":
        of_papers = [verdict.to_dict() for verdict in of_study(document)]
    else:
        about = [f for f in findings if document["id"] in f.claim.studies and scale in f.verdicts]
        of_papers = _by_whom(document, [f.verdicts[scale].to_dict() for f in about])
    beside = [] if scale == "smoke" else _beside(study, document)
    beyond = not any(study.id in claim.studies for claim in registered())
    claims = of_papers + beside
    seeds = len({run["config"].get("seed") for run in document["runs"] if succeeded(run)})
    differ: _Document = {"reduction": study.reduction[scale], "deviations": deviations(study, scale)}
    differ |= _compared(study, document)
    differ |= {"panels": panels_of(study.id), "caption": caption(study.id, seeds)}
    return document | differ | {"own": False, "beyond": beyond, "claims": claims}


def _compared(study: Study, document: _Document) -> dict[str, int]:
    """The runs of a document beside those that this version lists: what was added since, and what was changed."""
    listed = {_key(config) for config in study.list_runs(document["scale"], document.get("replication", 0))}
    done = [_key(run["config"]) for run in document["runs"] if succeeded(run)]
    return {"missing": len(listed - set(done)), "older": sum(key not in listed for key in done)}


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _by_whom(document: _Document, verdicts: Sequence[_Document]) -> list[_Document]:
    """Joint verdicts, with what the document's runs alone say beside those that another study's decide."""
    others = [v["study"] if v["study"] != document["id"] else "" for v in verdicts]
    own: Mapping[str, Any] = {v.id: v.to_dict() for v in of_study(document)} if any(others) else {}
    return [
        v | {"decided_by": other, "alone": own.get(v["id"]) if other else None}
        for v, other in zip(verdicts, others, strict=True)
    ]


def _beside(study: Study, document: _Document) -> list[dict[str, Any]]:
    results = [run["result"] for run in document["runs"] if succeeded(run)]
    return [verdict.to_dict() for verdict in study.claims(results)]
