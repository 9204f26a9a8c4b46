"""The logits among a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flatminima.errors import ModelError


def logits(output: Any, which: Any = None) -> Tensor:
    """The tensor of logits in what a model returned.

    Args:
        output: of the model.
        which: an entry's position or name, or a function of the output; None: the output itself, its `.logits`, its
            entry 'logits', or the only tensor of a tuple.

    Raises:
        ModelError: none of these, or several of them.
    """
    if which is not None:
        return _named(output, which)
    if isinstance(output, Tensor):
        return output
    inner = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if inner is None and isinstance(output, tuple | list) and len(output) == 1:
        inner = output[0]
    if isinstance(inner, Tensor):
        return inner
    raise ModelError(
        f"the model returned {_described(output)}; expected a tensor or an object with .logits: say which entry is the "
        "logits with Minimum(..., output=...)"
    )


def _named(output: Any, which: Any) -> Tensor:
    try:
        if callable(which):
            inner = which(output)
        elif isinstance(which, str) and not isinstance(output, Mapping):
            inner = getattr(output, which)
        else:
            inner = output[which]
    except (KeyError, IndexError, TypeError, AttributeError):
        inner = None
    if isinstance(inner, Tensor):
        return inner
    name = getattr(which, "__name__", "a function") if callable(which) else repr(which)
    raise ModelError(f"output={name} names no tensor in what the model returned: {_described(output)}")


def _described(output: Any) -> str:
    """A structure of tensors, by name and shape."""

    def entry(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    if isinstance(output, Mapping):
        inside = ", ".join(f"{key!r}: {entry(value)}" for key, value in output.items())
        return f"a {type(output).__name__} of {{{inside}}}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of ({', '.join(entry(value) for value in output)})"
    return f"a {entry(output)} tensor" if isinstance(output, Tensor) else type(output).__name__
