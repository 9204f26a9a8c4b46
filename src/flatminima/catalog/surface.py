"""The surface of `import flatminima`: public names and where they are, and the public packages."""

from __future__ import annotations

# name -> module of `flatminima`
NAMES: dict[str, str] = {
    "Audit": "rescaling",
    "Candidate": "ranking",
    "Certificate": "certification",
    "Estimate": "estimate",
    "Landscape": "landscape",
    "Ledger": "certification",
    "MeasureTable": "table",
    "Minimum": "core.minimum",
    "RankTable": "ranking",
    "Ranks": "core.distributed",
    "Recipe": "certification",
    "ShardedMinimum": "core.fsdp",
    "TrackTable": "track",
    "Tracker": "track",
    "Union": "certification",
    "audit": "rescaling",
    "certify": "certification",
    "certify_around": "certification",
    "check_untouched": "testing",
    "choose": "ranking",
    "compare_errors": "ranking",
    "diagnose": "diagnosis",
    "measure": "measuring",
    "plan": "measuring",
    "rank": "ranking",
}

PACKAGES = (
    "bounds",
    "catalog",
    "certification",
    "data",
    "errors",
    "integrations",
    "landscape",
    "measures",
    "models",
    "optim",
    "ranking",
    "statistics",
    "studies",
    "testing",
    "track",
    "training",
)
