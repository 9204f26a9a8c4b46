"""`flatminima certify`: a bound on a network's error that holds with probability 1 - delta; `--verify` recomputes one.

In this order: what needs no torch is checked, then the network is built, then data is read, then anything is trained.
The same command with the same --output goes on where an interrupted one stopped.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima.catalog.choices import (
    KEPT_PRECISIONS,
    OBJECTIVE_NAMES,
    POSTERIORS,
    PRIOR_AUGMENTATIONS,
    RANDOM_LAYERS,
)
from flatminima.cli.around import Around, maker
from flatminima.cli.certificate import WRITES, show
from flatminima.cli.device import take_threads, usable
from flatminima.cli.option_groups import grouped
from flatminima.cli.options import (
    DATA_HELP,
    MODEL_HELP,
    AppDir,
    AsJson,
    Device,
    DryRun,
    ModelArg,
    ModelConfig,
    Seed,
    Threads,
)
from flatminima.cli.output import writable
from flatminima.cli.sample_options import Reading
from flatminima.cli.source import Source
from flatminima.cli.terminal import bars, say, tell
from flatminima.cli.verify import Typed, verify_record
from flatminima.errors import UnknownName, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatminima.certification import Certificate, Recipe
    from flatminima.core.samples import Inputs


@grouped
def certify(
    reading: Reading,
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    split: Annotated[str, typer.Option(help="Split of the training data.")] = "train",
    test_split: Annotated[str | None, typer.Option(help="Split to report the error on, never trained on.")] = None,
    objective: Annotated[str, typer.Option(help=f"Of the posterior: {', '.join(OBJECTIVE_NAMES)}.")] = "kl",
    prior_fraction: Annotated[float, typer.Option(help="Share of the samples for the prior; 0: data-free.")] = 0.5,
    prior_epochs: Annotated[int, typer.Option(min=1, help="Epochs of the prior.")] = 10,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of the posterior; 0: it is the prior.")] = 1,
    layers: Annotated[str, typer.Option(help="Random weights: 'all', or the 'head' on frozen features.")] = "all",
    sigma: Annotated[float, typer.Option(help="Standard deviation of the prior's weights.")] = 0.01,
    fit_sigma: Annotated[bool, typer.Option("--fit-sigma", help="Choose sigma on a grid, paid for.")] = False,
    augment: Annotated[str, typer.Option(help=f"Of the prior's samples: {', '.join(PRIOR_AUGMENTATIONS)}.")] = "none",
    nats: Annotated[float | None, typer.Option(help="Cross-entropy that the objective counts as one error.")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of the posterior, in units of sigma.")] = 0.01,
    passes: Annotated[int, typer.Option(min=1, help="Over the samples to estimate the Gibbs risk.")] = 10,
    keep: Annotated[
        str, typer.Option(help=f"Precision of what is certified and kept: {', '.join(KEPT_PRECISIONS)}.")
    ] = "float32",
    delta: Annotated[float, typer.Option(help="Total failure probability.")] = 0.05,
    delta_mc: Annotated[float | None, typer.Option(help="The Monte-Carlo step's part; a fifth by default.")] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Certificates that could have been chosen, this one included.")
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(help="File that counts them; in --output by default; 'none' for none.")
    ] = None,
    minutes: Annotated[float | None, typer.Option("--time", help="Minutes; chooses epochs and passes.")] = None,
    model_arg: ModelArg = None,
    model_config: ModelConfig = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to start from; see --stated, --posterior.")] = None,
    stated: Annotated[
        str, typer.Option("--stated", "--initial", help="What a --checkpoint was trained on: none of these samples.")
    ] = "",
    app_dir: AppDir = None,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    posterior: Annotated[
        str | None, typer.Option(help=f"Around the --checkpoint instead: {', '.join(POSTERIORS)}.")
    ] = None,
    prior_checkpoint: Annotated[Path | None, typer.Option(help="With --posterior: the prior's mean.")] = None,
    prior_split: Annotated[str | None, typer.Option(help="With --posterior: split that they were trained on.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="With --posterior: draws of the weights, at least.")] = 2000,
    output: Annotated[Path | None, typer.Option(help="Folder for the certificate, its weights and a plot.")] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Recompute this certificate.json from its weights; needs --data.")
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Give a number also where it certifies nothing.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Certify: bound the error on new samples with probability 1 - delta."""
    if verify is not None:
        folder = None if app_dir is None else str(app_dir)
        typed = Typed(model, data, tuple(model_arg or ()), folder, prior_split, reading)
        verify_record(verify, typed, device, threads, as_json)
        return
    if model is None or data is None:
        raise UsageError("certify needs --model and --data, or --verify with a certificate.json")
    config, start, folder = (None if p is None else str(p) for p in (model_config, checkpoint, app_dir))
    source = Source(
        model, data, split, test_split, reading, tuple(model_arg or ()), config, start, folder, seed
    )  # fmt: skip
    source.check()
    for kind, value, known in (
        ("objective", objective, OBJECTIVE_NAMES), ("layers", layers, RANDOM_LAYERS),
        ("augmentation", augment, PRIOR_AUGMENTATIONS), ("keep", keep, KEPT_PRECISIONS),
    ):  # fmt: skip
        if value not in known:
            raise UnknownName(kind, value, known)
    for name, number in (("delta", delta), ("delta-mc", delta_mc)):
        if number is not None and not 0 < number < 1:
            raise UsageError(f"got --{name} {number}; expected a probability in (0, 1)")
    if not 0 <= prior_fraction < 1:
        raise UsageError(f"got --prior-fraction {prior_fraction}; expected a share in [0, 1), 0 for a data-free prior")
    if minutes is not None and not minutes > 0:
        raise UsageError(f"got --time {minutes}; expected minutes above 0")
    if output is not None:
        writable(output, WRITES)
    shared: dict[str, Any] = {"delta": delta, "delta_mc": delta_mc, "stated": stated, "score": score}
    if posterior is not None:
        around = Around(source, posterior, prior_checkpoint, prior_split)
        around.check()
        with bars(), contextlib.redirect_stdout(sys.stderr):
            found = _around(around, evaluations, ledger, output, usable(device), shared)
        show(found, output, as_json)
        return
    if checkpoint is not None and not stated and not score:
        raise UsageError(
            "--checkpoint needs --stated 'what it was trained on': what its weights have seen cannot be seen in them, "
            "and the statement is printed first; --score gives the number as a score"
        )
    if prior_checkpoint is not None or prior_split is not None:
        raise UsageError("--prior-checkpoint and --prior-split belong to --posterior, around a trained network")
    options = {
        "prior_fraction": prior_fraction, "layers": layers, "sigma": sigma, "fit_sigma": fit_sigma, "augment": augment,
        "objective": objective, "epochs": epochs, "nats": nats, "lr": lr, "passes": passes, "keep": keep,
    }  # fmt: skip
    with bars(), contextlib.redirect_stdout(sys.stderr):
        prepared = _prepare(source, options, prior_epochs, device, threads)
        if dry_run:
            planned = _plan(prepared, minutes, as_json)
        else:
            shared |= {"evaluations": evaluations, "ledger": False if ledger == "none" else ledger, "output": output}
            found = _run(prepared, minutes, shared)
    if dry_run:
        tell(planned)
        return
    show(found, output, as_json)


def _around(
    around: Around,
    evaluations: int | None,
    ledger: str | None,
    output: Path | None,
    device: str | None,
    options: dict[str, Any],
) -> Certificate:
    from flatminima.certification import Union
    from flatminima.io import make_folder

    if output is not None:
        make_folder(output)
    options |= {"union": None if evaluations is None else Union(evaluations=evaluations), "keep_ledger": ledger is None}
    found = around.certify(device, output, ledger=None if ledger in (None, "none") else ledger, **options)
    if found.standing == "score" and not options["score"]:
        raise UsageError(f"{found.statement}: state where the prior comes from with --stated, or ask for --score")
    return found


@dataclass(frozen=True)
class _Prepared:
    source: Source
    model: nn.Module | Callable[[], nn.Module]
    train: tuple[Inputs, Tensor]
    test: tuple[Inputs, Tensor] | None
    recipe: Recipe


def _prepare(
    source: Source, options: dict[str, Any], prior_epochs: int, device: str | None, threads: int | None
) -> _Prepared:

    from flatminima.certification import Recipe

    take_threads(threads)
    device = usable(device)
    recipe = Recipe(**options)
    recipe = Recipe(**options | {"prior": type(recipe.prior)(**asdict(recipe.prior) | {"epochs": prior_epochs})})
    model: Any = maker(source, device) if source.checkpoint is None else source.network().to(device or "cpu")
    test = None if source.test_split is None else source.samples(source.test_split, device)
    return _Prepared(source, model, source.samples(source.split, device), test, recipe)


def _run(p: _Prepared, minutes: float | None, options: dict[str, Any]) -> Certificate:
    from flatminima.certification import certify as run

    began = time.monotonic()
    seconds = None if minutes is None else 60 * minutes
    found = run(
        p.model,
        p.train,
        recipe=p.recipe,
        seconds=seconds,
        test_data=p.test,
        source=p.source.document(),
        seed=p.source.seed,
        **options,
    )
    say(f"done in {time.monotonic() - began:.0f} s")
    return found


def _plan(p: _Prepared, minutes: float | None, as_json: bool) -> str:
    from flatminima.certification.certifying import cost, in_time
    from flatminima.certification.gibbs.outputs import Packing
    from flatminima.certification.provenance import Start
    from flatminima.core.samples import as_samples

    packing = Packing.of(as_samples(p.train))
    found = cost(Start.of(p.model, p.source.seed, packing).network, p.train, p.recipe, p.source.seed)
    recipe = p.recipe if minutes is None else in_time(p.recipe, found, 60 * minutes)
    prior_epochs = recipe.prior.epochs if recipe.prior_fraction else 0
    seconds = found.total(recipe)
    if as_json:
        counts = {"prior_epochs": prior_epochs, "epochs": recipe.epochs, "passes": recipe.passes}
        return json_text({"schema": 1, "seconds": seconds, **counts, "cost": asdict(found)})
    stages = f"{prior_epochs} epochs of the prior, {recipe.epochs} of the posterior, {recipe.passes} passes of draws"
    return f"{stages}\nabout {seconds:.0f} s on {len(p.train[1])} samples; nothing was trained"
