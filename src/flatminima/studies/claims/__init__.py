"""The papers' own sentences with a verdict each: the registry, what tries its claims, and what came of it."""

from __future__ import annotations

from flatminima.studies.claims.evaluate import Finding, count, evaluate, of_study
from flatminima.studies.claims.registry import Claim, PaperClaims, Setting, Trial, claims, papers

__all__ = [
    "Claim",
    "Finding",
    "PaperClaims",
    "Setting",
    "Trial",
    "claims",
    "count",
    "evaluate",
    "of_study",
    "papers",
]
