"""Refusals of a network and of samples without torch: files that are not there, names that cannot be one."""

from __future__ import annotations

from pathlib import Path

from flatminima.cli import factory, language
from flatminima.cli.sample_options import Reading
from flatminima.errors import CheckpointError, DataError, UsageError

_FILES = (".csv", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".pt", ".pth", ".safetensors", ".tsv")


def is_function(data: str) -> bool:
    """Whether --data names code: package.module:function, and no file or folder of that name."""
    return ":" in data and "/" not in data.partition(":")[2] and not Path(data).exists()


def check_network(
    model: str, model_arg: list[str], model_config: str | Path | None, checkpoint: str | Path | None,
    app_dir: str | Path | None,
) -> None:  # fmt: skip
    """Refuse what can be refused without torch."""
    if not language.is_language(model):
        factory.split(model)
    factory.arguments(model_arg)
    if checkpoint is not None and not Path(checkpoint).exists():
        raise CheckpointError(f"no file {checkpoint} for --checkpoint; check the path")
    if model_config is not None and not Path(model_config).is_file():
        raise UsageError(f"no file {model_config} for --model-config; check the path")
    if app_dir is not None and not Path(app_dir).is_dir():
        raise UsageError(f"no folder {app_dir} for --app-dir; check the path")


def check_samples(model: str, data: str, reading: Reading) -> None:
    """Refuse data that is not there, texts of which the model makes nothing."""
    if language.is_language(model):
        language.check(model, data, reading.packing, reading.length)
    else:
        check_data(data)


def check_data(data: str, option: str = "--data") -> None:
    """Refuse a path that is not there, and code whose name cannot be one."""
    if is_function(data):
        factory.split(data, option)
        return
    path = Path(data).expanduser()
    if path.exists():
        return
    if path.suffix.lower() in _FILES:
        raise DataError(f"no file {data} for {option}; check the path")
    if data.startswith((".", "/", "~")):
        raise DataError(f"no folder {data} for {option}; check the path")
