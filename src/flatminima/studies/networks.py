"""The networks that studies trained, in one folder beside them: no training is done twice, in whichever study it is.

A file is named by what decides its weights: the network before training, the samples, the configuration, what the
augmentation does to them, and the versions that compute alike. Where a run trains with its own optimizer or looks on
after each epoch, its study and configuration belong to the name too, as a function cannot be compared; of an optimizer
its last state is kept besides. So another study that asks for the same training finds it, and a run whose measures are
to be taken anew, its .json removed, trains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from flatminima.errors import CheckpointError
from flatminima.io import make_folder, versions, write_whole
from flatminima.studies.releases import computed_by
from flatminima.training import Epoch, Evaluation, History, TrainConfig, read_weights, write_weights
from flatminima.training.session import CONFIGURATION, METRICS, STATE
from flatminima.training.steps import Augment
from flatminima.untrusted import parsed

FOLDER = "networks"
_DIGITS = 12  # bytes of a name
_PROBE = 16  # samples that tell one augmentation from another


@dataclass(frozen=True)
class Trained:
    """Result of a training: weights, its History, and what was looked at after each epoch."""

    weights: Mapping[str, Tensor]
    history: History
    seen: list[Any]


def name_of(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
    augment: Augment | None = None,
    own: Mapping[str, Any] | None = None,
) -> str:
    """The file's name of a training that is about to begin.

    Args:
        model: as it starts. x, y: all samples. config: of the training. augment: of a batch.
        own: what else decides it, of what JSON can hold; None: nothing does.
    """
    digest = hashlib.blake2b(digest_size=_DIGITS)
    recipe = {"network": repr(model), "config": asdict(config), "own": own, "versions": computed_by()}
    digest.update(json.dumps(recipe, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        _add(digest, tensor)
    for tensor in (x, y):
        _add(digest, tensor)
    if augment is not None:
        _add(digest, augment(x[:_PROBE].clone(), torch.Generator().manual_seed(0)))
    return f"{digest.hexdigest()}.safetensors"


def find(file: Path) -> Trained | None:
    """A training that was kept; None if there is none, or the file is damaged."""
    if not file.is_file():
        return None
    try:
        weights = read_weights(file)
        with safetensors.safe_open(file, "pt") as opened:
            told = parsed(opened.metadata()["training"])
        past = told["history"]
        epochs = tuple(Epoch.from_dict(epoch) for epoch in past["epochs"])
        history = History(**past | {"epochs": epochs, "final": Evaluation(**past["final"])})
        return Trained(weights, history, told["seen"])
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):
        return None


def keep(file: Path, model: nn.Module, history: History, seen: list[Any], session: Path | None = None) -> None:
    """Write a training down.

    Args:
        session: the folder of a training whose optimizer the run may read when it is done: its last state is kept too.

    Raises:
        WriteFailed: no space, no permission, a failing disk.
    """
    make_folder(file.parent)
    told = {"history": history.to_dict(), "seen": seen}
    write_weights(model.state_dict(), file, {"training": json.dumps(told), "versions": json.dumps(versions())})
    if session is not None:
        _copy(session, _state(file))


def lend_state(file: Path, session: Path) -> None:
    """The last state of a training that was kept with it, as if a kill had come after its last step; else nothing.

    The weights alone would not do: of an optimizer that has made no step a run could read nothing.
    """
    kept = _state(file)
    if (session / STATE).exists() or not file.is_file() or not (kept / STATE).is_file():
        return
    try:
        torch.load(kept / STATE, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file may raise anything; the training is done again
        return
    _copy(kept, session)


def _state(file: Path) -> Path:
    return file.with_suffix(".state")


def _copy(session: Path, to: Path) -> None:
    make_folder(to)
    for name in (METRICS, CONFIGURATION, STATE):  # the state last: without it the rest is not used
        write_whole(to / name, (session / name).read_bytes())


def _add(digest: Any, tensor: Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy())
