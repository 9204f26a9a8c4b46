"""Ambient modes in which work on a model may be called; a mode is an input that nobody lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Mode:
    """A mode to be entered.

    Args:
        enter: a context manager.
        of_process: the whole process has it; else a thread, and each thread enters its own.
    """

    enter: Callable[[], AbstractContextManager[Any]]
    of_process: bool = False


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _fast_matmul() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _gradient_transform() -> Iterator[None]:
    level = torch._C._functorch._grad_increment_nesting()
    try:
        yield
    finally:
        assert level == torch._C._functorch._grad_decrement_nesting()


def _fake() -> AbstractContextManager[Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def _counter() -> AbstractContextManager[Any]:
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


MODES: dict[str, Mode] = {
    "no_grad": Mode(torch.no_grad),
    "inference_mode": Mode(torch.inference_mode),
    "autocast to bfloat16": Mode(lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast to float16": Mode(lambda: torch.autocast("cpu", torch.float16)),
    "autocast of cuda": Mode(lambda: torch.autocast("cuda", torch.float16, enabled=torch.cuda.is_available())),
    "default dtype float64": Mode(lambda: _default_dtype(torch.float64), of_process=True),
    "default dtype bfloat16": Mode(lambda: _default_dtype(torch.bfloat16), of_process=True),
    "default device meta": Mode(lambda: torch.device("meta")),
    "deterministic algorithms": Mode(_deterministic, of_process=True),
    "anomaly detection": Mode(lambda: _anomaly(), of_process=True),
    "attention by mathematics": Mode(lambda: sdpa_kernel(SDPBackend.MATH), of_process=True),
    "fast matrix products": Mode(_fast_matmul, of_process=True),
    "FakeTensorMode": Mode(_fake),
    "FlopCounterMode": Mode(_counter),
    "torch.func transform": Mode(_gradient_transform),
    "numpy raises": Mode(lambda: np.errstate(all="raise")),
}


def _anomaly() -> AbstractContextManager[Any]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow
        return torch.autograd.detect_anomaly(check_nan=False)
