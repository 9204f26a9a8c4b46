"""Damaged numbers: whoever reads a result that was cut, mixed up or edited says so in one line, or shows what it can.

A document is changed at a random place (a value becomes another type, a key goes, the text ends early). The message of
an exception that nobody expected names FLATMINIMA_DEBUG, so its absence is what is tested.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatminima.cli import main
from flatminima.models import mlp
from flatminima.training import save_checkpoint

MLP = ("--model", "flatminima.models:mlp", "--model-arg", "widths=(64,8,10)", "--data", "digits")
OTHER = st.sampled_from([None, -1, 1e308, "", "<b>", [], {}, [None], True])
FUZZ = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["flatminima", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured network, a certificate, a training and a ranking, each in a folder."""
    folder = tmp_path_factory.mktemp("made")
    names = []
    for seed in range(2):
        torch.manual_seed(seed)
        names.append(str(folder / f"{seed}.safetensors"))
        save_checkpoint(mlp((64, 8, 10)), names[-1])
    patch = pytest.MonkeyPatch()
    for arguments in (
        ["measure", *MLP, "--limit", "80", "--measures", "margin,pacgen,bicriteria", "--audit", "--output", "measured"],
        [
            "certify",
            *MLP,
            "--limit",
            "200",
            "--epochs",
            "1",
            "--prior-epochs",
            "1",
            "--draws",
            "20",
            "--output",
            "sure",
        ],
        ["train", *MLP, "--limit", "80", "--epochs", "2", "--output", "trained"],
        ["rank", *names, *MLP, "--limit", "80", "--measures", "margin,pacgen", "--by", "pacgen", "--output", "ranked"],
    ):
        arguments[-1] = str(folder / arguments[-1])
        patch.setattr("sys.argv", ["flatminima", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    patch.undo()
    return folder


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a document something stands."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*at, key))
    return found


def damaged(data: st.DataObject, document: Any) -> str:
    document = copy.deepcopy(document)
    at = data.draw(st.sampled_from(places(document)))
    inner = document
    for key in at[:-1]:
        inner = inner[key]
    kind = data.draw(st.sampled_from(["other", "gone", "cut"]))
    if kind == "other":
        inner[at[-1]] = data.draw(OTHER)
    elif kind == "gone":
        del inner[at[-1]]
    text = json.dumps(document)
    return text[: data.draw(st.integers(0, len(text) - 1))] if kind == "cut" else text


def one_line(found: tuple[int, str]) -> None:
    code, said = found
    assert code in (0, 1, 2, 3), said  # 3: another number than the record's
    assert "FLATMINIMA_DEBUG" not in said and "Traceback" not in said, said


@FUZZ
@given(data=st.data())
def test_the_page_of_damaged_measures(data: st.DataObject, run: Run, made: Path, tmp_path: Path) -> None:
    document = json.loads((made / "measured" / "measures.json").read_text())
    (tmp_path / "measures.json").write_text(damaged(data, document))
    one_line(run("report", str(tmp_path)))


@FUZZ
@given(data=st.data())
def test_verifying_a_damaged_certificate(data: st.DataObject, run: Run, made: Path, tmp_path: Path) -> None:
    document = json.loads((made / "sure" / "certificate.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes((made / "sure" / "weights.safetensors").read_bytes())
    (tmp_path / "certificate.json").write_text(damaged(data, document))
    one_line(run("certify", "--verify", str(tmp_path / "certificate.json"), "--data", "digits"))


@FUZZ
@given(data=st.data())
def test_training_in_a_folder_with_a_damaged_configuration(
    data: st.DataObject, run: Run, made: Path, tmp_path: Path
) -> None:
    document = json.loads((made / "trained" / "run.json").read_text())
    (tmp_path / "run.json").write_text(damaged(data, document))
    one_line(run("train", *MLP, "--limit", "80", "--epochs", "2", "--output", str(tmp_path)))


@FUZZ
@given(content=st.binary(max_size=60), cut=st.integers(0, 2000))
def test_training_with_a_damaged_state(content: bytes, cut: int, run: Run, made: Path, tmp_path: Path) -> None:
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((made / "trained" / name).read_bytes())
    whole = (made / "trained" / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[:cut] + content + whole[cut + len(content) :])
    one_line(run("train", *MLP, "--limit", "80", "--epochs", "2", "--output", str(tmp_path)))


@FUZZ
@given(data=st.data())
def test_ranking_with_damaged_results(data: st.DataObject, run: Run, made: Path, tmp_path: Path) -> None:
    kept = next(p for p in (made / "ranked").rglob("*.json") if p.name != "rank.json")
    place = tmp_path / kept.relative_to(made / "ranked")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(damaged(data, json.loads(kept.read_text())))
    names = [str(made / f"{seed}.safetensors") for seed in range(2)]
    one_line(
        run(
            "rank",
            *names,
            *MLP,
            "--limit",
            "80",
            "--measures",
            "margin,pacgen",
            "--by",
            "pacgen",
            "--output",
            str(tmp_path),
        )
    )
