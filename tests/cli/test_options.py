"""Every command takes a network and data by the same options, and shows its options in the same panels."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from flatminima.cli.app import COMMANDS, app
from flatminima.cli.panels import PANELS, panel_of, paneled
from flatminima.cli.sample_options import Reading

# what a command says of its network and its data, whatever it does with them
NETWORK = {"--model", "--model-arg", "--model-config", "--app-dir", "--checkpoint"}
DATA = {"--data", "--split", *(f"--{name.replace('_', '-')}" for name in Reading.__dataclass_fields__)}
MACHINE = {"--seed", "--device", "--threads", "--json"}
DIFFERENT = {
    ("rank", "--checkpoint"): "its checkpoints are arguments, two or more",
}
REPEATED = {("rank", "model")}  # one a checkpoint


def options(command: str) -> dict[str, Any]:
    """Flag to click's option."""
    found: Any = typer.main.get_command(app)
    return {flag: p for p in found.commands[command].params for flag in p.opts if flag.startswith("--")}


WITH_DATA = [name for name in COMMANDS if {"--model", "--data"} <= set(options(name))]


def test_the_commands_with_a_network_and_data_are_these() -> None:
    assert WITH_DATA == ["certify", "landscape", "measure", "rank", "train"]


@pytest.mark.parametrize("command", WITH_DATA)
def test_the_same_network_data_and_machine_options_on_every_command(command: str) -> None:
    """Catches a command that takes its network or reads its data in a way of its own."""
    missing = (NETWORK | DATA | MACHINE) - set(options(command))
    assert not [flag for flag in missing if (command, flag) not in DIFFERENT], missing


def test_an_option_means_the_same_wherever_it_is() -> None:
    """One type a flag of the network and the data; what it says is the same words where it is one option."""
    shared = {flag.removeprefix("--").replace("-", "_") for flag in NETWORK | DATA}
    kinds: dict[str, set[str]] = {}
    for command in WITH_DATA:
        for name, parameter in inspect.signature(paneled(COMMANDS[command])).parameters.items():
            if name in shared and (command, name) not in REPEATED:
                kind = get_args(parameter.annotation)[0]
                kinds.setdefault(name, set()).add(str(get_args(kind)[0] if type(None) in get_args(kind) else kind))
    assert all(len(found) == 1 for found in kinds.values()), kinds
    for name in Reading.__dataclass_fields__:
        flag = options("measure")[f"--{name.replace('_', '-')}"].opts[0]
        assert len({options(c)[flag].help for c in WITH_DATA}) == 1, flag


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_panels(command: str) -> None:
    """Every option of every command lies in the panel of its name, the required ones of a panel first."""
    found: Any = typer.main.get_command(app)
    own = [p for p in found.commands[command].params if p.param_type_name == "option" and p.name != "help"]
    for option in own:
        assert option.rich_help_panel == panel_of(option.name), option.name
    order = [(PANELS.index(option.rich_help_panel), not option.required) for option in own]
    assert order == sorted(order)
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    panels = re.findall(r"^.. (Network|Data|What|Output) .", shown.stdout, flags=re.MULTILINE)
    assert panels == [panel for panel in PANELS if any(o.rich_help_panel == panel for o in own)]
