"""A choice on a terminal: the answer first, then the candidates, then why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatminima.ranking.order import render_order

if TYPE_CHECKING:
    from flatminima.ranking.candidates import Candidate
    from flatminima.ranking.choice import Choice


def render_choice(choice: Choice, console: Any) -> None:
    """The choice on a rich console, within 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(Text(choice.answer + "."))
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("candidate", overflow="fold", ratio=2)
    tested = any(c.test_error is not None or c.test_loss is not None for c in choice.candidates)
    for name in ("training error", "training loss", *(("test error", "test loss") if tested else ())):
        grid.add_column(name, justify="right", max_width=9)
    grid.add_column("", overflow="fold", ratio=1)
    for c in choice.candidates:
        cells = [_percent(c.train_error), _number(c.train_loss)]
        cells += [_percent(c.test_error), _number(c.test_loss)] if tested else []
        grid.add_row(Text(c.name), *cells, Text(standing(c, choice)))
    console.print(grid)
    if choice.order is not None:
        render_order(choice.order, console)
    for note in choice.notes:
        console.print(Text(note + "."))


def standing(candidate: Candidate, choice: Choice) -> str:
    """Standing of a candidate in one word."""
    if not candidate.compared:
        return "left out"
    if candidate.name in choice.ship and choice.basis == "measures":
        return "likeliest"
    if candidate.name in choice.ship and choice.basis != "none":
        return "ship" if len(choice.ship) == 1 else "not told apart"
    return "caution" if candidate.unordered is not None or candidate.findings else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
