"""A training that was interrupted ends with the same bits: in one process, and after kill -9."""

from __future__ import annotations

import json
import signal
import time

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from flatminima.cli.app import app
from flatminima.errors import CheckpointError, UsageError
from flatminima.training import Session, TrainConfig, Training, base_optimizer, method, read_weights
from processes import start

METHODS = {
    "plain": {}, "pertopt": {"gamma": 0.3}, "sam": {"rho": 0.1},
    "fisher_trace": {"beta": 100.0, "sub_batches": 4, "active": 2},
}  # fmt: skip


def samples(n=50):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=g) + torch.eye(3, 4)[y], y


def training(name="plain", *, epochs=3, **more):
    """With dropout, BatchNorm and a random augmentation, so that all three streams matter; 4 steps an epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    chosen = method(
        name, model, base_optimizer("adam", model.parameters(), 0.02), METHODS[name], steps_per_epoch=4
    )  # fmt: skip
    return Training(
        model, *samples(), config=TrainConfig(epochs=epochs, batch_size=14, **({"schedule": "cosine"} | more)),
        augment=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g),
        optimizer=chosen.optimizer, backward=chosen.backward, modules=chosen.modules,
    )  # fmt: skip


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_resuming_after_any_step_ends_with_the_same_bits(name):
    """Also through a file; the later states include epoch ends and the very last step."""
    whole = training(name, average_from=2, average_lr=0.01)
    states = {}
    history = whole.run(on_step=lambda t: states.__setitem__(t.steps, t.state_dict()))
    assert len(states) == whole.total == 12
    for steps, state in states.items():
        again = training(name, average_from=2, average_lr=0.01)
        torch.manual_seed(steps)  # whatever the global state is
        again.load_state_dict(state)
        found = again.run()
        assert same(again.model, whole.model), steps
        assert found.final == history.final and found.steps == 12 and found.stopped_because == "epochs"
        assert [(e.loss, e.error, e.lr) for e in found.epochs] == [(e.loss, e.error, e.lr) for e in history.epochs]


def test_a_plateau_is_resumed_with_what_it_has_seen():
    options = {"epochs": 6, "schedule": "plateau", "patience": 0, "gamma": 0.5}
    whole, states = training(**options), {}
    history = whole.run(on_step=lambda t: states.__setitem__(t.steps, t.state_dict()))
    assert len({epoch.lr for epoch in history.epochs}) > 1
    for steps in (7, 8, 9, 16):
        again = training(**options)
        again.load_state_dict(states[steps])
        again.run()
        assert same(again.model, whole.model), steps
    with pytest.raises(UsageError, match="plateau"):
        training(**options).skip(2)


def test_averaging_is_the_mean_over_epoch_ends_with_statistics_measured_again():
    """By hand, from the states at the ends of epochs; would catch an average that starts an epoch late."""
    run = training(epochs=4, average_from=3)
    ends = []
    run.run(on_epoch=lambda t: ends.append([p.detach().clone() for p in t.model.parameters()]))
    for p, third, fourth in zip(run.model.parameters(), ends[2], ends[3], strict=True):
        torch.testing.assert_close(p.detach(), (third + fourth) / 2)
    x, _ = samples()
    twin = training().model
    twin.load_state_dict(run.model.state_dict())
    hidden = twin[0](x).detach()
    assert float((twin[1].running_mean - hidden.mean(0)).abs().max()) < 0.2
    assert int(twin[1].num_batches_tracked) == 4


def test_the_rate_of_averaged_epochs():
    config = TrainConfig(lr=0.1, epochs=4, schedule="cosine", average_from=3, average_lr=0.05)
    assert [config.rate(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.0853553, 0.05, 0.05])
    for wrong in ({"average_from": 0}, {"average_from": 5, "epochs": 4}, {"average_lr": -1.0}):
        with pytest.raises(UsageError, match="must be"):
            TrainConfig(**wrong)


class Stop(Exception):
    """In place of a kill."""


def stopping(after):
    def at(t):
        if t.steps == after:
            raise Stop

    return at


@pytest.mark.parametrize("after", [1, 5, 8, 11])
def test_a_folder_goes_on_where_it_was_and_its_lines_are_each_there_once(tmp_path, after):
    """Stopped after a step that is not saved any more (save_every is an hour from then on)."""
    whole = Session(tmp_path / "whole", {"a": 1})
    expected = training("pertopt")
    whole.run(expected)
    first = Session(tmp_path / "cut", {"a": 1}, save_every=0)
    with pytest.raises(Stop):
        first.run(training("pertopt"), on_step=stopping(after))
    second = Session(tmp_path / "cut", {"a": 1}, save_every=3600)
    with pytest.raises(Stop):
        second.run(training("pertopt"), on_step=stopping(min(after + 5, 12)))
    found = training("pertopt")
    third = Session(tmp_path / "cut", {"a": 1})
    third.run(found)
    assert same(found.model, expected.model)
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole") and len(third.rows) == 3
    again = training("pertopt")
    seen = []
    Session(tmp_path / "cut", {"a": 1}).run(again, on_step=lambda t: seen.append(1))
    assert same(again.model, expected.model) and not seen, "a finished training is only read again"


def _lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_folders_that_hold_something_else_are_refused(tmp_path):
    Session(tmp_path, {"lr": 0.1, "epochs": 3}).run(training())
    with pytest.raises(UsageError, match=r"holds a training with epochs=3, not 4 \(and 1 more\).*--fresh"):
        Session(tmp_path, {"lr": 0.2, "epochs": 4})
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot go on from .*state\.pt.*--fresh"):
        Session(tmp_path, {"lr": 0.1, "epochs": 3}).run(training())
    Session(tmp_path, {"lr": 0.2}, fresh=True).run(training())
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"cannot read .*run\.json"):
        Session(tmp_path, {"lr": 0.2})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        Session(tmp_path / "file", {})


def _arguments(folder):
    options = {
        "model": "flatminima.models:mlp", "model-arg": "widths=(64,32,10)", "data": "digits", "limit": 400,
        "method": "pertopt", "optimizer": "adamw", "lr": 0.003, "epochs": 6, "batch-size": 8, "seed": 3,
        "save-every": 0.05, "output": folder,
    }  # fmt: skip
    return ["train", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_after_kill_9_the_same_command_ends_with_the_same_bits(tmp_path):
    """Killed wherever in a step or a save the process happens to be after its second line of metrics."""
    process = start(*_arguments(tmp_path / "cut"))
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while process.exitcode is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was over before it could be killed"
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("cut", "whole"):
            assert CliRunner().invoke(app, _arguments(tmp_path / name)).exit_code == 0
    finally:
        torch.set_num_threads(threads)
    a, b = (read_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole") and len(_lines(tmp_path / "cut")) == 6


@pytest.mark.parametrize("change", [{"global": None}, {"global": torch.zeros(3, dtype=torch.uint8)}])
def test_random_states_that_are_none_are_refused_before_a_step(tmp_path, change):
    first = Session(tmp_path, {"a": 1}, save_every=0)
    with pytest.raises(Stop):
        first.run(training("plain"), on_step=stopping(3))
    state = torch.load(tmp_path / "state.pt")
    state["random"] |= change
    if change["global"] is None:
        del state["random"]["global"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="cannot go on from"):
        Session(tmp_path, {"a": 1}).run(training("plain"))
