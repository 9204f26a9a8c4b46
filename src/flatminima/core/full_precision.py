"""Float32 products in float32 within a block: what Lightning and others recommend (TF32, bfloat16) is for training.

TF32 keeps 10 bits, bfloat16 7. The rise of a loss under small noise, a difference of gradients or a small eigenvalue
are then rounding. cuDNN's convolutions take TF32 unless they are told not to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_LOW = ("tf32", "bf16")
_PLACES = (  # from the general to the particular, which take what they are not told from those before
    ("generic", "all"),
    *((backend, "all") for backend in ("cuda", "mkldnn")),
    *((backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")),
)
_getter: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)  # since torch 2.9
_set: Callable[[str, str, str], Any] = getattr(torch._C, "_set_fp32_precision_setter", lambda *_: None)


def _get(backend: str, operation: str) -> str:
    """A newer switch; "none" where this torch has none of this name."""
    try:
        return "none" if _getter is None else _getter(backend, operation)
    except RuntimeError:
        return "none"


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 within float32 products; every switch as before afterwards."""
    with ExitStack() as stack:
        stack.callback(_put_back, [_get(*place) for place in _PLACES])
        _raise_older_switches(stack)
        for place in _PLACES:
            if _get(*place) in _LOW:
                _set(*place, "ieee")
        yield


def switches() -> dict[str, Any]:
    """Every switch by name; None: torch does not say, because others contradict it."""
    found: dict[str, Any] = {" ".join(place): _get(*place) for place in _PLACES}
    for name, read in (
        ("float32_matmul_precision", torch.get_float32_matmul_precision),
        ("cuda.matmul.allow_tf32", lambda: torch.backends.cuda.matmul.allow_tf32),
        ("cudnn.allow_tf32", lambda: torch.backends.cudnn.allow_tf32),
    ):
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = None
    return found


def _raise_older_switches(stack: ExitStack) -> None:
    """Set the switches of before torch 2.9 first: they refuse to be read where the newer ones contradict them."""
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller uses the newer ones
        matmul = "highest"
    if matmul != "highest":
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_float32_matmul_precision, matmul)
    try:
        convolutions = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        convolutions = False
    if convolutions:
        torch.backends.cudnn.allow_tf32 = False
        stack.callback(setattr, torch.backends.cudnn, "allow_tf32", True)


def _put_back(before: list[str]) -> None:
    """The newer switches, the particular first: one that is told something no longer follows the general."""
    for place, was in reversed([*zip(_PLACES, before, strict=True)]):
        if _get(*place) != was:
            _set(*place, was)
