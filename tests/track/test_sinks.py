"""Sinks: the real library where it installs beside a CPU torch, a recorder of its calls elsewhere."""

import json

import pytest

from flatminima.errors import UsageError
from flatminima.track.sinks import as_sink, as_sinks

ROW = (4, {"eigenvalue": 2.5, "loss": 0.1})


class Run:
    """What W&B's and trackio's runs and modules have."""

    def __init__(self):
        self.calls = []

    def log(self, values, step=None):
        self.calls.append((step, values))


class Client:
    """What the mlflow module, and Lightning's loggers, have."""

    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, metrics))


@pytest.mark.parametrize("kind", [Run, Client])
def test_trackers_get_prefixed_numbers_with_their_step(kind):
    target = kind()
    as_sink(target)(*ROW)
    assert target.calls == [(4, {"flatminima/eigenvalue": 2.5, "flatminima/loss": 0.1})]


def test_a_file_and_a_function(tmp_path):
    seen = []
    for sink in as_sinks([tmp_path / "a.jsonl", lambda step, values: seen.append((step, values))]):
        sink(*ROW)
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"step": 4, "eigenvalue": 2.5, "loss": 0.1}
    assert seen == [ROW]


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        as_sink(writer)(*ROW)
    found = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = found.Scalars("flatminima/eigenvalue")
    assert (scalar.step, scalar.value) == (4, 2.5)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_real_library_where_it_is_installed(name, tmp_path, monkeypatch):
    """Offline, into a folder; none of them is a dependency."""
    library = pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    if name == "wandb":
        run = library.init(mode="offline", dir=str(tmp_path), project="test")
        as_sink(run)(*ROW)
        assert run.summary["flatminima/eigenvalue"] == 2.5
        run.finish()
    elif name == "mlflow":
        library.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
        with library.start_run() as run:
            as_sink(library)(*ROW)
        assert library.get_run(run.info.run_id).data.metrics["flatminima/eigenvalue"] == 2.5
    else:
        library.init(project="test")
        as_sink(library)(*ROW)
        library.finish()


def test_one_or_several_and_none_of_them():
    run = Run()
    assert len(as_sinks(run)) == 1 and len(as_sinks([run, print])) == 2 and as_sinks(None) == []
    with pytest.raises(UsageError, match="got a sink of type int"):
        as_sinks([3])
