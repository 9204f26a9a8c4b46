"""A run killed in its training goes on within it, to the same bits; processes may share a folder and its work."""

import json
import math

import pytest
import torch
from matplotlib.figure import Figure

import processes
from flatminima import progress
from flatminima.io import claimed, versions
from flatminima.models import build
from flatminima.studies import STUDIES, Study, releases, reproduce, resumable, runner
from flatminima.studies.engines import Work, attempt
from flatminima.studies.resumable import keeping, share, train
from flatminima.studies.run_store import RunStore, under_way
from flatminima.training import TrainConfig

EPOCHS = 6


class Killed(BaseException):
    """What no handler of a failed run catches, as a signal would do."""


@pytest.fixture(autouse=True)
def save_each_step(monkeypatch):
    monkeypatch.setattr(resumable, "_EVERY", 0.0)


def trained(config, sources=None, *, at_epoch=lambda epoch: None):
    torch.manual_seed(1)  # of the samples
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    model = build("mlp", seed=config["seed"], widths=(4, 8, 3))

    def follow(epoch, model):
        at_epoch(epoch)
        return [epoch, float(model[-1].weight.detach().abs().sum())]

    history, curve = train(model, x, y, config=TrainConfig(epochs=EPOCHS, batch_size=8), follow=follow)
    return {"weights": float(model[-1].weight.detach().double().sum()), "curve": curve, "loss": history.epochs[-1].loss}


def study(run, seeds=3):
    configs = [{"seed": seed} for seed in range(seeds)]
    reduction = dict.fromkeys(("smoke", "cpu"), "-")
    return Study("trained", "-", "-", (), lambda scale: configs, run, lambda r: [], lambda r: Figure(), reduction)


def killed_at(fatal, seen):
    def at_epoch(epoch):
        seen.append(epoch)
        if epoch == fatal:
            raise Killed

    return lambda config, sources: trained(config, at_epoch=at_epoch)


def test_a_run_killed_in_its_training_goes_on_within_it_to_the_same_bits(tmp_path):
    whole = reproduce(study(trained), tmp_path / "whole")
    seen = []
    with pytest.raises(Killed):
        reproduce(study(killed_at(4, seen)), tmp_path / "killed")
    (part,) = (tmp_path / "killed" / "trained" / "runs").iterdir()
    assert part.suffix == ".part" and 0.5 < share(part) < 1
    resumed = reproduce(study(killed_at(None, seen)), tmp_path / "killed")
    assert [r["result"] for r in resumed["runs"]] == [r["result"] for r in whole["runs"]]
    assert seen == [0, 1, 2, 3, 4, 4, 5, *range(EPOCHS), *range(EPOCHS)]  # the epoch cut short, and no other, again
    assert not list((tmp_path / "killed").rglob("*.part"))


def test_seconds_of_a_resumed_run_count_what_was_done_before(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        reproduce(study(killed_at(5, []), seeds=1), tmp_path)
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    rows = [json.loads(line) | {"seconds": 100.0} for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    resumed = reproduce(study(trained, seeds=1), tmp_path)
    assert resumed["seconds"] == pytest.approx(100 * len(rows), abs=50) and len(rows) == 5


def test_what_a_failed_run_had_kept_is_thrown_away(tmp_path):
    """It would fail again from there, at every call."""

    def failing(config, sources):
        trained(config)
        raise ValueError("after its training")

    found = reproduce(study(failing, seeds=1), tmp_path)
    assert "after its training" in found["runs"][0]["error"]
    assert not list(tmp_path.rglob("*.part"))
    (tmp_path / "trained" / "runs" / "x").mkdir()
    assert reproduce(study(trained, seeds=1), tmp_path)["missing"] == 0


def test_a_run_that_ran_out_of_memory_goes_on_from_what_it_had_kept(tmp_path):
    seen = []

    def exhausted(config, sources):
        def at_epoch(epoch):
            seen.append(epoch)
            if seen == [0, 1, 2, 3]:
                raise MemoryError

        return trained(config, at_epoch=at_epoch)

    assert "MemoryError" in reproduce(study(exhausted, seeds=1), tmp_path)["runs"][0]["error"]
    assert reproduce(study(exhausted, seeds=1), tmp_path)["missing"] == 0
    assert seen == [0, 1, 2, 3, 3, 4, 5]


def test_a_damaged_checkpoint_costs_the_run_and_no_more(tmp_path):
    with pytest.raises(Killed):
        reproduce(study(killed_at(3, []), seeds=1), tmp_path)
    (state,) = tmp_path.rglob("state.pt")
    state.write_bytes(b"damaged")
    assert "cannot go on from" in reproduce(study(trained, seeds=1), tmp_path)["runs"][0]["error"]
    assert reproduce(study(trained, seeds=1), tmp_path)["missing"] == 0


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE", 0.0)
    store = RunStore(tmp_path, study(trained))
    with claimed(under_way(store.file({"seed": 1}))):
        found = reproduce(study(trained), tmp_path)
    assert found["missing"] == 1 and [r["config"]["seed"] for r in found["runs"]] == [0, 2]
    assert reproduce(study(trained), tmp_path)["missing"] == 0


def test_a_run_that_another_process_finished_meanwhile_is_not_done_again(tmp_path):
    store, config = RunStore(tmp_path, study(trained)), {"seed": 0}
    store.open()
    work = Work(config, {}, store.file(config))
    first = attempt(trained, work)
    store.put(config, first)
    assert attempt(trained, work) is None
    assert not list(tmp_path.rglob("*.part"))


SLOW = """
import os, time
from pathlib import Path
from matplotlib.figure import Figure
from flatminima.studies import Study

def run(config, sources):
    with open(Path(__file__).with_name("log"), "a") as log:
        log.write(f"{config['x']} {os.getpid()}\\n")
    time.sleep(0.1)
    return {"x": config["x"]}

configs = [{"x": x} for x in range(16)]
STUDY = Study("slow", "-", "-", (), lambda scale: configs, run, lambda r: [], lambda r: Figure(), {"smoke": "-"})
"""


@pytest.mark.slow
def test_two_commands_at_once_share_the_work(tmp_path):
    file = tmp_path / "slow_study.py"
    file.write_text(SLOW)
    command = ["study", str(file), "--output", str(tmp_path / "out"), "--json"]
    both = [processes.start(*command, stderr=tmp_path / name) for name in "ab"]
    for process in both:
        process.join(300)
    said = [(tmp_path / name).read_text() for name in "ab"]
    assert {p.exitcode for p in both} <= {0, 1}, said  # 1: the last runs were still the other's
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(x) for x, _ in done) == list(range(16))
    assert len({process for _, process in done}) == 2
    assert processes.run(*command, stdout=tmp_path / "last") == 0
    assert json.loads((tmp_path / "last").read_text())[0]["missing"] == 0


def test_a_clone_goes_on_from_results_that_are_committed_without_their_runs(tmp_path):
    calls = []

    def counted(config, sources):
        calls.append(config["seed"])
        return trained(config)

    first = reproduce(study(counted, seeds=2), tmp_path)
    runs = tmp_path / "trained" / "runs"
    for file in runs.iterdir():
        file.unlink()
    runs.rmdir()
    again = reproduce(study(counted, seeds=3), tmp_path)
    assert calls == [0, 1, 2] and again["runs"][:2] == first["runs"]


def test_an_upgrade_goes_on_from_the_runs_of_a_release_that_computes_alike(tmp_path, monkeypatch):
    """A run takes hours, and the next release computes it the same."""
    calls = []

    def counted(config, sources):
        calls.append(config["seed"])
        return trained(config)

    reproduce(study(counted, seeds=1), tmp_path)
    later = versions() | {"flatminima": "99.1.0"}
    monkeypatch.setattr(releases, "versions", lambda: later)
    reproduce(study(counted, seeds=1), tmp_path)  # from its file
    for file in (tmp_path / "trained" / "runs").iterdir():
        file.unlink()
    reproduce(study(counted, seeds=1), tmp_path)  # from results.json
    assert calls == [0]
    monkeypatch.setattr(releases, "SINCE", "99.0.0")
    reproduce(study(counted, seeds=1), tmp_path)
    assert calls == [0, 0]


_RELEASES = [{"flatminima": "0.0.1"}, versions() | {"flatminima": "99.0.0"}, versions() | {"torch": "2.0.0"}, {}]


@pytest.mark.parametrize("change", [*({"versions": each} for each in _RELEASES), {"runs": 3}, None])
def test_results_of_other_versions_or_damaged_ones_are_not_gone_on_from(tmp_path, change):
    calls = []

    def counted(config, sources):
        calls.append(config["seed"])
        return trained(config)

    document = reproduce(study(counted, seeds=1), tmp_path)
    for file in (tmp_path / "trained" / "runs").iterdir():
        file.unlink()
    text = "{" if change is None else json.dumps(document | change)
    (tmp_path / "trained" / "results.json").write_text(text)
    reproduce(study(counted, seeds=1), tmp_path)
    assert calls == [0, 0]


def test_progress_counts_parts_of_runs_and_ends_whole(tmp_path):
    told = []
    with progress.listening(lambda task, done, total: told.append((task, done, total))):
        reproduce(study(trained, seeds=2), tmp_path)
    shares = [done for task, done, total in told if task == "trained" and total == 2]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 2
    assert any(math.isclose(done, 1 / EPOCHS) for done in shares)
    assert any(math.isclose(done, 1 + 3 / EPOCHS) for done in shares)


def test_outside_of_a_run_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained({"seed": 0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("jia-batch", {"seed": 0}),
        ("jia-regularizer", {"beta": 10.0}),
        ("neyshabur-confusion", {"seed": 0}),
        ("wang-mnist-batch", {"seed": 0, "target_loss": None}),
        ("wang-pertopt", {"method": "PertOPT"}),
        ("wang-pertopt", {"method": "dropout"}),
    ],
)
def test_runs_of_the_papers_studies_go_on_too(tmp_path, monkeypatch, name, chosen):
    """Also optimizers with a state of their own, plateaus, dropout, and the curves of figures."""
    config = next(c for c in STUDIES[name].list_runs("smoke") if chosen.items() <= c.items())
    run, sources = STUDIES[name].run, {"digits": "digits"}
    whole = run(config, sources)
    real, calls = resumable.Training.state_dict, []

    def dying(training):
        calls.append(training.steps)
        if len(calls) == 3:
            raise Killed
        return real(training)

    with monkeypatch.context() as patch, keeping(tmp_path), pytest.raises(Killed):
        patch.setattr(resumable.Training, "state_dict", dying)
        run(config, sources)
    with keeping(tmp_path):
        assert run(config, sources) == whole
