"""Whether a network is still the one that it was: its weights, its layers, its forward functions, its settings.

A tensor's version counter counts every write, those of the library too, which put back what was there. A write that
was undone is therefore noted here, so that the moves of one `Minimum` do not make another of the same model stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_SAMPLE = 4096  # entries of a tensor that are compared
_UNDONE: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (its version now, the version with the same content)
_LAYER = ""  # of `structure`: the module itself
_SKIPPED = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


def version(tensor: Tensor) -> int:
    """Version counter of a tensor's content; tensors of inference mode have none."""
    return -1 if tensor.is_inference() else tensor._version


def content_version(tensor: Tensor) -> int:
    """The version at which the content of now was written by anyone but this library."""
    now, before = _UNDONE.get(tensor, (None, 0))
    return before if now == version(tensor) else version(tensor)


def same_content(tensor: Tensor, before: int) -> None:
    """Note that the content is again, bit for bit, that of `content_version` before."""
    _UNDONE[tensor] = (version(tensor), before)


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Strided tensors that hold what a tensor of any layout holds."""
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a parameter or buffer is written."""
    return marks_of(tensors_of(model))


def marks_of(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Versions of tensors, and a sample of their entries for writes to ``.data``."""
    marks: list[Any] = []
    samples: list[Tensor] = []
    for t in tensors:
        marks.append((id(t), content_version(t), tuple(t.shape), t.requires_grad))
        samples += [sample_bytes(part) for part in dense_parts(t.detach())]
    by_device: dict[torch.device, list[Tensor]] = {}
    for sample in samples:
        by_device.setdefault(sample.device, []).append(sample)
    content = tuple(torch.cat(parts).cpu().numpy().tobytes() for parts in by_device.values())  # one copy a device
    return (tuple(marks), hash(content))


def sample_bytes(tensor: Tensor) -> Tensor:
    """Entries at equal distances, as bytes (k,) uint8: a NaN equals itself, and entries that changed places do not."""
    n = tensor.numel()
    if n == 0:
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    step = -(-n // _SAMPLE)
    if tensor.is_contiguous():
        entries = tensor.reshape(-1)[::step]
    elif step == 1:
        entries = tensor.reshape(-1)
    else:
        where = torch.arange(0, n, step, device=tensor.device)
        entries = tensor[torch.unravel_index(where, tensor.shape)]
    if entries.is_complex():
        entries = torch.view_as_real(entries)
    return entries.contiguous().view(-1).view(torch.uint8)


def structure(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Layer, forward function and plain settings (an active adapter) of each module, by (module, name)."""
    out: dict[tuple[str, str], Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # compiled: its forward and settings are what they are
            out[name, _LAYER] = (id(module), 0, ())
            continue
        forward = vars(module).get("forward", type(module).forward)
        out[name, _LAYER] = (id(module), id(getattr(forward, "__func__", forward)), tuple(module._modules))
        out.update(((name, k), v) for k, v in settings_of(vars(module)))
    return out


def differing(before: dict[tuple[str, str], Any], now: dict[tuple[str, str], Any]) -> set[tuple[str, str]]:
    """Entries that one has and the other lacks or has otherwise."""
    return {k for k in before.keys() | now.keys() if k not in before or k not in now or before[k] != now[k]}


def settings(model: nn.Module) -> dict[tuple[str, str], str]:
    """Plain attributes of all modules: (module, attribute) -> content."""
    return {(name, k): v for name, module in model.named_modules() for k, v in settings_of(vars(module))}


def settings_of(attributes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Attributes that are text, numbers or small collections of these."""
    for name, value in attributes.items():
        if name not in _SKIPPED and _plain(value):
            yield name, repr(value)


def _plain(value: Any, depth: int = 2) -> bool:
    """Whether a value is text, a number or a small collection of these."""
    if value is None or isinstance(value, str | bool | int | float):
        return True
    if depth and isinstance(value, tuple | list | set | frozenset):
        return all(_plain(v, depth - 1) for v in value)
    if depth and isinstance(value, dict):
        return all(_plain(k, 0) and _plain(v, depth - 1) for k, v in value.items())
    return False


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *(b for b in model.buffers() if b is not None)]
