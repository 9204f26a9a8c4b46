"""What may happen to the folder that a command writes: no space, a file in its place, another process in it.

Each command is run in this process. "No space" is a limit on the size of a file, which the system enforces.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flatminima.cli import main
from flatminima.errors import FolderInUse
from flatminima.io import LOCK, claimed
from flatminima.models import mlp
from flatminima.studies import runner
from flatminima.training import save_checkpoint
from processes import start

MLP = ("--model", "flatminima.models:mlp", "--model-arg", "widths=(64,16,10)")
DIGITS = ("--data", "digits", "--limit", "120")
FEW = ("--measures", "margin,fisher_trace", "--subset", "9")
STUDY = """
from flatminima.studies import Study
def run(config, sources):
    return {"seed": config["seed"], "values": list(range(400))}
def figure(results):
    from matplotlib.figure import Figure
    return Figure()
STUDY = Study("tiny", "-", "A study", (), lambda scale: [{"seed": 0}], run, lambda results: [], figure,
              {"smoke": "-", "cpu": "-", "paper": "-"})
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """Each command that writes, without its --output; what they read lies in `folder`."""
    names = []
    for seed in range(2):
        torch.manual_seed(seed)
        names.append(str(folder / f"{seed}.safetensors"))
        save_checkpoint(mlp((64, 16, 10)), names[-1])
    name = f"tiny_{folder.name.replace('-', '_')}"  # imported once each
    (folder / f"{name}.py").write_text(STUDY)
    return {
        "measure": ["measure", *MLP, "--checkpoint", names[0], *DIGITS, *FEW],
        "rank": ["rank", *names, *MLP, *DIGITS, *FEW],
        "train": ["train", *MLP, *DIGITS, "--epochs", "1"],
        "certify": ["certify", *MLP, *DIGITS, "--epochs", "1", "--prior-epochs", "1", "--draws", "50"],
        "landscape": ["landscape", *MLP, "--checkpoint", names[0], *DIGITS, "--steps", "5", "--samples", "20"],
        "study": ["study", str(folder / f"{name}.py")],
        "demo": ["demo", "--quick"],
    }  # fmt: skip


NAMES = ("measure", "rank", "train", "certify", "landscape", "study", "demo")


Invoke = Callable[[str, Path], tuple[int, str]]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """A command by name into a folder: its exit code and what it said on stderr."""
    asked = commands(tmp_path)

    def call(name: str, output: Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["flatminima", *asked[name], "--output", str(output)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _refused(found: tuple[int, str], *words: str, code: int = 2) -> None:
    exited, said = found
    assert exited == code, said
    assert "Traceback" not in said and all(word in said for word in words), said


def _whole(folder: Path) -> None:
    """Every document reads, and nothing has the name of a file under way."""
    for path in folder.rglob("*"):
        assert ".tmp" not in path.name
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("name", NAMES)
def test_no_space_is_one_line_and_leaves_no_half_file(name: str, invoke: Invoke, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with files_of_at_most(700):
        found = invoke(name, output)
    _refused(found, "cannot write", "choose another", code=1)  # a scheduler may try again: the request was right
    _whole(output)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_the_folders_place(name: str, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    found = invoke(name, tmp_path / "taken" / "output")
    _refused(found, "cannot write", "choose another")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_written(name: str, invoke: Invoke, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    _refused(invoke(name, closed / "output"), "cannot write", "choose another", code=1)
    assert not list(closed.iterdir())


@pytest.mark.parametrize("name", ["train", "certify", "demo", "measure", "landscape"])
def test_a_second_process_is_turned_away(name: str, invoke: Invoke, tmp_path: Path) -> None:
    """Before any work, where files belong together; the lock is a process's, so another one has to hold it."""
    output = tmp_path / "output"
    code = f"from flatminima.io import claimed\nfrom pathlib import Path\nwith claimed(Path({str(output)!r})):"
    code += "\n print('mine', flush=True)\n input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        _refused(invoke(name, output), "another process", str(output)[:20], code=1)  # it works when that one has ended
        assert [path.name for path in output.iterdir()] == [LOCK]
        other.kill()
    assert invoke(name, output)[0] == 0  # a dead process holds nothing


@pytest.mark.parametrize("name", ["rank", "study"])
def test_two_processes_that_share_results_end_alike(name: str, tmp_path: Path) -> None:
    """Where each part is a file of its own, written whole under a name made from its contents."""
    command = [*commands(tmp_path)[name], "--json", "--output", str(tmp_path / "output")]
    both = [start(*command, stdout=tmp_path / f"{i}.out", stderr=tmp_path / f"{i}.err") for i in range(2)]
    for process in both:
        process.join(300)
    said = "".join((tmp_path / f"{i}.err").read_text() for i in range(2))
    assert [process.exitcode for process in both] == [0, 0], said
    one, two = (_plain(json.loads((tmp_path / f"{i}.out").read_text())) for i in range(2))
    assert one == two
    _whole(tmp_path / "output")


@contextmanager
def held_until_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Claim a folder as another process would, until somebody waits instead of giving up."""
    begun, waited = threading.Event(), threading.Event()

    def other() -> None:
        with claimed(folder):
            begun.set()
            waited.wait(120)

    monkeypatch.setattr("time.sleep", lambda _: waited.set())
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        assert waited.is_set()
        thread.join()


def test_rank_waits_where_another_one_writes(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two commands at once, the later refused the folder at its start while the earlier wrote its results."""
    with held_until_waited_for(tmp_path / "output", monkeypatch):
        code, said = invoke("rank", tmp_path / "output")
    assert code == 0, said


@pytest.mark.parametrize("name", ["measure", "landscape"])
def test_measured_numbers_are_not_lost_to_another_ones_moment(
    name: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks whether a folder is in use has it for a moment, which must not end a command that has worked."""
    module = importlib.import_module(f"flatminima.cli.{name}")
    with contextlib.ExitStack() as held:
        look = module.writable

        def then_held(output: Path, files: tuple[str, ...]) -> None:
            look(output, files)
            held.enter_context(held_until_waited_for(output, monkeypatch))

        monkeypatch.setattr(module, "writable", then_held)
        code, said = invoke(name, tmp_path / "output")
    assert code == 0, said


def _plain(document: object) -> object:
    if isinstance(document, dict):
        return {k: _plain(v) for k, v in document.items() if k != "seconds"}
    return [_plain(v) for v in document] if isinstance(document, list) else document


def test_a_claim_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), claimed(tmp_path / "new"):
        raise ValueError("mine")
    with claimed(tmp_path / "new"), pytest.raises(FolderInUse, match="another process"), claimed(tmp_path / "new"):
        pass


def test_a_run_that_another_process_ends_in_time_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two commands at once the second ended with exit code 1, and its results lacked the other's run."""
    namespace: dict[str, Any] = {}
    exec(STUDY, namespace)
    study, waited = namespace["STUDY"], threading.Event()

    def execute(_: Any, todo: list[Any], **__: Any) -> Iterator[tuple[Any, None]]:
        for work in todo:
            begun = threading.Event()

            def other(work: Any = work, begun: threading.Event = begun) -> None:
                with claimed(runner.under_way(work.file)):
                    begun.set()
                    assert waited.wait(60)
                    run = {"config": work.config, "result": {"seed": 0}, "seconds": 1.0, "core_seconds": 1.0}
                    work.file.write_text(json.dumps(run))

            threading.Thread(target=other).start()
            assert begun.wait(60)
            yield work, None

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(runner.time, "sleep", lambda _: waited.set())
    assert runner.reproduce(study, tmp_path)["missing"] == 0
