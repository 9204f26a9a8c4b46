"""The results of a folder judged together: every claim of the papers, and the claims of each study at each scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flatminima.studies import STUDIES
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
        The documents, each with "own" and, of the package's, with "beyond", where no claim of the papers is on it, and
        "deviations" from the printed settings; and the findings, Holm's correction over all of a scale.
    """
    findings = evaluate([d for d in documents if d["id"] in STUDIES])
    return [_judged(document, findings) for document in documents], findings


def _judged(document: _Document, findings: Sequence[Finding]) -> _Document:
    study = STUDIES.get(document["id"])
    if study is None:
        return document | {"own": True}
    scale = document["scale"]
    if scale == "smoke":
        of_papers = of_study(document)
    else:
        about = [f for f in findings if document["id"] in f.claim.studies and scale in f.verdicts]
        of_papers = [f.verdicts[scale] for f in about]
    beside = [] if scale == "smoke" else _beside(study, document)
    beyond = not any(study.id in claim.studies for claim in registered())
    claims = [v.to_dict() for v in of_papers] + beside
    differ = {"reduction": study.reduction[scale], "deviations": deviations(study, scale)}
    return document | differ | {"own": False, "beyond": beyond, "claims": claims}


def _beside(study: Study, document: _Document) -> list[dict[str, Any]]:
    results = [run["result"] for run in document["runs"] if succeeded(run)]
    return [verdict.to_dict() for verdict in study.claims(results)]
