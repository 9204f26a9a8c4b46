"""`flatminima rank`: an order with its uncertainty, scores where gaps are known, a cache that is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from flatminima import Minimum, budgets, measure
from flatminima.cli.app import main
from flatminima.cli.gaps import read_gaps
from flatminima.data import load_tensors
from flatminima.errors import DataError
from flatminima.models import mlp
from flatminima.ranking import choose, look, rank
from flatminima.training import TrainConfig, evaluate, save_checkpoint, train

WIDTHS = (64, 16, 10)
NAMES = "path_norm,fisher_trace,margin,robustness"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four networks of growing training, as files."""
    root = tmp_path_factory.mktemp("rank")
    x, y = load_tensors("digits", "train", limit=200)
    for i, epochs in enumerate((12, 14, 16, 18)):
        torch.manual_seed(i)
        model = mlp(WIDTHS)
        train(model, x, y, config=TrainConfig(lr=0.1, epochs=epochs, batch_size=32))
        save_checkpoint(model, root / f"{i}.safetensors")
    return root


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flatminima", "rank", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def arguments(folder: Path, *more: str, count: int = 4) -> list[str]:
    return [
        *(str(folder / f"{i}.safetensors") for i in range(count)),
        *("--model", "flatminima.models:mlp", "--model-arg", "widths=(64,16,10)", "--data", "digits"),
        *("--limit", "200", "--subset", "20", "--measures", NAMES, *more),
    ]


def minima(folder: Path) -> list[Minimum]:
    from safetensors.torch import load_file

    x, y = load_tensors("digits", "train", limit=200)
    out = []
    for i in range(4):
        model = mlp(WIDTHS)
        model.load_state_dict(load_file(folder / f"{i}.safetensors"))
        out.append(Minimum(model.eval(), (x, y)))
    return out


def test_the_order_and_the_scores_are_pythons(cli, folder) -> None:  # type: ignore[no-untyped-def]
    from functools import partial

    from flatminima import measures

    names = NAMES.split(",")
    tables, looks, gaps = [], [], []
    held = load_tensors("digits", "test")
    for i, minimum in enumerate(minima(folder)):
        chosen = []
        for name in names:
            options = budgets.options("fast", name) | ({"subset": 20} if name == "fisher_trace" else {})
            function = partial(getattr(measures, name), **options)
            function.__name__ = name  # type: ignore[attr-defined]
            chosen.append(function)
        tables.append(measure(minimum, chosen))
        looks.append(look(str(folder / f"{i}.safetensors"), minimum))
        x, y = minimum.samples.take(torch.arange(200))
        gaps.append(evaluate(minimum.model, *held).error - evaluate(minimum.model, x, y).error)
    code, out, _ = cli(*arguments(folder, "--json", "--by", "path_norm,fisher_trace"))
    assert code == 0
    expected = choose(looks, tables, ["path_norm", "fisher_trace"])
    assert expected.order is not None
    document = json.loads(out)
    assert document["order"] == json.loads(json.dumps(expected.order.to_dict()))
    assert document["answer"] == expected.answer
    code, out, _ = cli(*arguments(folder, "--json", "--test-split", "test"))
    document = json.loads(out)
    assert [n["gap"] for n in document["networks"]] == pytest.approx(gaps)
    assert document["measures"]["path_norm"]["tau"] == rank(tables, gaps).correlations["path_norm"].tau
    assert document["choice"]["basis"] == "errors" and document["choice"]["test_samples"] == len(held[1])
    assert (
        document["answer"]
        == choose([look(x.candidate.name, m, held) for x, m in zip(looks, minima(folder), strict=True)]).answer
    )


def test_the_first_line_is_the_answer_and_the_page_has_it(cli, folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "out"
    torch.manual_seed(99)
    save_checkpoint(mlp(WIDTHS), tmp_path / "untrained.safetensors")
    asked = arguments(folder, "--test-split", "test", "--output", str(output), count=2)
    code, out, _ = cli(str(tmp_path / "untrained.safetensors"), *asked)
    answer = json.loads((output / "rank.json").read_text())["answer"]
    assert code == 0 and " ".join(out.split()).startswith(answer[:60])
    page = (output / "rank.html").read_text()
    assert answer.split("(")[0].strip() in page and "untrained" in page and "left out" in page and "<svg" in page
    assert "untrained" not in answer


def test_other_scaling_is_named(cli, folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A network of pixels from 0 to 16, looked at on pixels from 0 to 1; would be ranked as a bad one."""
    torch.manual_seed(3)
    model = mlp(WIDTHS)
    x, y = load_tensors("digits", limit=200, scaling="none")
    train(model, x, y, config=TrainConfig(lr=0.01, epochs=25))
    save_checkpoint(model, tmp_path / "raw.safetensors")
    code, out, _ = cli(str(tmp_path / "raw.safetensors"), *arguments(folder, "--measures", "none", count=2))
    assert code == 0 and "with --scaling none: it was trained so" in " ".join(out.split()), out


def test_a_file_of_another_network_is_left_out(cli, folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    save_checkpoint(mlp((64, 8, 10)), tmp_path / "narrow.safetensors")
    (tmp_path / "damaged.pt").write_bytes(b"no weights")
    more = [str(tmp_path / "narrow.safetensors"), str(tmp_path / "damaged.pt")]
    code, out, _ = cli(*more, *arguments(folder, "--test-split", "test", "--json"))
    found = json.loads(out)["choice"]
    assert code == 0 and [c["left_out"] is not None for c in found["candidates"]] == [True, True] + [False] * 4


def test_each_checkpoint_may_have_its_model(cli, folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import numpy as np

    x, y = load_tensors("digits", "test")
    np.savez(tmp_path / "held.npz", x=(x[:, 0] * 16).numpy().astype(np.uint8), y=y)
    asked = arguments(folder, "--model", "flatminima.models:mlp", "--measures", "none", "--json", count=2)
    code, out, _ = cli(*asked, "--test-data", str(tmp_path / "held.npz"))
    assert code == 0 and json.loads(out)["choice"]["test_samples"] == len(y)
    code, _, err = cli(*arguments(folder, "--model", "a.b:c", count=3))
    assert code == 2 and "got 2 --model for 3 checkpoints" in err


def test_test_samples_that_were_trained_on_are_counted(cli, folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    asked = [a if a != "200" else "100000" for a in arguments(folder, "--measures", "none", count=2)]
    code, out, _ = cli(*asked, "--test-split", "train[:50]+test")
    assert code == 0 and "50 of 589 test samples are training samples too" in " ".join(out.split())


def test_the_tables_fit_a_terminal(cli, folder) -> None:  # type: ignore[no-untyped-def]
    code, out, err = cli(*arguments(folder))
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert "--test-split" in err


def test_nothing_is_measured_twice_but_a_damaged_file(cli, folder, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import flatminima.cli.candidates as module

    output = str(tmp_path / "out")
    asked = arguments(folder, "--test-split", "test", "--output", output, "--json", count=3)
    _, first, _ = cli(*asked)
    calls: list[str] = []
    real = module._one

    def counted(request, minimum):  # type: ignore[no-untyped-def]
        calls.append(request.checkpoint.name)
        return real(request, minimum)

    monkeypatch.setattr(module, "_one", counted)
    _, again, _ = cli(*asked)
    assert json.loads(again) == json.loads(first) and not calls
    kept = sorted((tmp_path / "out" / "networks").iterdir())
    assert len(kept) == 3
    kept[0].write_text('{"table": ')
    _, mended, _ = cli(*asked)
    assert len(calls) == 1
    assert json.loads(mended)["choice"] == json.loads(first)["choice"]
    cli(*asked, "--seed", "1")
    assert len(calls) == 4, "another request is not in the cache"


def test_gaps_and_hyperparameters_from_a_file(cli, folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = tmp_path / "gaps.csv"
    rows = [f"{i}.safetensors,{gap},{i // 2},{i % 2}" for i, gap in enumerate((0.3, 0.1, 0.2, 0.4))]
    table.write_text("\n".join(["checkpoint,gap,lr,width", *rows]))
    code, out, _ = cli(*arguments(folder, "--gaps", str(table), "--json"))
    assert code == 0
    found = json.loads(out)["measures"]["fisher_trace"]["controlled"]
    assert set(found["by_hyperparameter"]) == {"lr", "width"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "no columns checkpoint and gap"),
        ("checkpoint,gap\nz,1\n", "no row for"),
        ("checkpoint,gap\na.pt,x\n", "expected a finite number"),
        ("checkpoint,gap\na.pt,nan\n", "expected a finite number"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_gaps(path, [Path("some/a.pt")])
    with pytest.raises(DataError, match="cannot read"):
        read_gaps(tmp_path / "absent.csv", [Path("a.pt")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a[1:2] + a[4:], "two or more"),
        (lambda a: [a[0], *a], "named twice"),
        (lambda a: ["absent.pt", *a], "no file absent.pt"),
        (lambda a: [*a, "--by", "path_nrm"], "did you mean 'path_norm'"),
        (lambda a: [*a, "--by", "margin", "--measures", "path_norm"], "no measure to order by"),
        (lambda a: [*a, "--test-split", "test", "--gaps", "x.csv"], "give one of them"),
        (lambda a: [*a, "--budget", "quick"], "unknown budget"),
    ],
)
def test_bad_requests_are_one_line(cli, folder, change, words) -> None:  # type: ignore[no-untyped-def]
    code, out, err = cli(*change(arguments(folder)))
    assert (code, out) == (2, "") and words in err
    assert err.strip().splitlines()[-1].startswith("flatminima")
