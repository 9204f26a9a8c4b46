"""The card of a data folder (README.md), which `datasets` obeys: it may name files and addresses to read instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flatminima.errors import DataError
from flatminima.untrusted import Unreadable, parsed_yaml

_CARDS = ("README.md", ".huggingface.yaml")
_MOST = 1 << 20  # bytes of a card
_SEVERAL, _STATE = "dataset_dict.json", "state.json"  # of `save_to_disk`
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


def refuse_saved_places(folder: Path) -> None:
    """Refuse what `save_to_disk` wrote where its lists name files or folders that are not in it.

    Raises:
        DataError: they do, or are no lists of names.
    """
    parts = [folder]
    try:
        if (folder / _SEVERAL).is_file():
            names = _json(folder / _SEVERAL)["splits"]
            _refuse_outside(folder / _SEVERAL, names)
            parts = [folder / name for name in names]
        for part in parts:
            if (part / _STATE).is_file():
                _refuse_outside(part / _STATE, [each["filename"] for each in _json(part / _STATE)["_data_files"]])
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError):
        raise DataError(f"{folder} is not what save_to_disk writes: save the data set again") from None


def _json(path: Path) -> Any:
    if path.stat().st_size > _MOST:
        raise DataError(f"{path} has more than {_MOST:,} bytes: save the data set again")
    return json.loads(path.read_text(encoding="utf-8"))


def _refuse_outside(where: Path, names: Any) -> None:
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or ":" in name:
            raise DataError(
                f"{where} names {name!r} to be read, which is no file of the folder: save the data set again"
            )


def _header(card: Path) -> Any:
    """What a card configures: of a README the YAML between its fences."""
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
        found = parsed_yaml(text)
    except Unreadable:
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
