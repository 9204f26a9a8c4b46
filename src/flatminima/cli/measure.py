"""`flatminima measure`: the measures of a network of the user's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima import catalog
from flatminima.cli import factory
from flatminima.cli.terminal import bars, out, say
from flatminima.errors import UsageError

if TYPE_CHECKING:
    from flatminima.minimum import Minimum
    from flatminima.rounds import MeasureFunction

_MORE = "see flatminima list"


def measure(
    model: Annotated[str, typer.Option(help="Import string, package.module:factory.")],
    data: Annotated[str, typer.Option(help="'digits', a folder in the Hugging Face layout, or a hub name.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: .safetensors, or .pt read with weights_only=True.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, test, train[:1000], ...")] = "train",
    measures: Annotated[str | None, typer.Option(help=f"Comma-separated names; all by default ({_MORE}).")] = None,
    scaling: Annotated[str, typer.Option(help="'unit' (pixels / 255) or 'standard' (per channel).")] = "unit",
    limit: Annotated[int | None, typer.Option(min=1, help="Use a fixed random subset of so many samples.")] = None,
    loss: Annotated[str, typer.Option(help="Per-sample loss.")] = "cross_entropy",
    subset: Annotated[int | None, typer.Option(min=1, help="Samples a Gram matrix (Fisher family).")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="key=value for the factory; repeat.")] = None,
    app_dir: Annotated[Path | None, typer.Option(help="Folder to import --model from.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for measures.json and report.html.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure a trained network: its weights, on the data it was trained on."""
    names = _names(measures)
    factory.split(model)
    options = factory.arguments(model_arg or [])
    if output is not None:
        _writable(output)
    minimum = _minimum(
        model, options, app_dir, checkpoint, data, split, scaling, limit, loss, batch_size, device, seed, threads
    )
    wanted = [_with_subset(name, subset) for name in names]
    if dry_run:
        _dry_run(minimum, wanted, as_json)
        return
    from flatminima.rounds import measure as run
    from flatminima.table import render

    with bars():
        table = run(minimum, wanted)
    document = table.to_dict() | {"command": _command(model, checkpoint, data, split, scaling, seed)}
    if output is not None:
        _save(document, output)
    if as_json:
        import json

        typer.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        render(table, out())
    if checkpoint is None:
        say("Note: no --checkpoint, so these are the weights that the factory gave")
    if output is None:
        say("Next: the same with --output FOLDER writes measures.json and report.html")


def _names(measures: str | None) -> list[str]:
    names = list(catalog.MEASURES) if measures is None else [n.strip() for n in measures.split(",") if n.strip()]
    if not names:
        raise UsageError(f"got --measures {measures!r}; name at least one, {_MORE}")
    return [catalog.measure(name).name for name in names]


def _writable(output: Path) -> None:
    """Refuse before the work what would fail after it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".flatminima-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}; choose another --output") from None


def _minimum(
    model: str,
    options: dict[str, Any],
    app_dir: Path | None,
    checkpoint: Path | None,
    data: str,
    split: str,
    scaling: str,
    limit: int | None,
    loss: str,
    batch_size: int,
    device: str | None,
    seed: int,
    threads: int | None,
) -> Minimum:
    import torch

    from flatminima.data import load_tensors
    from flatminima.losses import Loss
    from flatminima.minimum import Minimum
    from flatminima.training import load_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    Loss.of(loss)
    where = _device(device)
    network = factory.build(model, options, app_dir)
    if checkpoint is not None:
        for note in load_checkpoint(network, checkpoint):
            say(f"Note: {note}")
    x, y = load_tensors(data, split, limit=limit, scaling=scaling)
    return Minimum(network.eval(), (x, y), loss, batch_size=batch_size, device=where, seed=seed)


def _device(name: str | None) -> str | None:
    import torch

    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"device {name!r} cannot be used here; available: {', '.join(found)}") from None
    return name


def _with_subset(name: str, subset: int | None) -> MeasureFunction | str:
    """The measure by name, or with its Gram subset set."""
    from inspect import signature

    if subset is None:
        return name
    function = catalog.measure(name).load()
    if "subset" not in signature(function).parameters:
        return name

    def chosen(minimum: Any) -> Any:
        return function(minimum, subset=subset)

    chosen.__name__ = name
    return chosen


def _dry_run(minimum: Minimum, wanted: list[MeasureFunction | str], as_json: bool) -> None:
    """The plan, with the time that one timed batch suggests."""
    import json
    from dataclasses import asdict

    import torch

    from flatminima.rounds import plan

    found = plan(minimum, wanted)
    indices = torch.arange(min(minimum.batch_size, len(minimum.samples)))
    with minimum.open():
        batch = minimum.batch(indices)
        for _ in range(2):  # the first pays for warming up
            start = time.perf_counter()
            batch.gradient()
            seconds = time.perf_counter() - start
    both = seconds * len(minimum.samples) / len(indices)  # one forward and one backward pass, about 1 : 2
    estimate = both * (found.cost.forward + 2 * found.cost.backward) / 3
    if as_json:
        document = asdict(found) | {"schema": 1, "seconds": estimate, "samples": len(minimum.samples)}
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(str(found))
    typer.echo(f"about {estimate:.0f} s on {len(minimum.samples)} samples; nothing was measured")


def _command(model: str, checkpoint: Path | None, data: str, split: str, scaling: str, seed: int) -> dict[str, Any]:
    return {
        "model": model,
        "checkpoint": None if checkpoint is None else checkpoint.name,
        "data": Path(data).name,
        "split": split,
        "scaling": scaling,
        "seed": seed,
    }


def _save(document: dict[str, Any], output: Path) -> None:
    import json

    from flatminima.report import write_measures
    from flatminima.table import write_whole

    write_whole(output / "measures.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_measures(document, output / "report.html")
    say(f"Report: {output / 'report.html'}")
