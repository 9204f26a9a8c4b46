"""The papers' own sentences with a verdict each: the registry, what tries its claims, and what came of it."""

from __future__ import annotations

from flatminima.studies.claims.evaluate import Finding, count, evaluate, of_study
from flatminima.studies.claims.registry import PAPERS, Claim, Paper, Setting, Trial, claims, papers

__all__ = [
    "PAPERS",
    "Claim",
    "Finding",
    "Paper",
    "Setting",
    "Trial",
    "claims",
    "count",
    "evaluate",
    "of_study",
    "papers",
]
