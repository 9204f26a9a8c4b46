"""`flatminima rank --gaps`: the generalization gaps and hyper-parameters of the checkpoints, from a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from flatminima.errors import DataError
from flatminima.untrusted import Unreadable, read_text


def read_gaps(path: Path, checkpoints: Sequence[Path]) -> tuple[list[float], list[dict[str, str]] | None]:
    """Gap and hyper-parameters of each checkpoint, in their order.

    Raises:
        DataError: no such file, no such column or row, a gap that is no finite number.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (Unreadable, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; expected a CSV with columns checkpoint, gap") from None
    if not rows or not {"checkpoint", "gap"} <= set(rows[0]):
        raise DataError(f"{path} has no columns checkpoint and gap; its first line must name them")
    by_name = {row["checkpoint"]: row for row in rows}
    gaps, points = [], []
    for checkpoint in checkpoints:
        row = by_name.get(str(checkpoint)) or by_name.get(checkpoint.name)
        if row is None:
            raise DataError(f"{path} has no row for {checkpoint}; add one, by its path or its name")
        try:
            gap = float(row["gap"])
        except (TypeError, ValueError):
            gap = math.nan
        if not math.isfinite(gap):
            raise DataError(f"the gap of {checkpoint} in {path} is {row['gap']!r}; expected a finite number")
        gaps.append(gap)
        points.append({k: str(v) for k, v in row.items() if k not in ("checkpoint", "gap") and k is not None})
    return gaps, points if points[0] else None
