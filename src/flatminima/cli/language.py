"""``--model hf:NAME_OR_FOLDER[@revision]``: a model of Hugging Face on texts, with its own tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.errors import CheckpointError, DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from flatminima.core.minimum import Minimum
    from flatminima.models.hf import Loaded

_PREFIX = "hf:"
_USUAL_LENGTH = 512  # tokens
_USUAL_BATCH, _TOKENS = 256, 2048  # --batch-size where it is left out, and tokens at a time then
_USUAL = "cross_entropy"  # --loss where it is left out


def is_language(model: str) -> bool:
    """Whether --model names a model of Hugging Face."""
    return model.startswith(_PREFIX)


def check(model: str, data: str, packing: bool, length: int | None) -> None:
    """Refuse what can be refused without torch.

    Raises:
        UsageError, CheckpointError, DataError: naming the option.
    """
    name = model.removeprefix(_PREFIX)
    if not name or name.startswith("@") or name.endswith("@"):
        raise UsageError(f"got --model {model!r}; expected hf:NAME_OR_FOLDER or hf:NAME_OR_FOLDER@revision")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists() and "@" not in name:
        raise CheckpointError(f"no folder {name} for --model; check the path")
    if packing and length is None:
        raise UsageError("got --packing without --length; say how many tokens a block has")
    if not Path(data).expanduser().exists():
        raise DataError(f"no file {data} for --data; with hf: models it is a .txt, .jsonl, .parquet or .csv of texts")


@cache
def load(model: str) -> Loaded:
    """The model, once for a command: its network and its tokenizer come from here."""
    from flatminima.errors import MissingExtra
    from flatminima.models import hf

    try:
        from transformers.utils import logging
    except ImportError:
        raise MissingExtra("transformers", "hf", "--model hf:") from None
    logging.disable_progress_bar()  # stderr is for what the user should know
    logging.set_verbosity_error()
    return hf.load(model)


def texts(
    model: str,
    data: str,
    split: str,
    *,
    limit: int | None,
    length: int | None,
    packing: bool,
    text_column: str | None,
    label_column: str | None,
) -> tuple[tuple[dict[str, Tensor], Tensor], tuple[str, ...]]:
    """Tokens, masks and targets of a file, or of the file of a folder that is called as the split; and notes.

    Raises:
        DataError: no tokenizer beside the model, no such file.
    """
    from flatminima.data.text import load_texts

    found = load(model)
    if found.tokenizer is None:
        raise DataError(f"no tokenizer beside {model}: save it there with tokenizer.save_pretrained(folder)")
    named = getattr(found.model.config, "label2id", None) or {}
    names = tuple(sorted(named, key=named.__getitem__))
    read = load_texts(
        _file(Path(data).expanduser(), split),
        found.tokenizer,
        found.task,
        length=_shortest(length, found),
        packing=packing,
        text_column=text_column,
        label_column=label_column,
        classes=None if all(name.startswith("LABEL_") for name in names) else names,
        limit=limit,
    )
    words, most = getattr(found.model.config, "vocab_size", None), int(read.inputs["input_ids"].max())
    if isinstance(words, int) and most >= words:
        raise DataError(f"the tokenizer beside {model} has a token {most}, and the model {words} words: not its own?")
    return (read.inputs, read.targets), read.notes


def loss(model: str, asked: str) -> str:
    """The loss that the model was trained with, unless --loss says another."""
    from flatminima.models.hf import HUB_LOSS

    return HUB_LOSS[load(model).task] if asked == _USUAL else asked


def batch_size(asked: int, targets: Tensor) -> int:
    """Samples at a time: as --batch-size says, but where it is left out no more than 2,048 tokens."""
    tokens = max(1, targets[0].numel())
    return asked if asked != _USUAL_BATCH else max(1, min(asked, _TOKENS // tokens))


def said_of_losses(minimum: Minimum) -> str | None:
    """The loss of a token and of a sequence, each by its name; None where a sample has one label."""
    import math

    import torch

    from flatminima.statistics import Outputs

    _, targets = minimum.samples.take(torch.arange(len(minimum.samples)))
    if targets.dim() < 2 or targets.is_floating_point():
        return None
    shifted, summed = minimum.loss.name.startswith("causal_lm"), minimum.loss.name.endswith("_sequence")
    counts = ((targets[:, 1:] if shifted else targets) != -100).sum(1).double()
    losses = minimum[Outputs()].losses.double().cpu()
    total = losses.sum() if summed else (losses * counts).sum()
    token = float(total / counts.sum())
    perplexity = math.exp(min(token, 700.0))
    return (
        f"loss a token {token:.4g} (perplexity {perplexity:.4g}, {int(counts.sum())} tokens), a sequence "
        f"{float(total) / len(counts):.4g} (the sum over its tokens); measured: {minimum.loss.name}"
    )


def _file(path: Path, split: str) -> Path:
    from flatminima.data.text import SUFFIXES

    if not path.is_dir():
        if split != "train":
            raise DataError(f"{path} is one file, without a split {split!r}; give a folder with {split}.jsonl")
        return path
    found = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        what = "no file" if not found else "several files"
        raise DataError(f"{path} holds {what} called {split} that end with one of {', '.join(SUFFIXES)}")
    return found[0]


def _shortest(length: int | None, found: Loaded) -> int | None:
    """At most the positions that the model has; None: as the tokenizer says."""
    most: Any = getattr(found.model.config, "max_position_embeddings", None)
    if not isinstance(most, int):
        return length
    if length is not None and length > most:
        raise UsageError(f"got --length {length}; the model has {most} positions")
    return length or min(most, int(found.tokenizer.model_max_length), _USUAL_LENGTH)
