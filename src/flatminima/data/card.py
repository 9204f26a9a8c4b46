"""The card of a data folder (README.md), which `datasets` obeys: it may name files and addresses to read instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flatminima.errors import DataError

_CARDS = ("README.md", ".huggingface.yaml")
_MOST = 1 << 20  # bytes of a card
_FENCE = "---"


def refuse_named_places(folder: Path) -> None:
    """Refuse a folder whose card names an address, or a file outside of it; before `datasets` sees the folder.

    Raises:
        DataError: it does, or its header is no YAML.
    """
    for name in _CARDS:
        card = folder / name
        if not card.is_file():
            continue
        for text in _strings(_header(card)):
            path = Path(text)
            if "://" in text or "::" in text or path.is_absolute() or text[:1] == "~" or ".." in path.parts:
                raise DataError(
                    f"{card} names {text!r} to be read, which is not in the folder: a data folder names no address and "
                    "no other folder; take that out of its configs"
                )


def _header(card: Path) -> Any:
    """What a card configures: of a README the YAML between its fences."""
    import yaml  # comes with `datasets`

    if card.stat().st_size > _MOST:
        raise DataError(f"{card} has more than {_MOST:,} bytes: shorten it, its header is read")
    text = card.read_text(encoding="utf-8", errors="replace")
    if card.suffix == ".md":
        lines = text.lstrip("\ufeff").splitlines()
        if not lines or lines[0].strip() != _FENCE:
            return None
        ends = [i for i, line in enumerate(lines[1:], 1) if line.strip() == _FENCE]
        text = "\n".join(lines[1 : ends[0]]) if ends else ""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise DataError(f"the header of {card} is no YAML: mend it, or take it out") from None
    if not isinstance(found, dict):
        return None
    return [found.get("configs"), found.get("data_files"), found.get("data_dir")]


def _strings(value: Any) -> Iterator[str]:
    """Every text in a configuration, wherever it is."""
    todo, seen = [value], set[int]()
    while todo:
        each = todo.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict | list) and id(each) not in seen:
            seen.add(id(each))
            todo += [*each, *each.values()] if isinstance(each, dict) else each
