"""Events of a run, in plain words: spikes, the edge of stability, noise longer than the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_Row = dict[str, Any]

_SPIKE = 3.0  # times the median loss of the checks before
_WINDOW = 9  # checks of that median
_AT, _BELOW = 0.97, 0.9  # of the threshold: entering the edge, and having left it
_HALF = 0.5


def events(row: _Row, before: Sequence[_Row]) -> list[str]:
    """Events that are new in a row, after the rows before it."""
    return [*_loss(row, before), *_edge(row, before), *_noise(row, before)]


def _loss(row: _Row, before: Sequence[_Row]) -> list[str]:
    if row.get("loss_not_finite"):
        known = bool(before) and before[-1].get("loss_not_finite")
        return [] if known else ["the training loss is not finite"]
    highest = row.get("loss_max")
    known = sorted(r["loss"] for r in before[-_WINDOW:] if r.get("loss") is not None)
    if highest is None or len(known) < 3:
        return []
    usual = known[len(known) // 2]
    if usual > 0 and math.isfinite(highest) and highest > _SPIKE * usual:
        return [f"the loss spikes to {highest:.3g}, {highest / usual:.1f} times what it was"]
    return []


def _edge(row: _Row, before: Sequence[_Row]) -> list[str]:
    now = row.get("edge")
    if now is None:
        return []
    known = [r["edge"] for r in before if r.get("edge") is not None]
    inside = _inside(known)
    said = f"eigenvalue {now * row['threshold']:.4g}, threshold {row['threshold']:.4g}"
    if not known and now >= _AT:
        return [f"the run begins at or above the threshold of stability ({said})"]
    if not inside and now >= _AT:
        return [f"the run enters the edge of stability ({said})"]
    if inside and now < _BELOW:
        return [f"the run leaves the edge of stability ({said})"]
    return []


def _inside(known: Sequence[float]) -> bool:
    """Whether the last to cross one of the two marks was at the edge."""
    inside = False
    for value in known:
        inside = value >= _AT or (inside and value >= _BELOW)
    return inside


def _noise(row: _Row, before: Sequence[_Row]) -> list[str]:
    def said(found: _Row, name: str, limit: float) -> bool:
        value = found["values"].get(name)
        return value is not None and value > limit

    previous, out = before[-1] if before else {"values": {}}, []
    if said(row, "pertopt/relative_noise", 1.0) and not said(previous, "pertopt/relative_noise", 1.0):
        times = row["values"]["pertopt/relative_noise"]
        out.append(f"PertOPT's noise is longer than the weights ({times:.2g} times): lower gamma")
    if said(row, "pertopt/gated", _HALF) and not said(previous, "pertopt/gated", _HALF):
        out.append("more than half of the coordinates get no noise of PertOPT: their gradients are at beta2 or above")
    return out
