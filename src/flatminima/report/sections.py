"""Parts of the page of one network that come from several measures, or from what other commands left beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.untrusted import read_bytes

RECORDED = "The numbers are the record's, which flatminima certify --verify recomputes from weights and data."
_NOISE = "The band or ellipse is the reach of random noise on the weights, which may be smaller than a line."
_CERTIFICATE = "certificate.svg"
_PICTURES = {
    "landscape.svg": ("The loss around the weights", _NOISE),
    "landscape-line.svg": ("The loss along a random direction", f"Filter-normalised (Li et al. 2018). {_NOISE}"),
    "landscape-plane.svg": ("The loss on a random plane", f"Filter-normalised (Li et al. 2018). {_NOISE}"),
    "landscape-eigenvector.svg": (
        "The loss along the steepest direction",
        "The Hessian's top eigenvector; the dashed line is the quadratic model, which rises by 1 at distance 1. "
        + _NOISE,
    ),
    "landscape-eigenvectors.svg": (
        "The loss on the plane of the two steepest directions",
        "The Hessian's top two eigenvectors; by the quadratic model the loss rises by 1 at distance 1. " + _NOISE,
    ),
    _CERTIFICATE: ("Certificate", "The terms of the bound, written by flatminima certify."),
}


def heat_map(layered: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Layers against the measures that add over them, each cell with its share of the measure's largest.

    Args:
        layered: name and values by layer, as the page's other sections have them.

    Returns:
        names, and rows of (layer, cells); a cell is None or its value with a shade from 0 to 100. None for no measure.

    Examples:
        >>> heat_map([{"name": "m", "values": {"a": 1.0, "b": -2.0}}])["rows"][0]
        ('a', [{'value': 1.0, 'shade': 50}])
    """
    if not layered:
        return None
    layers = list(dict.fromkeys(layer for measure in layered for layer in measure["values"]))
    largest = [max((abs(v) for v in m["values"].values() if v is not None), default=0.0) for m in layered]
    rows = []
    for layer in layers:
        cells = []
        for measure, top in zip(layered, largest, strict=True):
            value = measure["values"].get(layer)
            shade = 0 if value is None or top == 0 else round(100 * abs(value) / top)
            cells.append(None if value is None else {"value": value, "shade": shade})
        rows.append((layer, cells))
    return {"names": [measure["name"] for measure in layered], "rows": rows}


def pictures(folder: Path) -> list[dict[str, str]]:
    """Figures that `measure --explain`, `landscape` and `certify` drew into the same folder, as images of the page.

    That of a certificate is left out where its record is not beside it: a picture alone is no verdict.
    """
    found = []
    for name, (title, caption) in _PICTURES.items():
        file = folder / name
        alone = name == _CERTIFICATE and not file.with_suffix(".json").is_file()
        if file.is_file() and not alone:
            data = base64.b64encode(read_bytes(file)).decode()
            found.append({"title": title, "caption": caption, "source": f"data:image/svg+xml;base64,{data}"})
    return found


def condition_status(condition: Mapping[str, Any]) -> str:
    """Status of a certificate's condition, in the words of `Assumption.status`.

    Examples:
        >>> condition_status({"holds": True}), condition_status({"holds": None, "stated": ""})
        ('met', 'not checked')
    """
    if "holds" not in condition:
        return str(condition.get("status", ""))
    if condition["holds"] is None:
        return "stated" if condition.get("stated") else "not checked"
    return "met" if condition["holds"] else "fails"
