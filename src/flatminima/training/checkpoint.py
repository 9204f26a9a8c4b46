"""A model's weights to a file and back; a file that does not fit leaves the model as it was.

Everything is checked before the first weight changes: names, shapes, kinds, NaN. Prefixes that wrappers leave
behind (`module.` of DataParallel, `_orig_mod.` of torch.compile) are stripped and said aloud.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flatminima.errors import CheckpointError
from flatminima.training.weights_file import read_weights, write_weights

_LISTED = 5  # keys of each kind in a message
_PARALLEL, _COMPILED = "module.", "_orig_mod."


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's parameters and buffers as safetensors: complete or not at all.

    Tied weights are written once, under their first name. Wrappers' prefixes are not written.

    Args:
        model: any module whose state is tensors.
        path: in a folder that exists; a file already there is replaced.
        metadata: strings for the file's header, e.g. the scaling of the inputs.

    Raises:
        CheckpointError: state that is not tensors, or a file that cannot be written.
    """
    state = _state(model)
    names = _bare(state)
    first: dict[object, str] = {}
    for name, tensor in state.items():
        first.setdefault(_identity(tensor, name), name)
    write_weights({names[name]: state[name] for name in first.values()}, path, metadata)


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Fill a model with the weights in a file.

    Args:
        model: has the parameters and buffers that the file names; keeps its dtypes, device and modes.
        path: a .safetensors file, or a .pt or .pth file of a state dictionary (see `read_weights`).

    Returns:
        What was done beyond copying, a line each, for the user: prefixes stripped, dtypes converted.

    Raises:
        CheckpointError: a file that cannot be read or is not weights, keys that are missing, unexpected or of
            another shape (the first five of each are named), or values that are not finite. The model is
            unchanged.
    """
    found = read_weights(path)
    state = _state(model)
    file = Path(path)
    bare_found, bare_state = _bare(found), _bare(state)
    notes = [
        f"stripped the prefix {prefix!r} from the names in {file.name}"
        for prefix in (_PARALLEL, _COMPILED)
        if "".join(bare_found).count(prefix) > "".join(bare_found.values()).count(prefix)
    ]
    source = {bare_found[name]: tensor for name, tensor in found.items()}
    target = {bare_state[name]: (name, tensor) for name, tensor in state.items()}
    _check_fit(source, target, file)
    _check_finite(source, file)
    casts = {
        f"{tensor.dtype} to {target[name][1].dtype}".replace("torch.", "")
        for name, tensor in source.items()
        if tensor.dtype != target[name][1].dtype
    }
    notes += [f"converted {cast}" for cast in sorted(casts)]
    # not strict: tied weights are in the file once, and old files lack BatchNorm's batch counter
    model.load_state_dict({target[name][0]: tensor for name, tensor in source.items()}, strict=False)
    return tuple(notes)


def _check_fit(source: Mapping[str, Tensor], target: Mapping[str, tuple[str, Tensor]], file: Path) -> None:
    given = {_identity(tensor, name) for name, (_, tensor) in target.items() if name in source}
    missing = [
        name
        for name, (_, tensor) in target.items()
        if name not in source and _identity(tensor, name) not in given and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in source if name not in target]
    shaped = [
        f"{name} (file {_say(tensor)}, model {_say(target[name][1])})"
        for name, tensor in source.items()
        if name in target and not _fits(tensor, target[name][1])
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape or kind", shaped),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(problems)}")


def _check_finite(source: Mapping[str, Tensor], file: Path) -> None:
    for name, tensor in source.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # 8-bit floats have no isfinite; float64 holds every narrower one
        wide = tensor if tensor.is_complex() or tensor.dtype == torch.float32 else tensor.double()
        bad = int((~torch.isfinite(wide)).sum())
        if bad:
            raise CheckpointError(f"{file}: {bad} of {tensor.numel()} values of {name} are NaN or infinite")


def _fits(tensor: Tensor, wanted: Tensor) -> bool:
    return (
        tensor.shape == wanted.shape
        and tensor.layout == wanted.layout
        and tensor.is_floating_point() == wanted.is_floating_point()
        and tensor.is_complex() == wanted.is_complex()
        and not tensor.is_quantized
    )


def _say(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that a file should hold, by the model's own names."""
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"the model's state {name!r} is a {type(value).__name__}, not a tensor")
        if value.is_meta:
            raise CheckpointError(f"the model's {name!r} is on the meta device: materialise the model first")
    return dict(state)


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Each name without the prefixes that wrappers add; `module.` only where every name has it."""
    every = list(names)
    bare = [name.replace(_COMPILED, "") for name in every]
    while bare and all(name.startswith(_PARALLEL) for name in bare):
        bare = [name.removeprefix(_PARALLEL) for name in bare]
    if len(set(bare)) < len(every):  # stripping would make two tensors one: then they are real names
        bare = every
    return dict(zip(every, bare, strict=True))


def _identity(tensor: Tensor, name: str) -> object:
    """Equal for two names of one tensor, and only then."""
    if tensor.numel() == 0:
        return name  # empty tensors all live at address 0
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
