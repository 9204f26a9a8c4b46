"""Number of samples of a Gram matrix where none was given: 100, or all there are."""

from __future__ import annotations

from typing import Any

from flatminima.errors import DataError
from flatminima.statistics import GramMatrices

SUBSET = 100


def of_subset(gram: GramMatrices, asked: int | None) -> dict[str, Any]:
    """Details of a measure of Gram matrices of samples: their size, and a note where that is not the default's.

    Args:
        gram: the matrices.
        asked: samples a matrix as the caller gave it; None: the default.

    Raises:
        DataError: the caller asked for more samples than there are.
    """
    size = gram.subset
    if asked is not None and size < asked:
        raise DataError(
            f"got {size} samples; a Gram matrix of subset={asked} needs as many: pass subset={size} or less"
        )
    details: dict[str, Any] = {"subset": size, "error_of": "new data"}
    if asked is None and size < SUBSET:
        details["note"] = f"subset {size}, of fewer than {SUBSET} samples"
    return details
