"""The tracker in loops as people write them: every optimizer against a dense matrix, schedules, layouts, full disks."""

import json
import os
import warnings

import pytest
import torch
from torch import nn

from flatminima.errors import WriteFailed
from flatminima.optim import SAM, PertOPT
from flatminima.track import Tracker, TrackerWarning, TrackTable
from flatminima.track.log import Lines

F = nn.functional
DECAY = 0.02


def _data(n=30):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def _step(model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return optimizer.step(closure)


def _hessian(model, x, y):
    model = model.to(torch.float64)
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat):
        parts = [part.view(s) for part, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x.double(),)), y
        )

    return torch.autograd.functional.hessian(loss, flat)


def _adam(state, group):
    t, (beta1, beta2) = float(state["step"]), group["betas"]
    return ((state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]) * (1 - beta1**t)


# optimizer of the parameters; preconditioner of one's state; c of the threshold; L2 penalty
OPTIMIZERS = {
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=DECAY), None, 3.8, DECAY),
    "adam": (lambda p: torch.optim.Adam(p, 0.01), _adam, 38.0, 0.0),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.99), weight_decay=0.1), _adam, 18.0, 0.0),
    "adam with an L2 penalty": (lambda p: torch.optim.Adam(p, 0.01, weight_decay=DECAY), _adam, 38.0, DECAY),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
        lambda state, group: state["square_avg"].sqrt() + group["eps"],
        3.0,
        0.0,
    ),
    "adagrad": (
        lambda p: torch.optim.Adagrad(p, 0.05, lr_decay=0.1),
        lambda state, group: (state["sum"].sqrt() + group["eps"]) * (1 + (float(state["step"]) - 1) * 0.1),
        2.0,
        0.0,
    ),
    "pertopt on adam": (lambda p: PertOPT(torch.optim.Adam(p, 0.01), gamma=0.1), _adam, 38.0, 0.0),
    "sam on momentum": (lambda p: SAM(torch.optim.SGD(p, 0.1, momentum=0.9), rho=0.05), None, 3.8, 0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_preconditioned_eigenvalue_is_that_of_the_dense_matrix(name):
    make, preconditioner, bears, decay = OPTIMIZERS[name]
    model, (x, y) = _net(), _data()
    optimizer = make(list(model.parameters()))
    tracker = Tracker(model, (x, y), optimizer=optimizer, every=3, quantities=["preconditioned"], strict=True)
    for step in range(7):
        tracker.step(step, _step(model, optimizer, x, y))
    base = getattr(optimizer, "base", optimizer)
    group = base.param_groups[0]
    scale = torch.cat(
        [
            torch.ones(p.numel()) if preconditioner is None else preconditioner(base.state[p], group).flatten()
            for p in model.parameters()
        ]
    ).double()
    matrix = _hessian(model, x, y) + decay * torch.eye(len(scale), dtype=torch.float64)
    truth = float(torch.linalg.eigvalsh(matrix / scale.sqrt().outer(scale.sqrt()))[-1])
    row = tracker.rows[-1]
    assert row["step"] == 6 and row["values"]["preconditioned"] == pytest.approx(truth, rel=0.01)
    assert row["threshold"] == pytest.approx(bears / group["lr"])
    assert row["edge"] == pytest.approx(truth * group["lr"] / bears, rel=0.01)


def test_groups_with_rates_of_their_own_and_a_schedule():
    model, (x, y) = _net(), _data()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.4}, {"params": model[2].parameters(), "lr": 0.1}]
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    tracker = Tracker(model, (x, y), optimizer=optimizer, every=1, quantities=["preconditioned"], strict=True)
    for step in range(4):
        row = tracker.step(step, _step(model, optimizer, x, y))
        rate = 0.4 * 0.5 ** (step // 2)
        assert row["lr"] == pytest.approx(rate)
        assert row["thresholds"] == pytest.approx([2 / rate, 8 / rate]) and row["threshold"] == pytest.approx(2 / rate)
        schedule.step()
    share = torch.cat([torch.full((36,), 1.0), torch.full((21,), 0.25)]).double()
    truth = float(torch.linalg.eigvalsh(_hessian(model, x, y) * share.sqrt().outer(share.sqrt()))[-1])
    assert tracker.rows[-1]["values"]["preconditioned"] == pytest.approx(truth, rel=0.01)


def test_images_in_channels_last_with_a_gradient_scaler():
    x, y = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    runs = []
    for track in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        tracker = Tracker(model, (x, y), optimizer=optimizer, every=2, strict=True) if track else None
        for step in range(5):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if tracker is not None:
                tracker.step(step, loss)
        runs.append(model)
    one, two = (model.state_dict() for model in runs)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert runs[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert tracker.rows[-1]["values"]["eigenvalue"] is not None


class TestDisks:
    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_a_full_disk_stops_neither_training_nor_the_other_sinks(self, tmp_path):
        log, seen = tmp_path / "a.jsonl", []
        tracker = Tracker(
            _net(),
            _data(),
            every=1,
            quantities=["distance"],
            log=log,
            sinks=["/dev/full", lambda *row: seen.append(row)],
        )
        there = tracker._log._lines.path
        with pytest.warns(TrackerWarning, match="a sink failed: .*(full|space)"):
            tracker.step(0, 1.0)
        tracker._log._lines.path = type(there)("/dev/full")
        with pytest.warns(TrackerWarning, match="the log failed: "):
            assert tracker.step(1, 1.0) is not None
        tracker._log._lines.path = there
        tracker.step(2, 1.0)  # there is room again: the row that waited is written too
        assert [row["step"] for row in TrackTable.read(log)] == [0, 1, 2]
        assert [step for step, _ in seen] == [0, 1, 2] and len(tracker.table()) == 3

    def test_a_half_written_line_costs_no_other(self, tmp_path, monkeypatch):
        """A write that stops in the middle: what was cut is written again, and both are read as one."""
        import flatminima.track.log as module

        lines, file = Lines(tmp_path / "a.jsonl"), tmp_path / "a.jsonl"
        lines.write('{"step": 0}')

        def stops(path, text):
            with open(path, "a") as out:
                out.write(text[:-4])
            raise WriteFailed("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(module, "append_line", stops)
            with pytest.raises(WriteFailed):
                lines.write('{"step": 1}')
        lines.write('{"step": 2}')
        kept = [line for line in file.read_text().splitlines() if line.endswith("}")]
        assert [json.loads(line)["step"] for line in kept] == [0, 1, 2]

    def test_a_folder_that_cannot_be_written_is_refused_before_training(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(Exception, match=r"cannot write|not a folder|Not a directory"):
            Tracker(_net(), _data(), log=tmp_path / "file" / "a.jsonl")

    def test_closing_and_saving_where_nothing_can_be_written(self, tmp_path):
        tracker = Tracker(_net(), _data(), every=1, quantities=["distance"], log=tmp_path / "a.jsonl")
        (tmp_path / "a.jsonl.state").mkdir()  # in the way
        with pytest.warns(TrackerWarning, match=r"a\.jsonl\.state failed: "):
            tracker.step(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said already
            tracker.close()
        assert len(TrackTable.read(tmp_path / "a.jsonl")) == 1

    @pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", None])
    def test_a_damaged_state_is_said_and_tracking_begins_afresh(self, tmp_path, damage):
        model, log = _net(), tmp_path / "a.jsonl"
        tracker = Tracker(model, _data(), every=1, quantities=["eigenvalue"], log=log)
        tracker.step(0)
        tracker.close()
        state = tmp_path / "a.jsonl.state"
        if damage is None:
            torch.save({"memory": {"layout": [["0.weight", 30]]}, "last": {}}, state)
        else:
            state.write_bytes(damage)
        with pytest.warns(TrackerWarning, match="cannot go on from"):
            again = Tracker(model, _data(), every=1, quantities=["eigenvalue"], log=log)
        again.step(1)
        assert [row["step"] for row in TrackTable.read(log)] == [0, 1]
        assert again.rows[-1]["details"]["eigenvalue"]["fresh"] and again.rows[-1]["values"]["eigenvalue"] is not None


def test_the_time_of_a_slow_sink_is_counted(monkeypatch):
    """A sink is called in the loop: what it costs is part of the overhead that is reported."""
    now = [0.0]
    monkeypatch.setattr("flatminima.track.tracker.time.perf_counter", lambda: now[0])

    def slow(step, values):
        now[0] += 5.0

    tracker = Tracker(_net(), _data(), every=1, quantities=["distance"], sinks=slow)
    tracker.step(0)
    now[0] += 10.0
    assert tracker.seconds == pytest.approx(5.0) and tracker.overhead == pytest.approx(0.5)


@pytest.mark.parametrize("wrap", [lambda base: base, SAM, PertOPT], ids=["plain", "sam", "pertopt"])
def test_an_optimizer_that_chooses_its_rate_has_rows_all_the_same(wrap):
    """transformers' Adafactor has lr=None by default; every row of the run was missing."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(32, 6), torch.arange(32) % 3
    base = torch.optim.Adafactor(model.parameters())
    base.param_groups[0]["lr"] = None
    tracker = Tracker(model, (x, y), optimizer=wrap(base), every=1, quantities=["gradient_norm"], strict=True)
    for step in range(3):
        tracker.step(step, 1.0)
    assert [row["lr"] for row in tracker.table()] == [None] * 3
