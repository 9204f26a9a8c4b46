"""Names are data: what came from a file, a network or a folder is shown with its control characters escaped.

A terminal obeys them (clear the screen, change the title), and a reader is deceived by those that reverse text. What is
escaped is all that Unicode calls control, format, surrogate, private or unassigned, and line separators.
"""

from __future__ import annotations

import reprlib
import unicodedata

_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TWO, _FOUR = 0xFF, 0xFFFF  # the largest of \xhh and of \uhhhh


def shown(text: object) -> str:
    """A name on one line, with each hidden character as Python would write it.

    Examples:
        >>> print(shown("layer\\x1b[2J\\u202e"))
        layer\\x1b[2J\\u202e
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def brief(value: object) -> str:
    """A value as Python writes it, cut where that is long.

    Examples:
        >>> brief(1.5), len(brief(10**400)), brief(10**5000)
        ('1.5', 40, 'an int')
    """
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        return f"an {type(value).__name__}"


def shown_lines(text: object) -> str:
    """The same for text of our own making, whose line breaks stay."""
    return "\n".join(shown(line) for line in str(text).split("\n"))


def _escaped(character: str) -> str:
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{number:02x}" if number <= _TWO else f"\\u{number:04x}" if number <= _FOUR else f"\\U{number:08x}"
