"""Hashes of everything that a measurement must leave alone."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _bytes(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return b"none"
    data = tensor.detach().cpu().contiguous()
    return pickle.dumps((str(data.dtype), tuple(data.shape))) + data.reshape(-1).view(torch.uint8).numpy().tobytes()


def snapshot(model: nn.Module) -> dict[str, str]:
    """Hashes of parameters, buffers, modes, .grad, hooks, requires_grad, plain attributes and random states."""
    found: dict[str, Any] = {
        "torch random state": _bytes(torch.get_rng_state()),
        "numpy random state": pickle.dumps(np.random.get_state()),
        "python random state": pickle.dumps(random.getstate()),
        "grad mode": str(torch.is_grad_enabled()).encode(),
        "mha fast path": str(torch.backends.mha.get_fastpath_enabled()).encode(),
    }
    for name, p in model.named_parameters(remove_duplicate=False):
        found[f"parameter {name}"] = _bytes(p)
        found[f"grad {name}"] = _bytes(p.grad)
        found[f"identity {name}"] = pickle.dumps((id(p), p.data_ptr(), p.requires_grad, id(p.grad)))
    for name, b in model.named_buffers(remove_duplicate=False):
        found[f"buffer {name}"] = _bytes(b) + pickle.dumps(id(b))
    for name, m in model.named_modules():
        found[f"mode {name}"] = str(m.training).encode()
        found[f"hooks {name}"] = pickle.dumps([[(k, id(v)) for k, v in getattr(m, h).items()] for h in _HOOKS])
        plain = {k: v for k, v in vars(m).items() if isinstance(v, int | float | str | bool | None)}
        found[f"attributes {name}"] = pickle.dumps(sorted(plain.items(), key=str))
    return {key: hashlib.blake2b(value, digest_size=8).hexdigest() for key, value in found.items()}


Untouched = Callable[[nn.Module], AbstractContextManager[None]]
