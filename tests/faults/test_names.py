"""Names are data: whatever characters they have, none reaches a terminal, a page or a document as it is."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
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


STUDY = f"""
from flatminima.studies import Study
NASTY = {NASTY!r}
def run(config, sources):
    return {{"word": config["word"], NASTY: 1.0}}
def figure(results):
    from matplotlib.figure import Figure
    return Figure()
STUDY = Study("nasty-study", NASTY, NASTY, (), lambda scale: [{{"seed": i, "word": NASTY, NASTY: i}} for i in range(2)],
              run, lambda results: [], figure, {{"smoke": NASTY, "cpu": "-", "paper": "-"}})
"""


def data(folder: Path) -> None:
    """Columns, classes, hyperparameters, arrays and a study whose names are nasty."""
    cell = '"' + NASTY.replace('"', '""') + '"'
    rows = "".join(f"{i},0.5,{cell if i % 2 else 'plain'},{cell}\n" for i in range(40))
    (folder / "classes.csv").write_text(f"{cell},b,label,group\n{rows}")
    records = [{NASTY: [float(i), 1.0], "label": NASTY if i % 2 else "plain"} for i in range(40)]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "other.jsonl").write_text(json.dumps({NASTY: 1}) + "\n" + json.dumps({NASTY + "2": 1}))
    (folder / "unlabelled.jsonl").write_text("\n".join(json.dumps({NASTY: 1.0, "b": NASTY}) for _ in range(3)))
    np.savez(folder / "arrays.npz", **{NASTY.replace("/", ""): np.zeros((4, 2)), "label": np.array([NASTY] * 4)})
    names = [f"{i}{NASTY[:12]}.pt" for i in range(2)]
    gaps = "".join(f"{n},0.{i}1,{i}\n" for i, n in enumerate(names))
    (folder / "gaps.csv").write_text(f"checkpoint,gap,{cell}\n{gaps}")
    (folder / "bad.csv").write_text(f"checkpoint,gap,{cell}\n{names[0]},{cell},3\n")
    for kind in ("a\x1b[31m\u202e<b>", "plain"):
        (folder.parent / "images" / kind).mkdir(parents=True)
        for i in range(4):
            image = folder.parent / "images" / kind / f"{i}\x1b[2J.png"
            Image.new("L", (8, 8), 20 * i).save(image)
    (folder / "config.json").write_text(json.dumps({NASTY: NASTY}))
    (folder / "damaged.json").write_text('{"' + NASTY[:1] + "\x1b[2J")
    (folder / "nasty_study.py").write_text(STUDY)
    (folder / "results").mkdir()
    (folder / "results" / "measures.json").write_text(json.dumps({NASTY: 1}))


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
    data(folder)
    (folder / "damaged.pt").write_bytes(b"\x80\x02c" + NASTY.replace("\n", " ").encode() + b"\nsystem\n.")
    return folder


def commands(folder: Path) -> dict[str, list[str]]:
    nasty = ["--model", "nasty:Net", "--app-dir", str(folder), "--data", "digits", "--limit", "60"]
    networks = [str(folder / f"{i}{NASTY[:12]}.pt") for i in range(2)]
    table = ["measure", "--model", "flatminima.models:mlp", "--model-arg", "widths=(2,4,2)"]
    images = [*table[:4], "widths=(64,4,2)"]
    quick = ["--measures", "margin", "--output", "@"]
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
        "columns and classes": [*table, "--data", str(folder / "classes.csv"), *quick],
        "a column that is not there": [*table, "--data", str(folder / "classes.csv"), "--columns", NASTY + "9", *quick],
        "a column that is text": [*table, "--data", str(folder / "classes.csv"), "--columns", "group", *quick],
        "a class that is not there": [*table, "--data", str(folder / "classes.csv"), "--classes", "plain,b", *quick],
        "records": [*table, "--data", str(folder / "records.jsonl"), *quick],
        "records that differ": [*table, "--data", str(folder / "other.jsonl")],
        "no label": [*table, "--data", str(folder / "unlabelled.jsonl")],
        "arrays": [*table, "--data", str(folder / "arrays.npz"), *quick],
        "a folder of images": [*images, "--data", str(folder.parent / "images"), *quick],
        "a configuration": [*table[:3], "--model-config", str(folder / "config.json"), "--data", "digits"],
        "a damaged configuration": [*table[:3], "--model-config", str(folder / "damaged.json"), "--data", "digits"],
        "hyperparameters": ["rank", *networks, *nasty, *few[:2], "--gaps", str(folder / "gaps.csv"), "--output", "@"],
        "a gap that is text": ["rank", *networks, *nasty, *few[:2], "--gaps", str(folder / "bad.csv")],
        "a study": ["study", str(folder / "nasty_study.py"), "--output", "@"],
        "results of others": ["report", str(folder / "results")],
        "a card of others": ["card", str(folder / "results")],
        "a log that is none": ["track", str(folder / "records.jsonl")],
        "tracked": ["train", *nasty, "--epochs", "1", "--track", "1", "--output", "@"],
    }


ENDS = ("records", "arrays", "a folder of images", "hyperparameters", "a study", "tracked", "measure", "rank", "train")


@pytest.mark.parametrize("name", list(commands(Path())))
def test_no_output_of_a_command_has_a_hidden_character(name: str, place: Path, tmp_path: Path) -> None:
    output = tmp_path / NASTY.replace("/", "")
    words = [str(output) if word == "@" else word for word in commands(place)[name]]
    code, out, err = spoken(*words)
    assert (code == (0 if name in ENDS else code) and code in (0, 2)) or name == "a factory that raises", err
    assert "FLATMINIMA_DEBUG" not in err or name == "a factory that raises", err
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


def test_cards_and_pages_of_results_with_nasty_names(place: Path, tmp_path: Path) -> None:
    """`card` is Markdown and HTML in one; `report`, `track` and a recorder's tags take the names again."""
    output = str(tmp_path / "out")
    nasty = commands(place)["measure"][1:-2]
    assert spoken("measure", *nasty, "--output", output)[0] == 0
    assert spoken("train", *commands(place)["tracked"][1:-1], output + "2")[0] == 0
    for words in (["card", output], ["report", output], ["report", output + "2"], ["track", output + "2"]):
        code, out, err = spoken(*words)
        assert code in (0, 2) and not hidden(out + err) and not forged(out + err), (words, err)
    for file in (*Path(output).rglob("*"), *Path(output + "2").rglob("*")):
        if file.suffix in (".json", ".jsonl", ".html", ".svg", ".md"):
            text = file.read_text(encoding="utf-8")
            assert not hidden(text), file
            assert file.suffix not in (".html", ".svg", ".md") or "<b>&'" not in text, file
