"""The request of `measure` and `rank`, as typed, and what is made of it: network, samples, `Minimum`, measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial, update_wrapper
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima import budgets, catalog
from flatminima.catalog.choices import LOSSES
from flatminima.cli import factory, language
from flatminima.cli.device import take_threads, usable
from flatminima.cli.early_checks import check_network, check_samples
from flatminima.cli.load_samples import Given, samples_of
from flatminima.cli.sample_options import Reading
from flatminima.cli.torchrun import ranks
from flatminima.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from torch import nn

    from flatminima.core.distributed import Ranks
    from flatminima.core.minimum import Minimum
    from flatminima.measuring import MeasureFunction

MORE = "see flatminima list"


@dataclass(frozen=True)
class Request:
    """The request, as typed."""

    model: str
    data: str | None
    checkpoint: Path | None
    split: str
    measures: str | None
    reading: Reading
    loss: str
    subset: int | None
    budget: str
    model_arg: tuple[str, ...]
    app_dir: Path | None
    batch_size: int
    seed: int
    device: str | None
    threads: int | None
    model_config: Path | None = None
    no_data: bool = False
    initial: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the measures, in the order asked for. Raises UsageError for none, UnknownName with the nearest."""
        if self.measures is None:
            return budgets.names(self.budget)
        names = [n.strip() for n in self.measures.split(",") if n.strip()]
        if not names:
            raise UsageError(f"got --measures {self.measures!r}; name at least one, {MORE}")
        return [catalog.measure_row(name).name for name in names]

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        budgets.checked_budget(self.budget)
        _ = self.names
        check_network(self.model, list(self.model_arg), self.model_config, self.checkpoint, self.app_dir)
        if self.loss not in LOSSES:
            raise UnknownName("loss", self.loss, LOSSES)
        self.reading.check()
        if self.data is not None:
            check_samples(self.model, self.data, self.reading)
        elif not self.no_data:
            raise UsageError("measure needs --data, the samples that the network was trained on, or --no-data")
        if self.no_data and self.data is not None:
            raise UsageError(f"got --data {self.data} and --no-data; give one of them")

    def document(self) -> dict[str, Any]:
        """The options that say what was measured, for the report: those not given are left out."""
        values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items() if k != "reading"}
        values |= self.reading.document()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v not in (None, (), False)}


def minimum_of(request: Request) -> tuple[Minimum, list[str]]:
    """The network to measure, and what the user should know of it."""

    take_threads(request.threads)
    network, notes = load_network(request)
    given = load_data(request, request.split)
    minimum = make_minimum(request, network, given.data, ranks())
    losses = language.said_of_losses(minimum) if language.is_language(request.model) else None
    return minimum, [*notes, *given.notes(), *([] if losses is None else [losses])]


def load_network(request: Request) -> tuple[nn.Module, list[str]]:
    """The network with its weights, in eval mode, and notes on both."""
    import torch

    from flatminima.training import load_checkpoint

    usable(request.device)
    if language.is_language(request.model):
        return _of_the_hub(request)
    torch.manual_seed(request.seed)  # weights of a factory that has no checkpoint
    arguments = factory.arguments(list(request.model_arg))
    network = factory.build(request.model, arguments, request.app_dir, request.model_config)
    notes = []
    if request.app_dir is not None:
        notes.append(f"imported {request.model.partition(':')[0]} with {request.app_dir} on the path")
    if request.checkpoint is None:
        notes.append("no --checkpoint, so these are the weights that the factory gave")
    else:
        notes += load_checkpoint(network, request.checkpoint)
    if any(module.training for module in network.modules()):
        notes.append("called model.eval(): no dropout, BatchNorm with its running statistics")
    return network.eval(), notes


def _of_the_hub(request: Request) -> tuple[nn.Module, list[str]]:
    """A model of Hugging Face, with the weights of --checkpoint where that is given."""
    from flatminima.training import load_checkpoint

    found = language.load(request.model)
    more = [] if request.checkpoint is None else load_checkpoint(found.model, request.checkpoint)
    return found.model.eval(), [*found.notes, *more]


def load_data(request: Request, split: str) -> Given:
    """The samples of a split."""
    return samples_of(
        request.model, str(request.data), split, request.reading, app_dir=request.app_dir, loss=request.loss
    )


def make_minimum(request: Request, network: nn.Module, data: Any, shared: Ranks | None = None) -> Minimum:
    """The network at its weights on the data."""
    from flatminima.core.minimum import Minimum

    hub = language.is_language(request.model)
    return Minimum(
        network,
        data,
        language.loss(request.model, request.loss) if hub else request.loss,
        batch_size=language.batch_size(request.batch_size, data[1]) if hub else request.batch_size,
        device=usable(request.device),
        seed=request.seed,
        ranks=shared,
    )


def initial_network(request: Request) -> nn.Module | None:
    """The network before training, where --initial says which: of a file, or as the factory makes it."""
    import copy

    import torch

    from flatminima.training import load_checkpoint

    if request.initial is None:
        return None
    if language.is_language(request.model):
        if request.initial == "factory":
            raise UsageError(f"{request.model} has no factory: give --initial the file of the weights before training")
        made = copy.deepcopy(language.load(request.model).model)
    else:
        torch.manual_seed(request.seed)
        arguments = factory.arguments(list(request.model_arg))
        made = factory.build(request.model, arguments, request.app_dir, request.model_config)
    if request.initial != "factory":
        load_checkpoint(made, request.initial)
    return made


def with_options(
    name: str, budget: str, subset: int | None, minimum: Minimum, initial: nn.Module | None = None
) -> MeasureFunction:
    """The measure with the budget's counts, and with its Gram subset and the initial weights where these are given."""
    from flatminima.measuring import positions

    function: MeasureFunction = catalog.measure_row(name).load()
    given = budgets.options(budget, name)
    options = budgets.for_sequences(given, function, positions(minimum), len(minimum.samples))
    if subset is not None and "subset" in signature(function).parameters:
        options["subset"] = subset
    if initial is not None and "initial" in signature(function).parameters:
        options["initial"] = initial
    return update_wrapper(partial(function, **options), function) if options else function
