"""Studies: runs are kept by configuration, failures end nothing, verdicts follow the numbers."""

import json
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from flatminima.cli.app import app
from flatminima.errors import UsageError
from flatminima.studies import STUDIES, Study, reproduce, trend
from flatminima.studies.runner import plan


def square(config, sources):
    if config["x"] == config.get("bad"):
        raise ValueError("a bad run")
    return {"x": config["x"], "y": config["x"] ** 2}


def _study(count=6, bad=None, run=square):
    def claims(results):
        return [trend("y rises", [r["x"] for r in results], [r["y"] for r in results])]

    configs = [{"x": x, "bad": bad} for x in range(count)]
    reduction = dict.fromkeys(("smoke", "cpu"), "-")
    return Study("squares", "-", "-", (), lambda scale: configs, run, claims, lambda results: Figure(), reduction)


def test_a_verdict_follows_the_interval():
    x = list(range(8))
    assert trend("", x, x).verdict == "holds"
    assert trend("", x, x[::-1]).verdict == "fails"
    assert trend("", x, x[::-1], sign=-1).verdict == "holds"
    assert trend("", x, x, sign=-1).verdict == "fails"
    assert trend("", x, [0, 3, 1, 2, 3, 0, 2, 1]).verdict == "undecided"
    assert trend("", [1.0], [1.0]).verdict == "undecided"
    assert trend("", x[:4], x[:4]).verdict == "undecided"  # its bootstrap interval is [1, 1]
    assert trend("", x[:5], x[:5]).verdict == "holds"


def test_finished_runs_are_not_run_again_and_a_damaged_one_is(tmp_path):
    calls = []

    def counted(config, sources):
        calls.append(config["x"])
        return square(config, sources)

    first = reproduce(_study(run=counted), tmp_path)
    files = sorted((tmp_path / "squares" / "runs").iterdir())
    files[0].write_text("{")  # as a kill in mid-write would, were it not for the renaming
    (tmp_path / "squares" / "results.json").unlink()  # which has the run, too
    assert reproduce(_study(run=counted), tmp_path)["claims"] == first["claims"]
    assert len(calls) == 7
    assert first["claims"][0]["verdict"] == "holds"


def test_a_run_that_fails_is_recorded_and_tried_again(tmp_path):
    found = reproduce(_study(bad=2), tmp_path)
    assert found["missing"] == 1
    assert [r["error"] for r in found["runs"] if "error" in r] == ["ValueError: a bad run"]
    assert len([r for r in found["runs"] if "result" in r]) == 5


def test_shards_together_are_the_whole(tmp_path):
    assert reproduce(_study(), tmp_path / "s", shard=(1, 2))["missing"] == 3
    whole, sharded = reproduce(_study(), tmp_path / "w"), reproduce(_study(), tmp_path / "s", shard=(2, 2))
    assert sharded["missing"] == 0
    assert [r["result"] for r in sharded["runs"]] == [r["result"] for r in whole["runs"]]


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"shard": (3, 2)}, {"shard": (0, 2)}, {"scale": "huge"}])
def test_bad_arguments_are_refused(tmp_path, wrong):
    for call in (reproduce, plan):
        with pytest.raises(UsageError):
            call(_study(), tmp_path, **wrong)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_at_smoke_scale(name, tmp_path):
    here = reproduce(STUDIES[name], tmp_path / "here")
    assert here["missing"] == 0, [r.get("error") for r in here["runs"]]
    assert here["claims"]
    assert (tmp_path / "here" / name / "figure.png").stat().st_size > 5_000
    for config in STUDIES[name].list_runs("paper"):
        json.dumps(config)


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same_results(tmp_path):
    here, pool = reproduce(_study(3), tmp_path / "here"), reproduce(_study(3), tmp_path / "pool", jobs=2)
    assert [r.get("result") for r in pool["runs"]] == [r["result"] for r in here["runs"]]


def test_the_command_line(tmp_path):
    result = CliRunner().invoke(app, ["reproduce", "neyshabur-width", "--output", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["id"] == "neyshabur-width"


def test_a_dry_run_says_what_is_left_and_writes_nothing(tmp_path):
    def call(*more):
        result = CliRunner().invoke(app, ["reproduce", "wang-toy", "--output", str(tmp_path / "o"), "--dry-run", *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(call("--json"))[0] | {"reduction": ""} == {
        "id": "wang-toy", "scale": "smoke", "reduction": "", "runs": 1, "done": 0, "to_do": 1, "seconds_left": None,
    }  # fmt: skip
    assert "wang-toy" in call() and not (tmp_path / "o").exists()


def test_the_time_left_is_that_of_the_runs_that_are_done(tmp_path):
    reproduce(_study(4), tmp_path)
    for file in (tmp_path / "squares" / "runs").iterdir():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 30.0}))
    (tmp_path / "squares" / "results.json").unlink()
    configs = [{"x": x, "bad": None} for x in range(10)]
    longer = replace(_study(), configurations=lambda scale: configs)
    found = plan(longer, tmp_path, jobs=2)
    assert (found["done"], found["to_do"], found["seconds_left"]) == (4, 6, 90.0)
    part = plan(longer, tmp_path, shard=(2, 5))
    assert (part["runs"], part["done"], part["to_do"]) == (2, 1, 1)  # 1, which is done, and 6
    reproduce(longer, tmp_path)
    assert plan(longer, tmp_path)["seconds_left"] == 0.0


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    command = ["reproduce", "wang-toy", "--output", str(tmp_path / "o"), "--device", "cuda:99"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UsageError) and "cannot be used here" in str(result.exception)
    assert not (tmp_path / "o").exists()


def test_a_replication_has_other_seeds_and_whole_figures(tmp_path):
    first = {json.dumps(c) for s in STUDIES.values() for c in s.list_runs("smoke")}
    for study in STUDIES.values():
        again = study.list_runs("smoke", 1)
        assert not first & {json.dumps(c) for c in again} and len(again) == len(study.list_runs("smoke"))
    found = reproduce(STUDIES["wang-toy"], tmp_path, seed=2)
    assert found["replication"] == 2 and found["runs"][0]["config"]["seed"] == 2000
    assert (tmp_path / "wang-toy" / "surface.html").exists() == found["runs"][0]["result"]["found"]
    with pytest.raises(UsageError, match="replication"):
        reproduce(_study(), tmp_path, seed=-1)


def test_a_run_says_on_which_device_it_was_computed(tmp_path):
    found = reproduce(_study(2), tmp_path, device="cpu")
    assert [r["device"] for r in found["runs"]] == ["cpu", "cpu"]
