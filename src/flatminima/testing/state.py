"""State that work on a model must leave as it was: of the model, of torch, of Python and of the process.

Each item is a function to a value that is equal exactly where the state is.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as _global_hooks

from flatminima.core.full_precision import switches
from flatminima.core.identity import dense_parts

Item = Callable[[nn.Module], Any]

_PATCHED = ("state_dict", "load_state_dict", "__call__", "_call_impl", "__setattr__", "__getattr__", "to", "train")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


def bits(value: Any) -> Any:
    """A value that is equal for equal bits: of tensors, arrays, numbers, and what holds such."""
    if isinstance(value, Tensor):
        parts = [] if value.is_meta else [_bytes(part.detach().cpu()) for part in dense_parts(value.detach())]
        return "tensor", str(value.dtype), tuple(value.shape), tuple(parts)
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, float | complex):
        return type(value).__name__, repr(value)
    if isinstance(value, Mapping):
        return "dict", tuple((bits(k), bits(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(bits, value))
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__qualname__, tuple(
            (name, bits(getattr(value, name))) for name in value.__dataclass_fields__
        )
    return value if isinstance(value, str | bytes | int | bool | None) else (type(value).__qualname__, id(value))


def _bytes(tensor: Tensor) -> str:
    content = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    data = content.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _each(read: Callable[[nn.Module], Any]) -> Item:
    """The same of every module of a model."""
    return lambda model: [(name, read(m)) for name, m in model.named_modules(remove_duplicate=False)]


def _parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _hooks(*names: str) -> Item:
    return _each(lambda m: [[(k, id(v)) for k, v in getattr(m, name, {}).items()] for name in names])


def _function(method: Any) -> int:
    return id(getattr(method, "__func__", method))


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    tables = ("_parameters", "_buffers", "_modules", "training", "forward")
    return [(k, bits(v)) for k, v in vars(module).items() if k not in tables and not k.endswith("_hooks")]


OF_MODEL: dict[str, Item] = {
    "parameters": lambda m: [(n, bits(p)) for n, p in _parameters(m)],
    "identity of parameters": lambda m: [(n, id(p), p.data_ptr()) for n, p in _parameters(m)],
    "requires_grad": lambda m: [(n, p.requires_grad) for n, p in _parameters(m)],
    "gradients": lambda m: [(n, None if p.grad is None else bits(p.grad)) for n, p in _parameters(m)],
    "identity of gradients": lambda m: [(n, id(p.grad)) for n, p in _parameters(m)],
    "buffers": lambda m: [(n, bits(b)) for n, b in m.named_buffers(remove_duplicate=False)],
    "identity of buffers": lambda m: [(n, id(b)) for n, b in m.named_buffers(remove_duplicate=False)],
    "modules": _each(lambda m: (id(m), id(type(m)))),
    "forward": _each(lambda m: _function(vars(m).get("forward", type(m).forward))),
    "training modes": _each(lambda m: m.training),
    "settings": _each(_settings),
    "forward hooks": _hooks("_forward_hooks", "_forward_pre_hooks"),
    "backward hooks": _hooks("_backward_hooks", "_backward_pre_hooks"),
    "state_dict hooks": _hooks("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"),
    "hooks of parameters": lambda m: [(n, [*(p._backward_hooks or ())]) for n, p in _parameters(m)],
}

OF_RANDOMNESS: dict[str, Item] = {
    "random state of torch": lambda _: torch.get_rng_state().numpy().tobytes(),
    "random state of cuda": lambda _: (
        [s.numpy().tobytes() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    ),
    "random state of numpy": lambda _: bits(np.random.get_state()),
    "random state of Python": lambda _: random.getstate(),
}

OF_PROCESS: dict[str, Item] = {
    "gradients on": lambda _: torch.is_grad_enabled(),
    "inference mode": lambda _: torch.is_inference_mode_enabled(),
    "autocast": lambda _: [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
    "autocast's cache": lambda _: torch.is_autocast_cache_enabled(),
    "default dtype": lambda _: torch.get_default_dtype(),
    "default device": lambda _: torch.get_default_device(),
    "anomaly detection": lambda _: torch.is_anomaly_enabled(),
    "deterministic algorithms": lambda _: torch.are_deterministic_algorithms_enabled(),
    "threads of torch": lambda _: torch.get_num_threads(),
    "attention kernels": lambda _: (
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled(),
    ),
    "fused encoder": lambda _: torch.backends.mha.get_fastpath_enabled(),
    "cudnn": lambda _: (
        torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    ),
    "matmul precision": lambda _: switches(),
    "mkldnn": lambda _: torch._C._get_mkldnn_enabled(),
    "dispatch modes": lambda _: torch._C._len_torch_dispatch_stack(),
    "function modes": lambda _: torch._C._len_torch_function_stack(),
    "functorch level": lambda _: torch._C._functorch.maybe_current_level(),
    "methods of nn.Module": lambda _: [id(inspect.getattr_static(nn.Module, name, None)) for name in _PATCHED],
    "hooks of all modules": lambda _: [[*getattr(_global_hooks, name)] for name in _GLOBAL_HOOKS],
    "numpy's errors": lambda _: np.geterr(),
    "numpy's printing": lambda _: repr(np.get_printoptions()),
    "filters of warnings": lambda _: [*warnings.filters],
    "handlers of signals": lambda _: [repr(signal.getsignal(s)) for s in sorted(signal.valid_signals())],
    "environment": lambda _: dict(os.environ),
    "folder": lambda _: os.getcwd(),
    "path of imports": lambda _: (list(sys.path), [id(f) for f in sys.meta_path]),
    "streams": lambda _: (id(sys.stdout), id(sys.stderr), id(sys.stdin)),
    "hooks of Python": lambda _: (id(sys.excepthook), id(sys.displayhook), id(threading.excepthook)),
    "limit of recursion": lambda _: sys.getrecursionlimit(),
    "collector": lambda _: (gc.isenabled(), gc.get_threshold()),
    "locale": lambda _: locale.setlocale(locale.LC_ALL),
    "logging": lambda _: (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
    "threads": lambda _: sorted(t.name for t in threading.enumerate()),
    "figures' style": lambda _: _style(),
}  # fmt: skip

ITEMS: dict[str, Item] = OF_MODEL | OF_RANDOMNESS | OF_PROCESS


def _style() -> str:
    matplotlib = sys.modules.get("matplotlib")
    return "" if matplotlib is None else repr(dict(matplotlib.rcParams))


def snapshot(model: nn.Module, items: Iterable[str] = ITEMS) -> dict[str, Any]:
    """The items' values of now."""
    return {name: ITEMS[name](model) for name in items}


def changed(before: dict[str, Any], after: dict[str, Any], moves: Iterable[str] = ()) -> list[str]:
    """Names of the items that differ, without those that may."""
    return [name for name, value in before.items() if name not in set(moves) and after[name] != value]
