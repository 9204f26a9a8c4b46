"""The surface of `import flatminima`: public names and where they are, the public packages and modules.

Everything else is private, whether or not its name begins with an underscore.
"""

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

# modules of packages whose names are imported from the module itself: what not everybody needs, and integrations
MODULES = (
    "core.perturbation",
    "core.samples",
    "data.sentences",
    "data.text",
    "integrations.huggingface",
    "integrations.huggingface_track",
    "integrations.lightning",
    "integrations.lightning_track",
    "models.hf",
    "sharded",
    "studies.images",
    "studies.plot",
)
