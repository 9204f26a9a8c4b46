"""Measure, certify and improve the minimum that a neural network was trained to.

The names and packages are those of `flatminima.catalog.surface`. They are imported when first used, so that `import
flatminima` and the command line's help do not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatminima.catalog.surface import NAMES, PACKAGES

__version__ = "0.2.0"

__all__ = sorted([*NAMES, *PACKAGES])

if TYPE_CHECKING:
    from flatminima import (
        bounds as bounds,
        catalog as catalog,
        certification as certification,
        data as data,
        errors as errors,
        integrations as integrations,
        landscape as landscape,
        measures as measures,
        models as models,
        optim as optim,
        ranking as ranking,
        statistics as statistics,
        studies as studies,
        testing as testing,
        track as track,
        training as training,
    )
    from flatminima.certification import (
        Certificate as Certificate,
        Ledger as Ledger,
        Recipe as Recipe,
        Union as Union,
        certify as certify,
        certify_around as certify_around,
    )
    from flatminima.core.distributed import Ranks as Ranks
    from flatminima.core.fsdp import ShardedMinimum as ShardedMinimum
    from flatminima.core.minimum import Minimum as Minimum
    from flatminima.diagnosis import diagnose as diagnose
    from flatminima.estimate import Estimate as Estimate
    from flatminima.landscape import Landscape as Landscape
    from flatminima.measuring import measure as measure, plan as plan
    from flatminima.ranking import (
        Candidate as Candidate,
        RankTable as RankTable,
        choose as choose,
        compare_errors as compare_errors,
        rank as rank,
    )
    from flatminima.rescaling import Audit as Audit, audit as audit
    from flatminima.table import MeasureTable as MeasureTable
    from flatminima.testing import check_untouched as check_untouched
    from flatminima.track import Tracker as Tracker, TrackTable as TrackTable


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return getattr(import_module(f"flatminima.{NAMES[name]}"), name)
    if name in PACKAGES:
        return import_module(f"flatminima.{name}")
    raise AttributeError(f"module 'flatminima' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
