"""`--help` in panels: the network, the data, what is done, the output; an option lies in one panel in every command."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import OptionInfo

NETWORK, DATA, WHAT, OUTPUT = PANELS = ("Network", "Data", "What", "Output")

_OF_NETWORK = "model model_arg model_config app_dir checkpoint init initial dropout prior_checkpoint stated"
_OF_DATA = (
    "data no_data input_shape data_config data_arg split test_split test_data unlabelled_split validation_split "
    "prior_split label_noise augment limit scaling mean std classes columns label_column image_column mode "
    "image_size max_pixels layout text_column length packing gaps batch_size"
)
_OF_OUTPUT = (
    "output as_json dry_run seed device threads fresh save_every tensorboard watch fail_if fail_on_claims show "
    "markdown jobs shard engine address ledger"
)
_PANEL = {
    name: panel
    for panel, names in ((NETWORK, _OF_NETWORK), (DATA, _OF_DATA), (OUTPUT, _OF_OUTPUT))
    for name in names.split()
}


def panel_of(name: str) -> str:
    """The panel of an option, by the name of its parameter."""
    return _PANEL.get(name, WHAT)


def paneled(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its options in panels, each panel's required ones first."""
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        p.replace(annotation=_placed(name, hints[name]), kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in inspect.signature(command).parameters.items()
    ]
    parameters.sort(key=lambda p: (PANELS.index(panel_of(p.name)), p.default is not inspect.Parameter.empty))

    def called(**given: Any) -> None:
        command(**given)

    called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def _placed(name: str, annotation: Any) -> Any:
    """The annotation with its option in its panel; options are shared between commands, so that it is a copy."""
    kind, *rest = get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    placed = []
    for info in rest:
        if isinstance(info, OptionInfo):
            info = copy.copy(info)
            info.rich_help_panel = panel_of(name)
        placed.append(info)
    return Annotated[kind, *placed] if placed else annotation
