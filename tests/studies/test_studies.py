"""Studies: runs are kept by configuration, failures end nothing, verdicts follow the numbers."""

import json
import sys
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from flatminima.cli.app import app
from flatminima.errors import UsageError
from flatminima.studies import STUDIES, Study, compare, reproduce, share, trend
from flatminima.studies.runner import plan

pytestmark = pytest.mark.slow


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
    x, up = list(range(8)), [0.1, 1, 2.2, 3, 3.9, 5, 6.1, 7]
    assert trend("", x, up).verdict == "holds"
    assert trend("", x, up[::-1]).verdict == "fails"
    assert trend("", x, up[::-1], sign=-1).verdict == "holds"
    assert trend("", x, up, sign=-1).verdict == "fails"
    assert trend("", x, [0, 3, 1, 2, 3, 0, 2, 1]).verdict == "undecided"
    assert trend("", [1.0], [1.0]).verdict == "undecided"
    assert trend("", x[:4], up[:4]).verdict == "undecided"  # of so few runs nothing is decided
    assert trend("", x[:5], up[:5]).verdict == "holds"


def test_no_interval_is_a_point():
    """Values on a line, or pairs that differ alike, have no spread to infer from: that is said, and nothing decided."""
    for found in (trend("", range(6), range(6)), compare("", [1.0, 2.0, 3.0], [0.0, 1.0, 2.0])):
        assert (found.verdict, found.low, found.statistic) == ("undecided", None, None) and "spread" in found.note
    assert share("", [True] * 3).low == pytest.approx(0.292, abs=1e-3)
    with pytest.raises(UsageError, match="sign"):
        trend("", range(6), [0, 1, 0, 2, 1, 3], sign=2)


def test_seeds_have_their_own_level():
    x, seeds = [0, 1, 2, 3] * 3, [0] * 4 + [1] * 4 + [2] * 4
    y = [10.0 * seed + 0.1 * a + 0.01 * (i % 3) for i, (a, seed) in enumerate(zip(x, seeds, strict=True))]
    assert trend("", x, y, seeds=seeds).verdict == "holds"
    assert trend("", x, y).verdict == "undecided"


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
    assert here["claims"] and not any(c["verdict"] for c in here["claims"])  # smoke decides nothing
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
    for i, file in enumerate((tmp_path / "squares" / "runs").iterdir()):  # one slept with the machine
        file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 30.0 if i else 5_000.0}))
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


def _own(tmp_path, name, claim="True"):
    text = f"""from matplotlib.figure import Figure
from flatminima.studies import Study, share


def run(config, sources):
    return {{"x": config["x"]}}


def claims(results):
    return [share("it is so", [{claim} for r in results]), share("a control", [False], control=True)]


STUDY = Study("{name.replace("_", "-")}", "-", "one of mine", (), lambda scale: [{{"x": 1}}], run, claims,
              lambda results: Figure(), dict.fromkeys(("smoke", "cpu", "paper"), "-"))
"""
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    return str(file)


def _call(*words):
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]  # each call is a process of its own
    return CliRunner().invoke(app, list(words))


def test_one_index_holds_every_study_of_a_folder(tmp_path):
    """The papers' and one's own, whichever ran last, also where only one is shown."""
    output = ["--output", str(tmp_path / "out")]
    mine = _own(tmp_path, "mine_in_index")
    for words in (
        ["study", mine],
        ["reproduce", "wang-toy"],
        ["reproduce", "--all", "--show"],
        ["study", mine, "--show"],
        ["reproduce", "wang-toy", "--show"],
        ["study", mine],
    ):
        result = _call(*words, *output)
        assert result.exit_code == 0, (words, result.output)
        page = (tmp_path / "out" / "index.html").read_text()
        if words[:2] != ["study", mine] or words[-1] == "--show":
            assert 'id="wang-toy"' in page
        assert 'id="mine-in-index"' in page and "Your own studies" in page, words
    shown = json.loads(_call("study", mine, "--show", "--json", *output).stdout)
    assert [d["id"] for d in shown] == ["mine-in-index"] and shown[0]["claims"][0]["verdict"] == "holds"


def test_each_study_lies_under_the_heading_of_its_kind(tmp_path):
    """One's own, those of a figure of the papers, and those that no sentence of the papers is on."""
    names = {"own-studies": "my-study", "papers-studies": "wang-toy", "beyond-studies": "cohen-edge"}
    for name in reversed(names.values()):
        (tmp_path / name).mkdir()
        document = {"id": name, "paper": "-", "title": "-", "scale": "smoke", "reduction": "-", "missing": 0}
        empty = {"claims": [], "runs": [], "seconds": 0.0, "versions": {}}
        (tmp_path / name / "results.json").write_text(json.dumps(document | empty))
    assert _call("reproduce", "--all", "--show", "--output", str(tmp_path)).exit_code == 0
    page = (tmp_path / "index.html").read_text()
    in_order = [page.index(f'id="{id}"') for pair in names.items() for id in pair]
    assert in_order == sorted(in_order)
    heads = page[page.index("Sentences that are") : page.index("</thead>")]
    assert heads.count('class="n"') == 5, "a column for each document of the papers"


def test_scales_lie_beside_each_other(tmp_path):
    mine, output = _own(tmp_path, "mine_at_scales"), ["--output", str(tmp_path)]
    for scale in ("cpu", "paper", "smoke", "cpu"):
        assert _call("study", mine, "--scale", scale, *output).exit_code == 0
    own = tmp_path / "mine-at-scales"
    assert json.loads((own / "results.json").read_text())["scale"] == "cpu"
    assert sorted(p.name for p in own.iterdir() if p.is_dir()) == ["paper", "runs", "smoke"]
    shown = json.loads(_call("study", mine, "--show", "--json", *output).stdout)
    assert [d["scale"] for d in shown] == ["paper", "cpu", "smoke"]  # the larger decides
    page = (tmp_path / "index.html").read_text()
    assert all(f"<h4>{scale} scale</h4>" in page for scale in ("cpu", "paper", "smoke"))
    assert (own / "paper" / "figure.png").exists() and (own / "figure.png").exists()


@pytest.mark.parametrize(("claim", "code"), [("True", 0), ("False", 3)])
def test_a_failing_claim_and_no_control_is_an_exit_status(tmp_path, claim, code):
    """With --show as without; the study's control fails in both."""
    mine = _own(tmp_path, f"mine_{claim.lower()}", claim)
    output = ["--output", str(tmp_path), "--fail-on-claims"]
    assert _call("study", mine, *output).exit_code == code
    assert _call("study", mine, "--show", *output).exit_code == code


def test_results_as_an_older_version_wrote_them_are_shown(tmp_path):
    run = {"config": {"x": 1}, "result": {"x": 1}, "seconds": 1.0}
    claim = {"claim": "it was so", "verdict": "holds", "control": False, "measured": "tau", "statistic": 0.5}
    claim |= {"low": 0.1, "high": 0.9, "paper": None, "note": "3 seeds"}
    old = {"schema": 1, "id": "old", "paper": "-", "title": "-", "scale": "cpu", "reduction": "-", "runs": [run]}
    old |= {"missing": 0, "claims": [claim], "seconds": 1.0, "versions": {}}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps(old))
    result = _call("reproduce", "--all", "--show", "--output", str(tmp_path))
    assert result.exit_code == 0 and "it was so" in result.stdout
    assert "it was so" in (tmp_path / "index.html").read_text()
    (tmp_path / "old" / "results.json").write_text("{")
    broken = _call("reproduce", "--all", "--show", "--output", str(tmp_path))
    assert isinstance(broken.exception, UsageError) and "cannot read" in str(broken.exception)


def test_nothing_to_show_is_said(tmp_path):
    for words in (["--all"], ["wang-toy"]):
        result = _call("reproduce", *words, "--show", "--output", str(tmp_path))
        assert isinstance(result.exception, UsageError) and "first" in str(result.exception)
    assert not (tmp_path / "index.html").exists()
