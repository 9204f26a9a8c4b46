"""The demonstration: complete, honest about its certificate, and resumable."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flatminima import demo
from flatminima.certification.division.split import nats_left_out
from flatminima.demo import DEMO_MEASURES, recipes, run_demo
from flatminima.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, quick=True)


def test_the_full_population_varies_what_the_issue_asks_for() -> None:
    full = recipes(0, quick=False)
    assert len(full) >= 8
    assert len({r.name for r in full}) == len(full)
    assert len({r.batch_size for r in full}) > 1
    assert len({r.lr for r in full}) > 1
    assert len({r.label_noise for r in full}) > 1


def test_every_network_has_every_measure_and_a_gap(made: tuple[Path, dict[str, Any]]) -> None:
    _, results = made
    assert len(results["networks"]) == 4
    for network in results["networks"]:
        assert set(network["measures"]["measures"]) == set(DEMO_MEASURES)
        assert network["gap"] == pytest.approx(network["test_error"] - network["train_error"])
    assert set(results["ranking"]) == set(DEMO_MEASURES)


def test_the_written_document_is_the_returned_one(made: tuple[Path, dict[str, Any]]) -> None:
    folder, results = made
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))


def test_the_certificate_holds_here_and_says_what_it_rests_on(made: tuple[Path, dict[str, Any]]) -> None:
    c = made[1]["certificate"]
    assert c["is_certificate"]
    assert c["risk_bound"] >= c["monte_carlo_upper"] >= c["empirical_risk"]
    assert c["risk_bound"] > c["gibbs_test_error"]
    assert c["candidates"] == 4  # every recipe could have been the prior
    left = c["details"]["left_out"]  # of the bound's samples, copies of the prior's
    nats = math.log(len(demo.SIGMAS)) + nats_left_out(c["n"] + left, left)
    assert c["penalty"] == pytest.approx(nats)
    assert len(c["assumptions"]) >= 8


def test_a_second_run_computes_nothing_again(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = made
    trained: list[Any] = []
    real = demo.train
    monkeypatch.setattr(demo, "train", lambda *a, **k: trained.append(a) or real(*a, **k))
    again = run_demo(folder, quick=True)
    assert len(trained) <= 2  # the certificate's prior and posterior
    assert again["networks"] == results["networks"]
    assert again["ranking"] == results["ranking"]
    assert {k: v for k, v in again["certificate"].items()} == results["certificate"]


def test_a_damaged_file_is_made_again(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, results = made
    (tmp_path / "networks").mkdir()
    for i, path in enumerate(sorted((folder / "networks").iterdir())):
        text = path.read_text()
        (tmp_path / "networks" / path.name).write_text(text[: len(text) // 2] if i == 0 else text)
    again = run_demo(tmp_path, quick=True)
    without_time = [{k: v for k, v in n.items() if k not in ("seconds", "measures")} for n in again["networks"]]
    assert without_time == [
        {k: v for k, v in n.items() if k not in ("seconds", "measures")} for n in results["networks"]
    ]


def test_an_interruption_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = demo.train, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(demo, "train", interrupted)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, quick=True)
    assert len(list((tmp_path / "networks").glob("*.json"))) == 2
    assert not list(tmp_path.rglob("*.tmp*"))
    assert not (tmp_path / "results.json").exists()
    assert torch.get_num_threads() == threads


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        run_demo(tmp_path / "file", quick=True)
