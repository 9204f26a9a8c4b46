"""The page of `flatminima rank`: the answer, the candidates, why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from flatminima.escaping import shown
from flatminima.io import write_whole
from flatminima.report.page import render_template

_NAME = 16  # characters of a name in the figure, bold ones too
_WIDTH, _ROW, _LEFT, _RIGHT = 440, 30, 140, 45  # of the figure, in its own units


def write_ranking(document: dict[str, Any], path: str | Path) -> None:
    """The page of a comparison.

    Args:
        document: what `flatminima rank` writes to rank.json.
        path: of the HTML file, written whole.

    Raises:
        UsageError: the path cannot be written.
    """
    choice = document["choice"]
    names = [c["name"] for c in choice["candidates"]]
    page = render_template(
        "rank.html.j2",
        title="Which candidate to ship",
        subtitle=f"{len(names)} candidates{_held_out(choice)}",
        verdict=[choice["answer"] + "."],
        notes=choice["notes"],
        candidates=choice["candidates"],
        ship=choice["ship"] if choice["basis"] != "none" else [],
        basis=choice["basis"],
        pairs=[p | {"names": (names[p["first"]], names[p["second"]])} for p in choice["pairs"]],
        figure=errors_figure(choice["candidates"], choice["ship"]),
        order=choice["order"],
        measures=document.get("measures"),
        provenance=[
            (k.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, list) else str(v))
            for k, v in document.get("command", {}).items()
            if v not in (None, [], "")
        ],
    )
    write_whole(path, page)


def _held_out(choice: Mapping[str, Any]) -> str:
    """How many held-out samples decided, or that there were none."""
    if choice["test_samples"]:
        return f", {choice['test_samples']:,} held-out samples"
    known = any(c["test_error"] is not None for c in choice["candidates"])  # of candidates that are all left out
    return "" if known else ", no held-out labels"


def errors_figure(candidates: list[dict[str, Any]], ship: list[str]) -> Markup | None:
    """Training and test error of each candidate that is compared, on one axis; None where no errors are known."""
    rows = [c for c in candidates if c["train_error"] is not None and not c["left_out"]]
    if not rows:
        return None
    top = max(100 * e for c in rows for e in (c["train_error"], c["test_error"]) if e is not None)
    limit = float(max(1.1 * top, 1.0))
    height, names = _ROW * len(rows) + 44, _labels([c["name"] for c in rows])

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / limit

    step = next(s for s in (0.2, 0.5, 1, 2, 5, 10, 20, 25, 50) if limit / s <= 5)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" width="100%" style="max-width:{_WIDTH}px" '
        'font-size="13" fill="currentColor"><title>Training and test error of each candidate</title>'
    ]
    for k in range(int(limit / step) + 1):
        at = x(k * step)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="6" y2="{height - 38}" stroke="currentColor" opacity=".15"/>'
            f'<text x="{at:.1f}" y="{height - 22}" text-anchor="middle">{k * step:g}</text>'
        )
    for i, c in enumerate(rows):
        y = 20 + _ROW * i
        weight = ' font-weight="650"' if c["name"] in ship else ""
        name = escape(names[i])
        parts.append(f'<g><text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end"{weight}>{name}</text>')
        train = x(100 * c["train_error"])
        if c["test_error"] is not None:
            test = x(100 * c["test_error"])
            parts.append(
                f'<line x1="{train:.1f}" x2="{test:.1f}" y1="{y}" y2="{y}" stroke="var(--c0)" stroke-width="2"/>'
                f'<circle cx="{test:.1f}" cy="{y}" r="5" fill="var(--c0)"/>'
                f'<text x="{max(test, train) + 10:.1f}" y="{y + 4}"{weight}>{100 * c["test_error"]:.1f}</text>'
            )
        parts.append(f'<circle cx="{train:.1f}" cy="{y}" r="4" fill="var(--ground)" stroke="currentColor"/></g>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 4}" text-anchor="middle">error, %</text></svg>')
    return Markup("".join(parts))


def _labels(names: list[str]) -> list[str]:
    """Names that fit beside the figure: without a file name that all end in, cut in the middle where too long."""
    tail = names[0].rpartition("/")[2]
    if len(names) > 1 and all(name.endswith(f"/{tail}") for name in names):
        names = [name[: -len(tail) - 1] for name in names]
    half = _NAME // 2
    return [n if len(n) <= _NAME else f"{n[: half - 1]}…{n[len(n) - half :]}" for n in map(shown, names)]
