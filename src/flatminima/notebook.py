"""Results as a notebook shows them: HTML that needs no file and no network, in the notebook's own colours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from typing import Any

from flatminima.diagnosis import diagnose
from flatminima.estimate import Estimate
from flatminima.landscape import Landscape
from flatminima.landscape.figure import describe_landscape, draw
from flatminima.measuring import Plan
from flatminima.ranking import RankTable
from flatminima.report.theme import standalone, style, svg
from flatminima.rescaling import Audit
from flatminima.table import MeasureTable

_CELL = "padding:2px 10px;text-align:{align};vertical-align:top"
_SECONDS = 0.3  # between two changes of a bar


def table(found: MeasureTable) -> str:
    """Measures with errors and reasons, what is off with them, and what they cost."""
    rows = [
        [name, _note(e)] if e.value is None else [name, *_number(e), e.direction, _note(e)] for name, e in found.items()
    ]
    findings = [f"<b>{escape(f.severity)}</b>: {escape(str(f))}" for f in diagnose(found)]
    cost = (
        f"{found.samples:,} samples, {found.parameters:,} parameters, loss {found.loss}; {found.forward_passes:.1f} "
        f"forward and {found.backward_passes:.1f} backward passes, {found.seconds:.1f} s"
    )
    return _grid(["measure", "value", "± stderr", "better", "note"], rows, right=(1, 2)) + _lines(
        [*findings, *map(escape, (cost, *found.notes))]
    )


def estimate(found: Estimate) -> str:
    """One number, its error and what it is."""
    if found.value is None:
        return _lines([f"<b>undefined</b>: {escape(str(found.undefined))}"])
    value, error = _number(found)
    said = f"<b>{escape(value)}</b>" + ("" if error in ("", "exact") else f" ± {escape(error)}")
    return _lines([f"{said} ({escape(_note(found))}; {found.direction} is better)"])


def certificate(found: Any) -> str:
    """The statement, the terms of the bound as bars, the conditions."""
    terms = found.terms()
    widest = max(*terms.values(), 1e-12)
    bars = [
        f'{escape(name)}: {value:.4f} <span style="display:inline-block;height:.7em;background:#0072b2;'
        f'width:{max(0.0, 160 * value / widest):.0f}px"></span>'
        for name, value in terms.items()
    ]
    conditions = [[a.text, a.status, a.evidence] for a in found.assumptions]
    head = _lines([f"<b>{escape(found.statement)}</b>", *bars])
    return head + _grid(["condition", "status", "evidence"], conditions)


def plan(found: Plan) -> str:
    """Statistics that are computed together, and the passes."""
    rows = [[f"sweep {i}", ", ".join(names)] for i, names in enumerate(found.sweeps, 1)]
    rows += [["on its own", name] for name in found.others]
    cost = found.cost
    said = f"{cost.forward:.2f} forward and {cost.backward:.2f} backward passes; {cost.memory / 2**20:.1f} MiB kept"
    return _grid(["", "statistics"], rows) + _lines([escape(said)])


def audit(found: Audit) -> str:
    """A table for each re-parameterisation."""
    parts = []
    for one in found.to_dict()["rescalings"]:
        rows = []
        for name, m in one["measures"].items():
            values = ["–" if v is None else f"{v:.4g}" for v in m["values"]]
            verdict = {None: "undefined", True: "the same", False: "moves"}[m["invariant"]]
            rows.append([name, *values, verdict])
        parts.append(_lines([f"<b>{escape(one['first'])}</b> × a, {escape(one['second'])} ({escape(one['kind'])})"]))
        heads = ["measure", *(f"a = {a:g}" for a in found.factors), "verdict"]
        parts.append(_grid(heads, rows, right=range(1, 1 + len(found.factors))))
    return "".join(parts)


def ranking(found: RankTable) -> str:
    """Measures by how they order the networks."""
    rows = []
    for name, c in found.correlations.items():
        if c.tau is None:
            rows.append([name, f"undefined: {c.undefined}"])
        else:
            rows.append([name, f"{c.tau:+.2f}", f"{c.low:+.2f} to {c.high:+.2f}", f"{c.networks} networks"])
    return _grid(["measure", "Kendall's tau", "interval", "of"], rows, right=(1, 2))


def landscape(found: Landscape) -> str:
    """The figure."""
    with style("landscape"):
        return standalone(svg(draw(found), describe_landscape(found))).partition("?>\n")[2]


def page(found: MeasureTable) -> str:
    """A table as a whole HTML page, as `flatminima report` writes it, without what lies in a folder."""
    from dataclasses import asdict

    from flatminima.report.page import measures_page

    document = found.to_dict() | {"diagnosis": [asdict(f) for f in diagnose(found)]}
    return measures_page(document)


def _number(e: Estimate) -> tuple[str, str]:
    if e.value is None:
        return "–", "–"
    exact = e.details.get("error_of") == "exact"
    return f"{e.value:.5g}", "exact" if exact else "" if e.stderr is None else f"{e.stderr:.2g}"


def _note(e: Estimate) -> str:
    if e.value is None:
        return f"undefined: {e.undefined}"
    return e.kind + (f"; {e.details['note']}" if "note" in e.details else "")


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table, everything escaped; the last cell of a row that is too short spans what is left."""
    aligned = set(right)
    styles = [_CELL.format(align="right" if i in aligned else "left") for i in range(len(heads))]

    def row(cells: Sequence[str], tag: str) -> str:
        last = len(cells) - 1
        inner = []
        for i, (cell, own) in enumerate(zip(cells, styles, strict=False)):
            wide = f' colspan="{len(heads) - last}"' if i == last and len(cells) < len(heads) else ""
            own = styles[-1] if wide else own
            inner.append(f'<{tag}{wide} style="{own}">{escape(str(cell))}</{tag}>')
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    table = f'<table class="flatminima"><thead>{row(heads, "th")}</thead><tbody>{body}</tbody></table>'
    return f'<div style="overflow-x:auto">{table}</div>'


def _lines(lines: Iterable[str]) -> str:
    """Lines of HTML below each other."""
    return "".join(f'<div style="margin:2px 10px">{line}</div>' for line in lines)


class Bars:
    """Progress in a notebook's output: one line for each task that takes more than a moment."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._tasks: dict[str, tuple[float, float, float]] = {}  # began, done, total
        self._handle: Any = None
        self._last = 0.0

    def __call__(self, task: str, done: float, total: float) -> None:
        now = time.monotonic()
        began = self._tasks.get(task, (now, 0.0, 0.0))[0]
        self._tasks[task] = began, done, total
        if done >= total:
            del self._tasks[task]
        shown = [(name, d, t) for name, (start, d, t) in self._tasks.items() if now - start > _SECONDS]
        if now - self._last < _SECONDS or not (shown or self._handle):
            return
        self._last = now
        bars = [f'{escape(name)} <progress value="{d}" max="{t}"></progress> {d / t:.0%}' for name, d, t in shown if t]
        content = self._display.HTML(_lines(bars))
        if self._handle is None:
            self._handle = self._display.display(content, display_id=True)
        else:
            self._handle.update(content)


def bars() -> Bars | None:
    """A listener for progress in a notebook's kernel; None where its output cannot be written to."""
    try:
        return Bars(import_module("IPython.display"))
    except ImportError:
        return None
