"""No file names code, a path or an address that is then used.

Every call that opens a file is found in the sources and has its reader here. Each text in each format is exchanged for
code, paths, a name of the hub and an address, and the process is watched through Python's audit events.
"""

from __future__ import annotations

import ast
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import flatminima
from hostile import READERS, Made, at, call, one_line, places, watched

ROOT = Path(flatminima.__file__).parent
CALLS = {"open", "read_text", "read_bytes", "load", "load_file", "safe_open", "loadtxt", "fromfile", "read_csv"}
CALLS |= {"from_pretrained", "load_from_disk", "read_table", "ParquetFile", "ZipFile", "genfromtxt", "mmap", "urlopen"}
CALLS |= {"load_dataset", "load_dataset_builder", "unsafe_load", "safe_load", "read_parquet", "memmap"}
# Where a file of the user's is opened or parsed, and which reader's test that is. What is absent here fails.
OPENED = {
    "untrusted.py": {"read_bytes": "every JSON reader", "parsed": "every JSON reader",
                   "refuse_no_text": "tests/faults/test_sizes.py: a file of zeros",
                   "parsed_yaml": "tests/cli/test_source.py: a configuration runs no code"},
    "io.py": {"write_whole": "writes", "append_line": "writes", "run_key": "ranked table: bytes of a checkpoint",
              "sync_folder": "a folder", "_opened_without_links": "writes"},
    "certification/record.py": {"file_hash": "weights.safetensors: its bytes"},
    "certification/certifying.py": {"_planned": "its own text again"},
    "certification/train.py": {"load": "posterior.pt"},
    "cli/app.py": {"_reader_left": "/dev/null"},
    "data/delimited.py": {"_pass": "data.csv"},
    "data/digits.py": {"read_digits": "a file of the package"},
    "models/hf.py": {"_whole": "of what --model names: SECURITY.md, Not protected", "_adapted": "the same",
                     "_tokenizer": "the same"},
    "data/text.py": {"_parquet": "tests/data/test_text.py",
                     "_read": "tests/data/test_text.py", "_json_lines": "tests/data/test_text.py"},
    "data/card.py": {"_header": "test_a_card_names_no_place_outside_of_its_folder",
                     "_json": "tests/data/test_files.py: a saved data set names no place outside"},
    "data/files.py": {"_npz": "tests/data/test_files.py: no format runs or opens what it names",
                      "_jsonl": "the same", "_json": "the same", "_pt": "the same",
                      "_safetensors": "the same"},
    "data/decode.py": {"_open": "test_a_path_in_a_table_is_not_opened"},
    "data/huggingface.py": {"_open": "test_a_path_in_a_table_is_not_opened",
                            "_known_splits": "the same folder once more",
                            "_saved": "tests/data/test_files.py: a saved data set names no place outside"},
    "core/statistic_store.py": {"_read": "test_damaged_files_are_not_used"},
    "catalog/uses.py": {"used_by": "files of the package"},
    "core/distributed.py": {"_sendable": "an error of its own, there and back"},
    "studies/claims/registry.py": {"_read": "files of the package"},
    "studies/wang_toy.py": {"pages": "a file of the package"},
    "studies/networks.py": {"find": "weights.safetensors, then its text", "lend_state": "state.pt",
                            "_copy": "state.pt: its bytes"},
    "track/tracker.py": {"restore": "weights_only=True; tests/track damages it"},
    "cli/candidates.py": {"_table": "ranked table"},
    "training/session.py": {"_claim": "its own text again", "_restore": "state.pt", "_sync": "writes"},
    "training/weights_file.py": {"read_weights": "weights.safetensors", "_safetensors": "weights.safetensors",
                                 "_torch": "weights.pt", "_in_order": "its own bytes again"},
}  # fmt: skip
OWN = {"self.open", "network.open", "minimum.open", "copied.open", "store.open", "self.minimum.open", "other.open",
       "seen.open", "few.open", "huggingface.read_huggingface", "factory.load"}  # fmt: skip


def _opening(path: Path) -> dict[str, list[str]]:
    """Function -> calls in it that open or parse a file."""
    found: dict[str, list[str]] = {}

    def walk(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Call):
                name = ast.unparse(child.func)
                last = name.rpartition(".")[2]
                if (last in CALLS or name in ("json.loads", "pickle.loads")) and name not in OWN:
                    found.setdefault(inside, []).append(name)
            walk(child, inside)

    walk(ast.parse(path.read_text(encoding="utf-8")), "<module>")
    return found


def test_every_call_that_opens_a_file_is_known() -> None:
    unknown = []
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for function, names in _opening(path).items():
            if function not in OPENED.get(name, {}) and not all(n in _OF_OURS for n in names):
                unknown.append(f"{name}:{function}: {names}")
    assert not unknown, "give each a reader's test, or use flatminima.untrusted: " + "; ".join(unknown)
    for name, functions in OPENED.items():
        assert set(functions) <= set(_opening(ROOT / name)), f"{name} no longer opens what is listed"


# methods and functions of the library that share a name with one that opens files
_OF_OURS = {"read_text", "read_bytes", "row.load", "catalog.measure_row(name).load", "entry.load",
            "catalog.MEASURES[name].load",
            "checkpoint.load", "self.load", "load", "fetch", "_jia.load", "hf.load", "language.load",
            "self.clock.load", "self._curvature.load", "self._reuse.load"}  # fmt: skip


def attacks(folder: Path) -> list[str]:
    """Texts that name something to run or to open; each holds the word canary."""
    outside = folder / "canary"
    outside.mkdir(exist_ok=True)
    (outside / "canary.py").write_text("raise SystemExit('the file was run')")
    (outside / "secret.json").write_text("{}")
    return [
        "canary:run",
        "os:system('canary')",
        f"{outside}/secret.json",
        "../canary/secret.json",
        "canary-organisation/canary",
        "http://127.0.0.1:9/canary",
    ]


JSON = [name for name, reader in READERS.items() if reader.file.endswith(".json")]


@pytest.mark.parametrize("name", JSON)
def test_no_text_of_a_document_is_used(name: str, made: Made, tmp_path: Path) -> None:
    """Eight texts, an attack each; with FLATMINIMA_HOSTILE set every attack on every text."""
    reader, every = READERS[name], attacks(tmp_path)
    folder = tmp_path / "case"
    folder.mkdir()
    file, command = reader.copied(made, folder)
    document = json.loads(file.read_text())
    call(*command)  # what it imports and opens the first time
    every_place = list(places(document, str))
    step = 1 if os.environ.get("FLATMINIMA_HOSTILE") else -(-len(every_place) // 8)
    for i, place in enumerate(every_place[::step]):
        for attack in every if os.environ.get("FLATMINIMA_HOSTILE") else [every[i % len(every)]]:
            file, command = reader.copied(made, folder)
            file.write_text(json.dumps(at(document, place, attack)))
            with watched(folder, made.folder) as watch:
                one_line(call(*command))
            assert not watch.seen, (place, attack, watch.seen)


def _with_texts(value: Any, attack: str, numbers: list[int]) -> Any:
    """The n-th text of a structure exchanged; `numbers` counts down to it."""
    if isinstance(value, str):
        numbers[0] -= 1
        return attack if numbers[0] == 0 else value
    if isinstance(value, dict):
        return {_with_texts(k, attack, numbers): _with_texts(v, attack, numbers) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_texts(v, attack, numbers) for v in value)
    return value


def test_no_text_of_a_training_state_is_used(made: Made, tmp_path: Path) -> None:
    every, reader = attacks(tmp_path), READERS["state.pt"]
    folder = tmp_path / "case"
    folder.mkdir()
    state = torch.load(made.folder / "trained" / "state.pt", weights_only=True)
    for i in range(1, 10_000):
        left = [i]
        changed = _with_texts(state, every[i % len(every)], left)
        if left[0] > 0:
            break
        if i % 4 and not os.environ.get("FLATMINIMA_HOSTILE"):
            continue
        file, command = reader.copied(made, folder)
        torch.save(changed, file)
        with watched(folder, made.folder) as watch:
            one_line(call(*command))
        assert not watch.seen, watch.seen
    assert i > 20


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_no_name_in_a_weights_file_is_used(kind: str, tmp_path: Path) -> None:
    import safetensors.torch

    from flatminima.errors import CheckpointError
    from flatminima.models import mlp
    from flatminima.training import load_checkpoint

    for attack in attacks(tmp_path):
        file = tmp_path / f"x.{kind}"
        tensors = {attack: torch.zeros(2)}
        if kind == "pt":
            torch.save(tensors, file)
        else:
            safetensors.torch.save_file(tensors, file, {"format": "pt", attack: attack, "source": attack})
        with watched(tmp_path) as watch, pytest.raises(CheckpointError):
            load_checkpoint(mlp((4, 2)), file)
        assert watch.seen == [], watch.seen


def test_no_cell_of_a_table_of_gaps_is_used(made: Made, tmp_path: Path) -> None:
    for attack in attacks(tmp_path):
        for row in (f"{attack},0.1,6", f"0.safetensors,{attack},6", f"0.safetensors,0.1,{attack}"):
            (tmp_path / "case").mkdir(exist_ok=True)
            file, command = READERS["gaps.csv"].copied(made, tmp_path / "case")
            rest = "\n".join(file.read_text().splitlines()[2:])
            file.write_text(f"checkpoint,gap,width\n{row}\n{rest}\n")
            with watched(tmp_path / "case", made.folder) as watch:
                one_line(call(*command))
            assert not watch.seen, watch.seen


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    import importlib
    import socket
    import subprocess
    import sys

    with watched(tmp_path) as watch:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("canary")
        subprocess.run([sys.executable, "-c", ""], check=True)
        with socket.socket() as one, pytest.raises(OSError, match=r"efused|annot"):
            one.connect(("127.0.0.1", 9))
        io.open("/etc/hostname", "rb").close()  # noqa: UP020
    assert [seen.split("(")[0].split(" ")[0] for seen in watch.seen] == [
        "import", "subprocess.Popen", "socket.connect", "open",
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(name: str, made: Made, tmp_path: Path) -> None:
    """It was opened, and the process waited for ever; a thread that writes would end such a wait."""
    file, command = READERS[name].copied(made, tmp_path)
    file.unlink()
    os.mkfifo(file)
    released = threading.Timer(30, lambda: os.close(os.open(file, os.O_RDWR)))
    released.daemon = True
    released.start()
    found = call(*command)
    assert released.is_alive(), "it waited for a writer"
    released.cancel()
    one_line(found)
