"""Hugging Face models for measuring: causal language models, sequence and token classifiers, and PEFT adapters.

``hf:NAME_OR_FOLDER[@revision]``. Weights are read from safetensors alone and code of the hub is never run, so that
loading a model executes nothing that came with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from flatminima.errors import CheckpointError, MissingExtra, ModelError, UsageError
from flatminima.untrusted import Unreadable, read_json

_PREFIX = "hf:"
Task = Literal["causal_lm", "sequence_classification", "token_classification"]
_ENDINGS: dict[str, Task] = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
}
_PEFT_TASKS: dict[str, Task] = {
    "CAUSAL_LM": "causal_lm",
    "SEQ_CLS": "sequence_classification",
    "TOKEN_CLS": "token_classification",
}
HUB_LOSS: dict[Task, str] = {
    "causal_lm": "causal_lm",
    "sequence_classification": "cross_entropy",
    "token_classification": "token_cross_entropy",
}
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Reference:
    """A name of the hub or a folder, and which of its revisions."""

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> Reference:
        """Parse ``hf:NAME_OR_FOLDER[@revision]``.

        Raises:
            UsageError: no name, or nothing after the @.

        Examples:
            >>> Reference.of("hf:gpt2@main")
            Reference(name='gpt2', revision='main')
        """
        name = text.removeprefix(_PREFIX)
        if not Path(name).is_dir() and "@" in name:
            name, _, revision = name.rpartition("@")
        else:
            revision = None
        if not name or revision == "":
            raise UsageError(f"got --model {text!r}; expected hf:NAME_OR_FOLDER or hf:NAME_OR_FOLDER@revision")
        return cls(name, revision)

    @property
    def folder(self) -> Path | None:
        """The local folder, if it is one."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, what it predicts, its tokenizer where it has one, and what the user should know."""

    model: nn.Module
    task: Task
    tokenizer: Any
    notes: tuple[str, ...]


def load(text: str, *, task: Task | None = None) -> Loaded:
    """The model, with its adapter if the reference is one, and its tokenizer.

    Args:
        text: ``hf:NAME_OR_FOLDER[@revision]``: weights in safetensors, or a PEFT adapter of such a model.
        task: of a model whose configuration does not say it; None: as it says.

    Returns:
        The model in eval mode, without its cache of keys and values; an adapter's base model is frozen.

    Raises:
        UsageError: the reference. CheckpointError: no such model, no safetensors, a damaged file.
        ModelError: a model that is neither of the three, or whose code is on the hub.
        MissingExtra: transformers, or peft for an adapter, is not installed.
    """
    if task is not None and task not in get_args(Task):
        raise UsageError(f"got task={task!r}; expected one of {', '.join(get_args(Task))}")
    reference = Reference.of(text)
    transformers = _transformers()
    if reference.folder is None and reference.name.startswith((".", "/", "~")):
        raise CheckpointError(f"no folder {reference.name} for --model; check the path")
    adapter = _adapter(reference)
    if adapter is None:
        model, found, notes = _whole(transformers, reference, task, ())
    else:
        model, found, notes = _adapted(transformers, reference, adapter, task)
    tokenizer, more = _tokenizer(transformers, reference, adapter)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = pad  # sequence classifiers look for the last token that is no padding
    return Loaded(model.eval(), found, tokenizer, (*notes, *more))


def _whole(
    transformers: Any, reference: Reference, task: Task | None, notes: tuple[str, ...]
) -> tuple[Any, Task, tuple[str, ...]]:
    """A model with weights of its own."""
    with _in_our_words(reference):
        config = transformers.AutoConfig.from_pretrained(
            reference.name, revision=reference.revision, trust_remote_code=False
        )
    if getattr(config, "auto_map", None) and type(config).__module__.split(".")[0] != "transformers":
        raise ModelError(f"{reference.name} needs code from the hub, which is never run: use a model of transformers")
    found = task or _task_of(config, reference)
    kind = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "sequence_classification": transformers.AutoModelForSequenceClassification,
        "token_classification": transformers.AutoModelForTokenClassification,
    }[found]
    _refuse_pickles(reference)
    with _in_our_words(reference):
        model, seen = kind.from_pretrained(
            reference.name,
            revision=reference.revision,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    missing = sorted(seen.get("missing_keys", ()))
    if missing:
        notes += (f"{len(missing)} weights are not in the file and are random: {', '.join(missing[:3])}",)
    return model, found, notes


def _adapted(
    transformers: Any, reference: Reference, adapter: dict[str, Any], task: Task | None
) -> tuple[Any, Task, tuple[str, ...]]:
    """A base model with a PEFT adapter, of which only the adapter can be trained."""
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "hf", f"the adapter {reference.name}") from None
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{reference.name}/{_ADAPTER} names no base model")
    folder = reference.folder
    if folder is not None and not Path(base).is_dir() and (folder / base).is_dir():
        base = str(folder / base)  # a path that is meant from the adapter's folder
    if folder is not None and not list(folder.glob("adapter_model*.safetensors")):
        raise CheckpointError(f"{reference.name} holds no adapter_model.safetensors; other files are not read")
    known = task or _PEFT_TASKS.get(str(adapter.get("task_type")))
    model, found, notes = _whole(transformers, Reference(str(base), adapter.get("revision")), known, ())
    with _in_our_words(reference):
        model = peft.PeftModel.from_pretrained(model, reference.name, revision=reference.revision)
    # loaded for inference, an adapter is frozen: its weights are what was trained, and what is measured
    for name, p in model.named_parameters():
        p.requires_grad_(any(part in name for part in ("lora_", "modules_to_save", "prompt_", "ia3_", "adapter_")))
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            f"the adapter {reference.name} ({adapter.get('peft_type')}) has no weights that are known here"
        )
    return model, found, (*notes, f"adapter {adapter.get('peft_type')} of {base}: the base model is frozen")


def _task_of(config: Any, reference: Reference) -> Task:
    names = list(getattr(config, "architectures", None) or ())
    for name in names:
        for ending, task in _ENDINGS.items():
            if name.endswith(ending):
                return task
    said = ", ".join(names) or "none"
    raise ModelError(
        f"{reference.name} is a {said}; expected one of {', '.join(f'...{e}' for e in _ENDINGS)}: for another model "
        "use --model package.module:factory"
    )


def _adapter(reference: Reference) -> dict[str, Any] | None:
    """The adapter's configuration, None where the reference is a whole model."""
    folder = reference.folder
    if folder is not None:
        file = folder / _ADAPTER
        if not file.is_file():
            return None
    else:
        from transformers.utils import cached_file

        try:
            found = cached_file(reference.name, _ADAPTER, revision=reference.revision)
        except (OSError, ValueError):  # the model itself will say it better
            return None
        if found is None:
            return None
        file = Path(found)
    try:
        loaded = read_json(file)
    except Unreadable as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    return loaded if isinstance(loaded, dict) else {}


def _tokenizer(transformers: Any, reference: Reference, adapter: dict[str, Any] | None) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer beside the model, or beside the base of an adapter; None where there is none."""
    places = [reference]
    if adapter is not None and adapter.get("base_model_name_or_path"):
        base = str(adapter["base_model_name_or_path"])
        beside = reference.folder / base if reference.folder is not None else None
        places.append(Reference(str(beside) if beside is not None and beside.is_dir() else base))
    for place in places:
        if place.folder is not None and not any(place.folder.glob("tokenizer*")) and not any(
            (place.folder / name).exists() for name in ("vocab.txt", "vocab.json", "spiece.model")
        ):  # fmt: skip
            continue
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place.name, revision=place.revision, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError):
            continue
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
            tokenizer.pad_token = tokenizer.eos_token
            return tokenizer, ("no padding token: padded with the end-of-text token, under the mask",)
        return tokenizer, ()
    return None, ()


def _refuse_pickles(reference: Reference) -> None:
    """A folder without safetensors is refused before transformers looks for pickles."""
    if reference.folder is not None and not list(reference.folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{reference.name} holds no .safetensors file; weights in other files are not read: save the model with "
            "save_pretrained(folder)"
        )


@contextmanager
def _in_our_words(reference: Reference) -> Iterator[None]:
    """What transformers, peft and the hub raise, in one line."""
    try:
        yield
    except Exception as error:  # of transformers, peft, the hub's client and safetensors, each with classes of its own
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{reference.name} needs code from the hub, which is never run: use a model of transformers"
            ) from None
        raise CheckpointError(f"{reference.name} cannot be loaded: {line[:300]}") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "hf", "--model hf:") from None
    return transformers
