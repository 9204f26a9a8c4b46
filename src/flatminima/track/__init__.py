"""Curvature of the loss while a network trains: `Tracker`, its table, log and sinks."""

from flatminima.track.eigenvalue import Follower, Top
from flatminima.track.quantities import QUANTITIES, usual
from flatminima.track.sinks import as_sink
from flatminima.track.stability import Stability, stability
from flatminima.track.table import TrackTable
from flatminima.track.tracker import Tracker, TrackerWarning
from flatminima.track.tracker_state import Options

__all__ = [
    "QUANTITIES",
    "Follower",
    "Options",
    "Stability",
    "Top",
    "TrackTable",
    "Tracker",
    "TrackerWarning",
    "as_sink",
    "stability",
    "usual",
]


def __dir__() -> list[str]:
    return __all__
