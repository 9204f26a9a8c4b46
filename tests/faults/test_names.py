"""Names are data: whatever characters they have, none reaches a terminal, a page or a document as it is."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from flatminima import Minimum, measure
from flatminima.errors import DataError, UnknownName
from flatminima.escaping import shown, shown_lines
from flatminima.io import json_text
from hostile import spoken

# clear the screen, set the title, ring, move back, end a line, reverse text, join invisibly, C1's CSI, DEL
NASTY = "a\x1b[2J\x1b]0;title\x07\b\r\u202e\u200b\u2028\x9b31m\x7f<b>&'\"[bold]$x$\nNote: all is well"
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def hidden(text: str) -> list[str]:
    return [hex(ord(c)) for c in text if c not in "\n\t" and unicodedata.category(c) in HIDDEN]


def forged(text: str) -> list[str]:
    """Lines that a name began."""
    return [line for line in text.splitlines() if line.strip(" |").startswith("Note: all is well")]


@given(st.text(st.characters(), max_size=30))
def test_what_is_shown_hides_nothing_and_says_the_same(text: str) -> None:
    found = shown(text)
    assert "\n" not in found and not hidden(found)
    assert json.loads(json_text({text: text})) == {text: text}
    assert json_text({text: text}, None).isascii() and not hidden(json_text(text, None))
    assert shown_lines(text).count("\n") == text.count("\n")
    if all(unicodedata.category(c) not in HIDDEN for c in text):
        assert found == text


@given(st.text(st.characters(), max_size=30))
def test_errors_and_tables_show_names(text: str) -> None:
    for error in (DataError(f"no {text} here"), UnknownName("measure", text, [text + "x"])):
        assert not hidden(str(error))


FACTORY = f"""
import torch
from torch import nn
NASTY = {NASTY!r}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for i, size in enumerate(((64, 6), (6, 10))):
            self.add_module(NASTY.replace(".", "") + str(i), nn.Linear(*size))
    def forward(self, x):
        x = x.flatten(1)
        for i, layer in enumerate(self.children()):
            x = layer(torch.relu(x) if i else x)
        return x
class NastyError(Exception):
    pass
def broken():
    raise NastyError(NASTY)
def noisy():
    net = Net()
    net.extra_repr = lambda: NASTY
    return net
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and files whose own names are nasty, as far as a file system lets them be."""
    folder = tmp_path_factory.mktemp("names") / NASTY.replace("/", "")
    folder.mkdir()
    (folder / "nasty.py").write_text(FACTORY)
    namespace: dict[str, object] = {}
    exec(compile(FACTORY, "factory", "exec"), namespace)
    network = namespace["Net"]
    assert isinstance(network, type) and issubclass(network, nn.Module)
    for i in range(2):
        torch.save(network().state_dict(), folder / f"{i}{NASTY[:12]}.pt")
    torch.save({NASTY: torch.zeros(2), NASTY + "1": torch.zeros(3)}, folder / "other.pt")
    torch.save({NASTY: torch.zeros(2), "text": NASTY}, folder / "text.pt")
    (folder / "damaged.pt").write_bytes(b"\x80\x02c" + NASTY.replace("\n", " ").encode() + b"\nsystem\n.")
    return folder


def commands(folder: Path) -> dict[str, list[str]]:
    nasty = ["--model", "nasty:Net", "--app-dir", str(folder), "--data", "digits", "--limit", "60"]
    networks = [str(folder / f"{i}{NASTY[:12]}.pt") for i in range(2)]
    few = ["--measures", "margin,frobenius_norm,fisher_trace,hessian_trace", "--subset", "6"]
    return {
        "measure": ["measure", *nasty, *few, "--layers", "--audit", "--checkpoint", networks[0], "--output", "@"],
        "measure as JSON": ["measure", *nasty, *few, "--json"],
        "rank": ["rank", *networks, *nasty, *few, "--by", "margin", "--output", "@"],
        "certify": [
            "certify",
            *nasty[:-1],
            "128",
            "--epochs",
            "1",
            "--prior-epochs",
            "1",
            "--draws",
            "4",
            "--output",
            "@",
        ],
        "train": ["train", *nasty, "--epochs", "1", "--output", "@"],
        "landscape": ["landscape", *nasty, "--steps", "3", "--samples", "9", "--output", "@"],
        "a factory that raises": ["measure", "--model", "nasty:broken", *nasty[2:], *few],
        "tensors that do not fit": ["measure", *nasty, "--checkpoint", str(folder / "other.pt")],
        "something else than tensors": ["measure", *nasty, "--checkpoint", str(folder / "text.pt")],
        "a damaged file": ["measure", *nasty, "--checkpoint", str(folder / "damaged.pt")],
        "no such file": ["measure", *nasty, "--checkpoint", NASTY],
        "no such folder": ["measure", "--model", "nasty:Net", "--data", "./" + NASTY],
        "no such measure": ["measure", *nasty, "--measures", NASTY],
        "no such model": ["measure", "--model", f"nasty:{NASTY}", "--data", "digits"],
        "no such option": ["measure", *nasty, f"--{NASTY}"],
        "no such command": [NASTY],
        "no such split": ["measure", *nasty, "--split", NASTY],
        "no such study": ["reproduce", NASTY],
        "an argument": ["measure", *nasty, "--model-arg", f"{NASTY}=1"],
        "nothing to report": ["report", str(folder)],
    }


@pytest.mark.parametrize("name", list(commands(Path())))
def test_no_output_of_a_command_has_a_hidden_character(name: str, place: Path, tmp_path: Path) -> None:
    output = tmp_path / NASTY.replace("/", "")
    words = [str(output) if word == "@" else word for word in commands(place)[name]]
    code, out, err = spoken(*words)
    assert code in (0, 2) or name == "a factory that raises", err
    assert not hidden(out) and not hidden(err), (out, err)
    assert not forged(out) and not forged(err), (out, err)
    for file in output.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".html", ".svg", ".md"):
            assert not hidden(file.read_text(encoding="utf-8")), file


def test_a_table_of_the_library_shows_names(place: Path) -> None:
    network = nn.Sequential()
    network.add_module(NASTY.replace(".", ""), nn.Linear(3, 2))
    table = measure(Minimum(network.eval(), (torch.randn(20, 3), torch.arange(20) % 2)), ["frobenius_norm"])
    assert not hidden(str(table)) and not forged(str(table)) and not hidden(table.to_json())


@pytest.mark.parametrize("debug", ["", "1"])
def test_no_exception_of_a_library_begins_a_line(debug: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text may hold a name as it is, and so does the traceback that FLATMINIMA_DEBUG shows."""
    monkeypatch.setenv("FLATMINIMA_DEBUG", debug)
    for name in ("a factory that raises", "tensors that do not fit", "something else than tensors", "a damaged file"):
        _, out, err = spoken(*commands(place)[name])
        assert not hidden(out + err) and not [line for line in err.splitlines() if line.startswith("Note: all is")], err
