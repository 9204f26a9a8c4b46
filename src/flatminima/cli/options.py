"""Options that several commands share, written once: the same name means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatminima.catalog.choices import LOSSES

MODEL_HELP = "package.module:factory, file.py:factory, or hf:NAME_OR_FOLDER\\[@revision]."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
ModelArg = Annotated[list[str] | None, typer.Option(help="key=value for the factory; repeat.")]
AppDir = Annotated[Path | None, typer.Option(help="Folder to import --model from.")]
DATA_HELP = "'digits', a file or folder, a hub name, or package.module:function."
ModelConfig = Annotated[
    Path | None, typer.Option(help="JSON, TOML or YAML file of the factory's arguments, or its configuration object.")
]
Data = Annotated[str, typer.Option(help=DATA_HELP)]
DataConfig = Annotated[str | None, typer.Option(help="Configuration of a data set that has several.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images, where it cannot be guessed.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels, where it cannot be guessed.")]
ImageMode = Annotated[str | None, typer.Option(help="Convert images: 'L' (grey) or 'RGB'.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Resize images to this many pixels square.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the texts, for hf: models.")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens a text, for hf: models; longer ones are cut.")]
Packing = Annotated[bool, typer.Option("--packing", help="hf: models: texts after each other in blocks of --length.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Largest image to decode; 16.8 million pixels.")]
Scaling = Annotated[str, typer.Option(help="'unit' (pixels / 255), 'standard' (by channel), 'imagenet' or 'none'.")]
Mean = Annotated[str | None, typer.Option(help="Subtracted after scaling to [0, 1]: one number, or one a channel.")]
Std = Annotated[str | None, typer.Option(help="Divided by after --mean.")]
Classes = Annotated[str | None, typer.Option(help="Names of the classes in the order of the outputs, comma-separated.")]
InputColumns = Annotated[
    str | None, typer.Option("--columns", help="Columns of the inputs: 'age,income'; two inputs: 'image;age,income'.")
]
Layout = Annotated[str | None, typer.Option(help="Of arrays of images where it is open: 'chw' or 'hwc'.")]
DataArg = Annotated[list[str] | None, typer.Option(help="key=value for the function of --data; repeat.")]
TestData = Annotated[str | None, typer.Option(help="Where the held-out samples are, if not in --data.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use a fixed random subset of so many samples.")]
Loss = Annotated[str, typer.Option(help=f"Per-sample loss: {', '.join(LOSSES)}.")]
Subset = Annotated[int | None, typer.Option(min=1, help="Samples a Gram matrix (Fisher family).")]
Budget = Annotated[str, typer.Option(help="'fast', 'default' or 'thorough': how much work to do.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples at a time.")]
MOST_SEED = (1 << 63) - 1  # what 64 bits with a sign hold
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of everything that is drawn.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
