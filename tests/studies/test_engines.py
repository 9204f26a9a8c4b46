"""Engines: whoever computes the runs, the results are the same, and a worker's death costs nothing but time."""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import squares
from typer.testing import CliRunner

import processes
from flatminima.cli.app import app
from flatminima.errors import MissingExtra, UnknownName, UsageError
from flatminima.studies import reproduce
from flatminima.studies.engines import Target

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_study.py"


def values(document):
    return [(r["result"]["x"], r["result"]["y"]) for r in document["runs"] if "result" in r]


@pytest.fixture
def forked(monkeypatch):
    """Workers that need not import the library each; that spawned ones do the same is tested in test_studies.py."""
    forkserver = processes.context()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forkserver)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_worker_that_dies_in_a_pool_is_replaced_and_its_run_repeated(tmp_path):
    here = reproduce(squares.study(), tmp_path / "here")
    pool = reproduce(squares.study(dies=str(tmp_path / "marker")), tmp_path / "pool", jobs=2)
    assert values(pool) == values(here) and pool["missing"] == 0
    assert os.getpid() not in {r["result"]["process"] for r in pool["runs"]}


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_run_that_always_kills_its_worker_is_recorded_and_the_others_are_kept(tmp_path):
    found = reproduce(squares.study(dies="always"), tmp_path, jobs=2)
    assert found["missing"] == 1 and len(values(found)) == 5
    assert "died" in next(r["error"] for r in found["runs"] if "error" in r)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("fatal", [0, 7])
def test_whoever_kills_a_worker_takes_no_other_run_with_it(tmp_path, fatal):
    """A pool that gave up after three breaks lost whatever stood behind the fatal run."""
    study = squares.study(dies="always", count=9, fatal=fatal)
    found = reproduce(study, tmp_path, jobs=2)
    assert sorted(x for x, _ in values(found)) == [x for x in range(9) if x != fatal] and found["missing"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_results_through_the_death_of_a_worker(tmp_path):
    """Two workers of a real local cluster; Ray's own warnings are none of ours."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    here = reproduce(squares.study(), tmp_path / "here")
    found = reproduce(squares.study(dies=str(tmp_path / "marker")), tmp_path / "ray", jobs=2, engine="ray")
    assert (tmp_path / "marker").exists()
    assert values(found) == values(here) and found["missing"] == 0
    assert os.getpid() not in {r["result"]["process"] for r in found["runs"]}


def test_an_engine_that_is_not_there_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"flatminima\[ray\]"):
        reproduce(squares.study(), tmp_path, engine="ray")
    with pytest.raises(UnknownName, match="engine"):
        reproduce(squares.study(), tmp_path, engine="dask")


def test_other_processes_need_a_run_with_a_name():
    study = squares.study()
    nameless = replace(study, run=lambda config, sources: {})
    with pytest.raises(UsageError, match="function of its module"):
        Target.of(nameless)


@pytest.mark.slow
def test_the_example_runs_in_two_processes_and_twice_without_computing_again(tmp_path):
    def call(*more):
        said = tmp_path / "said"
        command = ("study", str(EXAMPLE), "--output", str(tmp_path), *more)
        assert processes.run(*command, stdout=said, prepare=processes.fork_workers) == 0
        return json.loads(said.read_text())

    first = call("-j", "2", "--json")
    assert first == call("--json")  # the seconds as well: nothing ran
    assert (tmp_path / "index.html").exists() and (tmp_path / "my-study" / "figure.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("STUDY = 1\n", "defines no STUDY"), ("1 / 0\n", "ZeroDivisionError"), (None, "no Python file")],
)
def test_a_file_without_a_study_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / f"mine_{abs(hash(message))}.py"
    if text is not None:
        file.write_text(text)
    result = CliRunner().invoke(app, ["study", str(file), "--output", str(tmp_path / "o")])
    assert isinstance(result.exception, UsageError) and message in str(result.exception)
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_results(tmp_path):
    command = ["study", str(EXAMPLE), "--scale", "smoke", "--json", "--output"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert processes.run(*command, str(whole), folder=whole, stdout=tmp_path / "theirs") == 0
    count = processes.operations(whole)
    for moment in (count // 5, count // 4, count // 3):  # each goes on where the one before was killed
        assert processes.run(*command, str(killed), folder=killed, kill_at=moment) == -signal.SIGKILL
    assert processes.run(*command, str(killed), stdout=tmp_path / "ours") == 0
    ours, theirs = (json.loads((tmp_path / name).read_text())[0]["runs"] for name in ("ours", "theirs"))
    assert [r["result"] for r in ours] == [r["result"] for r in theirs]
    assert not list((tmp_path / "killed").rglob("*.tmp.*"))


def test_the_page_has_every_claim_and_figure_and_loads_nothing(tmp_path):
    runner = CliRunner()
    assert runner.invoke(app, ["reproduce", "neyshabur-width", "--output", str(tmp_path)]).exit_code == 0
    text = (tmp_path / "index.html").read_text()
    for claim in json.loads((tmp_path / "neyshabur-width" / "results.json").read_text())["claims"]:
        assert claim["claim"] in text
    assert "data:image/svg+xml;base64," in text and "default-src 'none'" in text
    assert "http" not in text.split("<main>")[1]
    shown = runner.invoke(app, ["reproduce", "neyshabur-width", "--output", str(tmp_path), "--show"])
    assert (
        shown.exit_code == 0 and "decides" in shown.output
    )  # "smoke scale shows that the study runs, and decides nothing"
    assert not any(word in shown.output for word in ("undecided", "reproduced", "contradicted"))
    broken = tmp_path / "neyshabur-width" / "results.json"
    broken.write_text("{")
    assert isinstance(
        runner.invoke(app, ["reproduce", "neyshabur-width", "--output", str(tmp_path), "--show"]).exception, UsageError
    )
