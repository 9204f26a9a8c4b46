"""Files of weights, as untrusted input: tensors are read, nothing in a file is ever executed.

safetensors, or torch's own format through `torch.load(weights_only=True)`; there is no way round it. The
format is told from the content, since a failed download is often an HTML page or a Git LFS pointer with the
right name.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flatminima.errors import CheckpointError, UsageError
from flatminima.io import write_whole
from flatminima.untrusted import Unreadable, cannot_read, refuse_other_files

_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
_HEAD_BYTES = 512
_EXPANDED = 1 << 26  # bytes: what a tensor with strides of 0 may always stand for
_ALIGNED = 8  # bytes: where the tensors of a safetensors file begin
_SAFETENSORS_HEADER = slice(8, 9)  # after the header's length comes its opening brace


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors in a file, on the CPU.

    Args:
        path: a .safetensors file, or a .pt or .pth file that holds a state dictionary, at the top or under
            "state_dict", "model_state_dict", "model", "net" or "weights".

    Raises:
        CheckpointError: no such file, a folder, a damaged or foreign file, a pickled module or anything else
            that is not tensors; one line that says what to do.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder: name the weights file inside it")
    try:
        refuse_other_files(file)
        with file.open("rb") as handle:
            head = handle.read(_HEAD_BYTES)
    except Unreadable as error:
        raise CheckpointError(f"cannot read weights from {file}: {error}") from None
    except OSError as error:
        raise cannot_read(file, error) from None
    _refuse_other_files(file, head)
    found = _safetensors(file) if head[_SAFETENSORS_HEADER] == b"{" else _torch(file)
    return _tensors(found, file)


def write_weights(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, so that the file is either complete or absent.

    Args:
        tensors: any strides and devices; two names of one tensor are both written.
        path: in a folder that exists; an existing file is replaced.
        metadata: strings kept in the file's header.

    Raises:
        CheckpointError, WriteFailed: the file cannot be written; nothing of it is left.
    """
    file = Path(path).expanduser()
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, {"format": "pt", **(metadata or {})})
    try:
        write_whole(file, _in_order(content))
    except UsageError as error:
        raise CheckpointError(str(error)) from None


def _in_order(content: bytes) -> bytes:
    """The same file with the entries of its header's metadata sorted: safetensors writes them in a random order."""
    start = _SAFETENSORS_HEADER.start + int.from_bytes(content[: _SAFETENSORS_HEADER.start], "little")
    header = json.loads(content[_SAFETENSORS_HEADER.start : start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(_SAFETENSORS_HEADER.start, "little") + text + content[start:]


def _refuse_other_files(file: Path, head: bytes) -> None:
    text = head.lstrip().lower()
    if not head:
        raise CheckpointError(f"{file} is empty: the file is damaged or incomplete")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} looks like a Git LFS pointer: run 'git lfs pull' to fetch the weights")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{file} looks like a web page, not weights: download the file itself")
    if text.startswith((b"{", b"[")):
        raise CheckpointError(f"{file} is JSON, not weights: name the .safetensors or .pt file it goes with")


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} is damaged or incomplete: {_one_line(error)}") from error


def _torch(file: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript and protocols: what matters is raised
            found: object = torch.load(file, map_location="cpu", weights_only=True)
            return found
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise CheckpointError(
                f"{file} is not a weights file, or damaged: expected safetensors, or a state "
                "dictionary written by torch.save"
            ) from error
        raise CheckpointError(
            f"{file} is refused: it holds the Python object {named[1]}, and loading it could run code. If you "
            "trust it, convert it where it was made: model = torch.load(path, weights_only=False); "
            "torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except Exception as error:  # EOFError, IndexError, RuntimeError, ...: damaged files fail anywhere
        if "legacy .tar format" in str(error):  # torch's own advice is to let it run code
            raise CheckpointError(
                f"{file} is damaged, or was written by PyTorch before 0.1.10, whose files are not read since "
                "they could run code"
            ) from None
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{file} is a TorchScript program, not weights: save model.state_dict() instead"
            ) from error
        raise CheckpointError(f"{file} is damaged or incomplete: {_one_line(error)}") from error


def _tensors(found: object, file: Path) -> dict[str, Tensor]:
    """The state dictionary in what a file held, which may be one level down."""
    seen: set[int] = set()
    while isinstance(found, Mapping) and id(found) not in seen:
        seen.add(id(found))  # a file may hold a dictionary that holds itself
        found = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found:
        held = "an empty dictionary" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise CheckpointError(f"{file} holds {held}, not a state dictionary: save model.state_dict()")
    foreign = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    if foreign or not all(isinstance(key, str) for key in found):
        raise CheckpointError(
            f"{file} holds {', '.join(foreign[:5]) or 'unnamed tensors'} beside or instead of tensors: "
            "save model.state_dict(), or put it under 'state_dict'"
        )
    for name, tensor in found.items():
        _refuse_unreal(str(name), tensor, file)
    return {str(key): value for key, value in found.items()}


def _refuse_unreal(name: str, tensor: Tensor, file: Path) -> None:
    """Tensors whose entries are not in the file: of no values, or few values that are claimed to be very many."""
    if tensor.is_nested or tensor.is_meta:
        raise CheckpointError(f"{file}: {name} is a {'nested tensor' if tensor.is_nested else 'tensor without values'}")
    if tensor.layout != torch.strided:
        return
    full, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if full > max(_EXPANDED, 16 * held):
        raise CheckpointError(
            f"{file}: {name} is {held:,} bytes expanded to {full:,}: save tensors that hold their values (contiguous())"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
