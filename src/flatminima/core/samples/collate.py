"""Samples of a data set put together: torch's default collate, of arrays and lists as well, and token lists padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import default_collate

from flatminima.core.samples.convert import as_tensor, holds_numbers
from flatminima.core.samples.structure import target_key
from flatminima.errors import DataError

MASK = "attention_mask"
_IGNORED = -100


def collate_entries(items: list[Any], length: int = 0) -> Any:
    """A batch of samples that are pairs, longer tuples or mappings.

    Args:
        items: the samples.
        length: to which token lists with an attention mask are padded; 0: all are of one length.

    Raises:
        DataError: text, pictures, or samples of different shapes.
    """
    prepared = [_prepared(item, length) for item in items]
    try:
        return default_collate(prepared)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise DataError(_unfitting(prepared, error)) from None


def longest_mask(read: Callable[[int], Any], count: int) -> int:
    """Tokens of the longest of `count` samples with attention masks; 0 where there are none, or all are equal."""

    def length(i: int) -> int:
        item = read(i)
        mask = item.get(MASK) if isinstance(item, Mapping) else None
        return len(mask) if isinstance(mask, Sized) else 0

    if not length(0):
        return 0
    lengths = {length(i) for i in range(count)}
    return max(lengths) if len(lengths) > 1 else 0


def _prepared(item: Any, length: int) -> Any:
    if isinstance(item, Mapping):
        key = target_key(item)
        entries = {k: _entry(v, "target" if k == key else f"column {k!r}") for k, v in item.items()}
        return _padded(entries, key, length) if length else entries
    if isinstance(item, tuple | list) and len(item) >= 2:
        *inputs, target = item
        return (*(_entry(v, "input") for v in inputs), _entry(target, "target"))
    return item


def _padded(item: dict[Any, Any], key: Any, length: int) -> dict[Any, Any]:
    """Token lists to the longest of the data set: the mask hides what is added, whatever it holds."""
    own = len(item[MASK])

    def padded(k: Any, v: Any) -> Any:
        if not isinstance(v, Tensor) or v.dim() == 0 or len(v) != own:
            return v
        return pad(v, (*[0, 0] * (v.dim() - 1), 0, length - own), value=_IGNORED if k == key else 0)

    return {k: padded(k, v) for k, v in item.items()}


def _entry(value: Any, what: str) -> Any:
    """An entry of a sample for torch's default collate: numbers stay, arrays and lists of numbers become tensors."""
    if isinstance(value, Mapping):
        return {k: _entry(v, f"column {k!r}") for k, v in value.items()}
    text = isinstance(value, str) or (isinstance(value, list | tuple) and value and isinstance(value[0], str))
    if text and what.startswith("column"):
        raise DataError(f"{what} holds text; expected tensors: remove it (remove_columns) or encode it")
    if isinstance(value, tuple | list) and value and not text and not holds_numbers(value):
        return tuple(_entry(v, what) for v in value)
    if isinstance(value, int | float | complex):
        return value
    return as_tensor(value, what)


def _unfitting(items: list[Any], error: Exception) -> str:
    seen: list[str] = []
    for item in items:
        entries = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple) else [item]
        shape = ", ".join(str(tuple(e.shape)) if isinstance(e, Tensor) else type(e).__name__ for e in entries)
        if shape not in seen:
            seen.append(shape)
    if len(seen) > 1:
        return (
            f"samples differ in shape: {seen[0]} and {seen[1]}; pad them to one shape, or pass a DataLoader whose "
            "collate_fn pads"
        )
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"samples do not fit together: {reason}; expected pairs (input, target) of tensors, or mappings with labels"
