"""`flatminima landscape`: the loss on a line or a plane through a minimum, drawn and as numbers."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima.catalog.choices import DIRECTIONS, LOSSES
from flatminima.cli import language
from flatminima.cli.device import take_threads, usable
from flatminima.cli.option_groups import grouped
from flatminima.cli.options import (
    MOST_SEED,
    AppDir,
    AsJson,
    BatchSize,
    Data,
    Device,
    DryRun,
    Loss,
    Model,
    ModelArg,
    ModelConfig,
    Threads,
)
from flatminima.cli.output import in_place_of_kept, kept_for, writable
from flatminima.cli.sample_options import Reading
from flatminima.cli.source import Source
from flatminima.cli.terminal import bars, say, say_notes, tell
from flatminima.errors import UnknownName, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum
    from flatminima.landscape import Landscape

FILES = ("landscape.json", "landscape.svg", "landscape.png")
_HESSIAN_PRODUCTS = 60  # until two eigenvectors have converged, typically; each costs two passes forward and backward


@grouped
def landscape(
    reading: Reading,
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for landscape.json, .svg and .png.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: .safetensors, or .pt.")] = None,
    split: Annotated[str, typer.Option(help="Split of the data.")] = "train",
    along: Annotated[str, typer.Option(help="'filter' (random, filter norms) or 'eigenvectors'.")] = "filter",
    dimensions: Annotated[int, typer.Option(min=1, max=2, help="1: a line. 2: a plane.")] = 2,
    steps: Annotated[int, typer.Option(min=3, max=1001, help="Points an axis.")] = 25,
    radius: Annotated[float, typer.Option(help="Of the picture, in lengths of the directions.")] = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Samples that each loss is a mean of.")] = 1000,
    alpha: Annotated[float, typer.Option(help="Noise of the ball: sigma_i = alpha (10 |w_i| + 1).")] = 5e-4,
    loss: Loss = "cross_entropy",
    model_arg: ModelArg = None,
    model_config: ModelConfig = None,
    app_dir: AppDir = None,
    batch_size: BatchSize = 256,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of directions and samples.")] = 0,
    device: Device = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Draw the loss around a minimum: a line or a plane, with the ball that random noise reaches."""
    config, start, folder = (None if p is None else str(p) for p in (model_config, checkpoint, app_dir))
    arguments = tuple(model_arg or ())
    source = Source(model, data, split, None, reading, arguments, config, start, folder, seed, loss)
    _check(source, along, radius, alpha, loss)
    writable(output, FILES)
    kept = None if dry_run else output
    asked = source.document() | {"along": along, "loss": loss, "batch_size": batch_size, "device": device}
    with bars(), contextlib.redirect_stdout(sys.stderr), kept_for(kept, asked):
        take_threads(threads)
        minimum = _minimum(source, loss, batch_size, usable(device))
        if dry_run:
            planned = _plan(minimum, along, steps**dimensions, samples)
        else:
            found = _landscape(minimum, along, dimensions, steps, radius, samples, alpha, seed)
    if dry_run:
        typer.echo(json_text(planned) if as_json else _words(planned))
        return
    document = found.to_dict() | {"source": source.document(), "along": along, "seed": seed}
    paths = in_place_of_kept(kept, lambda: _save(found, document, output))
    if as_json:
        typer.echo(json_text(document))
    else:
        from flatminima.landscape.figure import describe_landscape

        tell(f"{describe_landscape(found)} ({found.samples} samples).")
    say("Wrote " + ", ".join(str(path) for path in paths))


def _check(source: Source, along: str, radius: float, alpha: float, loss: str) -> None:
    source.check()
    if along not in DIRECTIONS:
        raise UnknownName("--along", along, DIRECTIONS)
    if loss not in LOSSES:
        raise UnknownName("loss", loss, LOSSES)
    for name, value in (("--radius", radius), ("--alpha", alpha)):
        if not 0 < value < float("inf"):
            raise UsageError(f"got {name} {value}; expected a positive number")


def _minimum(source: Source, loss: str, batch_size: int, device: str | None) -> Minimum:
    from flatminima.core.minimum import Minimum

    network, hub = source.network(), language.is_language(source.model)
    if source.checkpoint is None and not hub:
        say_notes(["no --checkpoint, so these are the weights that the factory gave"])
    given = source.given(source.split)
    say_notes(given.notes())
    if hub:
        loss, batch_size = language.loss(source.model, loss), language.batch_size(batch_size, given.data[1])
    return Minimum(network.eval(), given.data, loss, batch_size=batch_size, device=device, seed=source.seed)


def _landscape(
    minimum: Minimum, along: str, dimensions: int, steps: int, radius: float, samples: int, alpha: float, seed: int
) -> Landscape:
    from flatminima.core.perturbation import Gaussian, Relative
    from flatminima.landscape import directions, landscape

    return landscape(
        minimum,
        directions(minimum, along, dimensions, samples=samples, seed=seed),
        steps=steps,
        radius=radius,
        samples=samples,
        noise=Gaussian(Relative(alpha, 10.0, 1.0)),
        seed=seed,
    )


def _plan(minimum: Minimum, along: str, points: int, samples: int) -> dict[str, Any]:
    """Passes over the samples, and the seconds that one timed batch suggests."""
    import torch

    count = min(samples, len(minimum.samples))
    indices = torch.arange(min(minimum.batch_size, count))
    with minimum.open(), torch.no_grad():
        batch = minimum.batch(indices)
        for _ in range(2):  # the first pays for warming up
            start = time.perf_counter()
            minimum.forward(batch.inputs)
            seconds = time.perf_counter() - start
    passes = points + (6 * _HESSIAN_PRODUCTS if along == "eigenvectors" else 0)
    estimate = seconds * passes * count / len(indices)
    return {"schema": 1, "points": points, "samples": count, "forward": passes, "seconds": estimate}


def _words(planned: dict[str, Any]) -> str:
    seconds = planned["seconds"]
    about = f"about {seconds:.0f} s" if seconds >= 1 else "less than a second"
    return f"{planned['points']} points of {planned['samples']} samples: {about}; nothing was drawn"


def _save(found: Landscape, document: dict[str, Any], output: Path) -> list[Path]:
    from flatminima.io import PATIENCE, claimed, write_whole
    from flatminima.landscape import write

    with claimed(output, wait=PATIENCE):
        write_whole(output / FILES[0], json_text(document) + "\n")
        return [output / FILES[0], *write(found, output)]
