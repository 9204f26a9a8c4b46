"""The one theme of every figure: colours that colour-blind readers tell apart, on light and dark ground.

Figures are drawn in marker colours that become the page's CSS variables in the SVG, so they follow its theme; their
text is text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from flatminima.escaping import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito (2008), without the yellow and black that vanish on light or dark ground, their light blue and orange
# darkened until a line has the contrast 3 : 1 on white (WCAG 1.4.11); base.html.j2 has both themes
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#3c96ce", "#b88600")
MARKERS = ("o", "s", "^", "D", "v", "P")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚")  # the markers, in a legend of text
DARK_PALETTE = ("#4da6e0", "#ff8a3d", "#2fc79a", "#e09cc3", "#86cdf5", "#f0b73a")
_THEMES: Mapping[str, tuple[str, ...]] = MappingProxyType({"light": PALETTE, "dark": DARK_PALETTE})
GREY = "#8a8a8a"
INK, DARK_INK = "#1c1e21", "#e8eaed"
GROUND, DARK_GROUND = "#ffffff", "#15171a"
_TEXT = "#010203"
WIDTH = 4.6  # inches: at 390 pixels ten-point text is eleven pixels high


def variables(dark: bool = False) -> str:
    """Both grounds' colours as CSS declarations: --ink, --ground, and --c0 to --c5."""
    ink, ground, palette = (DARK_INK, DARK_GROUND, DARK_PALETTE) if dark else (INK, GROUND, PALETTE)
    numbered = " ".join(f"--c{i}: {colour};" for i, colour in enumerate(palette))
    return f"--ink: {ink}; --ground: {ground}; {numbered}"


_OWN_RULES = (
    f".flatminima-figure {{ {variables()} color: var(--ink); background: var(--ground); "
    f"font-family: sans-serif; max-width: 100%; height: auto }} "
    f"@media (prefers-color-scheme: dark) {{ .flatminima-figure {{ {variables(dark=True)} }} }}"
)


@contextmanager
def style(name: str) -> Iterator[None]:
    """Matplotlib settings for one figure; `name` keeps the ids of several figures on a page apart."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,  # a layer may have dollars in its name
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _TEXT,
        "axes.labelcolor": _TEXT,
        "axes.edgecolor": GREY,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": GREY,
        "grid.alpha": 0.3,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    with matplotlib.rc_context(settings):
        yield


def svg(figure: Figure, label: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure as an inline SVG element with an accessible name.

    Args:
        figure: made within `style`.
        label: the figure in words, for a reader who does not see it.
        titles: gid of an artist -> text shown when the pointer rests on it.
    """
    import matplotlib

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for gid, title in (titles or {}).items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(shown(title))}</title>', 1)
    text = re.sub(r"<style.*?</style>|font-family: [^;]*; ", "", text, flags=re.DOTALL)  # the page's own rules apply
    # ids are the page's, and several figures would share figure_1
    prefix = re.sub(r"\W+", "-", str(matplotlib.rcParams["svg.hashsalt"]))
    text = re.sub(r' id="(?=[\w.-]+")', f' id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text).replace(_TEXT, "currentColor")
    for i, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--c{i})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(shown(label), quote=True)}" ', 1)


def standalone(element: str) -> str:
    """An SVG element of `svg` as a file of its own, light or dark as its reader prefers, also within a page."""
    element = element.replace(">", f"><style>{_OWN_RULES}</style>", 1).replace(
        "<svg ", '<svg class="flatminima-figure" ', 1
    )
    return f'<?xml version="1.0" encoding="utf-8"?>\n{element}'


def themed(element: str) -> str:
    """An SVG element of `svg` as a file that follows the reader's theme, also where a page shows it as a picture."""
    names = {theme: "".join(f"--c{i}: {c}; " for i, c in enumerate(own)) for theme, own in _THEMES.items()}
    rules = f"svg {{ {names['light']}color: #1c1e21; font-family: sans-serif; }} "
    rules += f"@media (prefers-color-scheme: dark) {{ svg {{ {names['dark']}color: #e8eaed; }} }}"
    head, end, rest = element.partition(">")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{end}<style>{rules}</style>{rest}'
