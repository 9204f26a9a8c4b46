"""A study of the user's own, and a folder of results, with what goes wrong in them: one line, code 2, nothing lost."""

import json
import os
import time

import pytest
from typer.testing import CliRunner

from flatminima.cli.app import app
from flatminima.errors import UsageError
from flatminima.studies import Study, verdict
from flatminima.studies.engines import attempt
from flatminima.studies.images import find
from flatminima.studies.result_files import documents
from flatminima.studies.runner import reproduce

FILE = """
from flatminima.studies import Study, trend
def configurations(scale):
    return [{{"seed": s, "x": x}} for s in range(3) for x in range(3)]
def run(config, sources):
    x, seed = config["x"], config["seed"]
    return {{"seed": seed, "x": x, "y": 2 * x + 0.01 * seed * x**2}}
def claims(results):
    x, y, seeds = ([r[k] for r in results] for k in ("x", "y", "seed"))
    return [trend("trace [nats] rises [/red]", x, y, seeds=seeds)]
def figure(results):
    from matplotlib.figure import Figure
    found = Figure()
    found.subplots().plot([r["x"] for r in results], [r["y"] for r in results])
    return found
{more}
STUDY = Study("{id}", "nowhere", "a line", (), configurations, run, claims, figure, {{"smoke": "a scale [small]"}})
"""
_COUNT = iter(range(1_000))


def written(folder, more="", name="mine"):
    file = folder / f"own_study_{os.getpid()}_{next(_COUNT)}.py"  # Python imports a name once
    file.write_text(FILE.format(more=more, id=name))
    return file


def call(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def refused(result, *words):
    """Whether it is one line with these words, of an error that `main` gives exit code 2."""
    said = str(result.exception)
    assert isinstance(result.exception, UsageError) and len(said.splitlines()) == 1, (result.exit_code, said)
    assert all(word in said for word in words), said
    return True


def test_text_of_the_user_is_no_markup(tmp_path):
    file = written(tmp_path)
    found = call("study", file, "--output", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    assert "trace [nats] rises [/red]" in " ".join(found.stdout.split())
    assert "a scale [small]" in " ".join(
        call("study", written(tmp_path), "--output", tmp_path / "o", "--dry-run").stdout.split()
    )
    page = (tmp_path / "out" / "index.html").read_text()
    assert "1 study of your own" in page and "The papers' claims" not in page and "This scale: a scale" in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("def claims(results): return results[0]['nope']", "claims(results) raised KeyError: 'nope'"),
        ("def claims(results): return None", "no list of verdicts"),
        ("def claims(results): return ['yes']", "no list of verdicts"),
        ("def figure(results): return 1 / 0", "figure(results) raised ZeroDivisionError"),
        ("def figure(results): return None", "no figure of matplotlib"),
        ("def configurations(scale): return None", "no list of dictionaries"),
        ("def configurations(scale): return [1, 2]", "no list of dictionaries"),
        ("def configurations(scale): return [{'seed': float('nan')}]", "a configuration that JSON cannot hold"),
        ("configurations = None", "configurations('smoke') raised TypeError"),
        ("import sys; sys.exit(0)", "failed on import: SystemExit"),
    ],
)
def test_what_is_wrong_in_a_study_is_named(tmp_path, more, said):
    assert refused(call("study", written(tmp_path, more), "--output", tmp_path / "out"), said)


def test_runs_are_kept_where_claims_fail(tmp_path):
    refused(call("study", written(tmp_path, "def claims(results): return 1 / 0"), "--output", tmp_path), "are kept")
    assert len(list((tmp_path / "mine" / "runs").glob("*.json"))) == 9


@pytest.mark.parametrize("name", ["../esc", "/tmp/abs", "", ".", "a/b", "networks", "smoke", "x<b>"])
def test_an_id_is_a_name_of_a_folder(name):
    with pytest.raises(UsageError, match="it names a folder"):
        Study(name, "", "", (), lambda _: [], lambda *_: {}, lambda _: [], lambda _: None, {"smoke": ""})


def test_a_papers_study_is_not_replaced(tmp_path):
    place = tmp_path / "wang-toy"
    place.mkdir()
    (place / "results.json").write_text("{}")
    assert refused(call("study", written(tmp_path, name="wang-toy"), "--output", tmp_path), "a paper's study")
    assert (place / "results.json").read_text() == "{}"


def test_code_that_is_newer_than_its_runs_is_noted(tmp_path):
    file = written(tmp_path)
    assert " is newer than" not in call("study", file, "--output", tmp_path).stderr
    later = time.time() + 10
    os.utime(file, (later, later))
    renamed = file.rename(tmp_path / f"other_{file.name}")
    assert f"{renamed.name} is newer than 9 runs" in call("study", renamed, "--output", tmp_path).stderr


def test_another_replication_takes_no_ones_place(tmp_path):
    assert call("study", written(tmp_path), "--output", tmp_path).exit_code == 0
    before = (tmp_path / "mine" / "results.json").read_bytes()
    assert refused(call("study", written(tmp_path), "--output", tmp_path, "--seed", 1), "--seed 0", "another --output")
    assert (tmp_path / "mine" / "results.json").read_bytes() == before
    assert call("study", written(tmp_path), "--output", tmp_path / "one", "--seed", 1).exit_code == 0
    no_seed = written(tmp_path, "def configurations(scale): return [{'x': 1}]")
    assert refused(call("study", no_seed, "--output", tmp_path / "two", "--seed", 1), "without a whole number")


def test_a_shard_in_which_a_run_fails_says_so(tmp_path):
    more = (
        "whole = run\ndef run(c, s):\n    if c == {'seed': 0, 'x': 0}: raise ValueError('no')\n    return whole(c, s)"
    )
    found = call("study", written(tmp_path, more), "--output", tmp_path / "a", "--shard", "1/2")
    assert found.exit_code == 1 and "of other shards" in found.stderr
    good = call("study", written(tmp_path), "--output", tmp_path / "b", "--shard", "1/2")
    assert good.exit_code == 0 and "the same command runs them" not in good.stderr


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"v": float("nan")}, "run gives nan as 'v'"),
        ({"v": {1, 2}}, "run gives set, or what is in it as 'v'"),
        ([1.0], "run gives list and no dictionary"),
    ],
)
def test_a_result_that_cannot_be_written_down_is_named(tmp_path, result, said):
    from flatminima.studies.engines import Work

    found = attempt(lambda config, sources: result, Work({}, {}, tmp_path / "absent" / "a.json"))
    assert said in found["error"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": "tiny"}, "no such scale"),
        ({"scale": ["a"]}, "no such scale"),
        ({"runs": 5}, "'runs' is of another form"),
        ({"runs": [{"config": None, "result": {}}]}, "a run is of another form"),
        ({"versions": 3}, "'versions' is of another form"),
        ({"claims": [1]}, "a claim is of another form"),
        ({"schema": 99}, "written by a newer version"),
    ],
)
def test_an_edited_file_is_named_before_anything_runs(tmp_path, change, said):
    assert call("study", written(tmp_path), "--output", tmp_path).exit_code == 0
    file = tmp_path / "mine" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for words in (("reproduce", "--all", "--show"), ("reproduce", "--claims"), ("reproduce", "wang-rescaling")):
        assert refused(call(*words, "--output", tmp_path), str(file), said)
    assert not (tmp_path / "wang-rescaling").exists()


def test_another_scale_of_the_same_study_is_read_before_anything_runs(tmp_path):
    place = tmp_path / "mine" / "cpu"
    place.mkdir(parents=True)
    (place / "results.json").write_text('{"id": "mine"')
    assert refused(call("study", written(tmp_path), "--output", tmp_path), "cpu/results.json")
    assert not (tmp_path / "mine" / "runs").exists()


def test_runs_that_this_version_does_not_list_are_counted():
    from flatminima.studies import STUDIES
    from flatminima.studies.index import _compared

    study = STUDIES["wang-rescaling"]
    listed = study.list_runs("cpu")
    runs = [{"config": c, "result": {}} for c in (*listed[:2], listed[0] | {"old": 1})]
    failed = {"config": listed[2], "error": "no"}
    found = _compared(study, {"scale": "cpu", "runs": [*runs, failed], "missing": 99})
    assert found == {"missing": len(listed) - 2, "older": 1}


def test_a_list_under_data_is_no_name_of_a_data_set():
    from flatminima.studies.runner import sources_of

    configs = [{"data": ["a", "b"], "seed": 0}]
    own = Study(
        "own", "", "", ("mnist",), lambda _: configs, lambda *_: {}, lambda _: [], lambda _: None, {"smoke": ""}
    )
    assert "mnist" in sources_of(own, "smoke", None)


def test_a_truncated_file_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text('{"id": "oth')
    assert refused(call("study", written(tmp_path), "--output", tmp_path), "other/results.json", "remove the file")
    with pytest.raises(UsageError, match="it is no folder"):
        documents(tmp_path / "other" / "results.json")


def test_data_that_are_not_there_are_refused_at_once(tmp_path):
    out = tmp_path / "out"
    one = ("reproduce", "wang-mnist-batch", "--scale", "cpu", "--data", tmp_path / "absent")
    assert refused(call(*one, "--output", out), "no folder", "mnist") and not out.exists()
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    every = ("reproduce", "--all", "--scale", "cpu", "--data", tmp_path / "data")
    assert refused(call(*every, "--output", out), "no folder cifar10") and not out.exists()
    assert find(["mnist"], "ylecun/mnist") == {"digits": "digits", "mnist": "ylecun/mnist"}


def test_smoke_needs_no_data(tmp_path):
    from flatminima.studies import STUDIES
    from flatminima.studies.runner import sources_of

    assert sources_of(STUDIES["jia-regularizer"], "smoke", str(tmp_path)) == {"digits": "digits"}
    with pytest.raises(UsageError, match="no folder cifar10"):
        sources_of(STUDIES["jia-regularizer"], "cpu", str(tmp_path))


def test_options_that_would_do_nothing_are_refused(tmp_path):
    for words in (
        *(("--show",), ("--all",), ("--fail-on-claims",), ("--scale", "smoke"), ("--shard", "1/2"), ("--dry-run",)),
        *(
            ("--seed", "1"),
            ("--jobs", "2"),
            ("--engine", "ray"),
            ("--data", "here"),
            ("--device", "cpu"),
            ("--redraw",),
        ),
    ):
        assert refused(call("reproduce", "--claims", *words, "--output", tmp_path), words[0], "would do nothing")
    assert refused(call("reproduce", "--claims", "--json", "--markdown", "--output", tmp_path), "--json")
    assert refused(call("reproduce", "wang-toy", "--show", "--dry-run", "--output", tmp_path), "--dry-run")
    assert refused(call("study", written(tmp_path), "--show", "--seed", "0"), "--seed")
    assert refused(call("study", written(tmp_path), "--scale", "bogus"), "bogus")
    assert refused(
        call("reproduce", "--claims", "wang-toy", "--paper", "J20"), "no sentence of J20 is tried by wang-toy"
    )


def test_a_refused_engine_leaves_no_folder(tmp_path):
    out = tmp_path / "out"
    assert refused(call("study", written(tmp_path), "--engine", "spark", "--output", out), "spark")
    local = written(tmp_path, "run = lambda config, sources: {}")
    assert refused(call("study", local, "-j", "2", "--output", out), "cannot import") and not out.exists()


def test_a_part_of_the_claims_is_not_said_to_be_all(tmp_path):
    said = " ".join(call("reproduce", "--claims", "neyshabur-width", "--output", tmp_path).stdout.split())
    assert "of the papers' claims" in said and "The papers make" not in said


def test_paths_are_not_on_the_page(tmp_path, monkeypatch):
    from flatminima.cli.studies import _without_paths

    words = ["study", "/home/me/own.py", "--output=/home/me/out", "--data", "/data", "--shard", "1/2"]
    assert _without_paths(words) == ["study", "own.py", "--output=FOLDER", "--data", "DATA", "--shard", "1/2"]


def test_own_verdicts_are_those_of_the_package():
    assert isinstance(verdict.trend("c", [0, 1, 2], [0, 1, 2.1], seeds=[0, 0, 0]), verdict.Verdict)
    assert callable(reproduce)
