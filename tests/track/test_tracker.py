"""The tracker in a loop: the same weights bit for bit, right numbers, faults that do not stop training."""

import copy
import json
import math
import warnings

import pytest
import torch
from torch import nn

from flatminima import Minimum, measures
from flatminima.errors import UnknownName, UsageError
from flatminima.optim import SAM, PertOPT
from flatminima.track import Options, Tracker, TrackerWarning, TrackTable, usual
from simulated_device import SimulatedDevice

F = nn.functional
EVERYTHING = usual(4) | {"gauss_newton": 4, "update_sharpness": 4, "noise_scale": 8, "fisher_trace": 8}


def _data(n=48, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


class Net(nn.Module):
    """BatchNorm, dropout and a buffer that counts: what a careless look would change."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))


def _net(seed=0):
    torch.manual_seed(seed)
    return Net()


def _train(model, optimizer, tracker=None, steps=9, around=lambda: warnings.catch_warnings(), forward=None):
    x, y = _data()
    torch.manual_seed(5)
    for step in range(steps):
        rows = torch.randint(0, len(x), (16,))
        with around():
            optimizer.zero_grad()
            loss = F.cross_entropy((forward or model)(x[rows]).float(), y[rows])
            loss.backward()
            optimizer.step()
        if tracker is not None:
            tracker.step(step, loss)
    return model.state_dict() | {"random": torch.get_rng_state(), "rest": torch.rand(3)}


def _same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_weights_buffers_and_random_state_are_those_of_a_run_without(name):
    plain, tracked = _net(), _net()
    expected = _train(plain, MAKERS[name](plain.parameters()))
    optimizer = MAKERS[name](tracked.parameters())
    tracker = Tracker(tracked, _data(), optimizer=optimizer, every=4, quantities=EVERYTHING, strict=True)
    assert _same(_train(tracked, optimizer, tracker), expected)
    assert tracked.training and [row["step"] for row in tracker.table()] == [0, 4, 8]
    for row in tracker.table()[1:]:
        assert not row["undefined"].keys() - {"critical_sharpness", "update_sharpness"}, row["undefined"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_another_precision(dtype):
    x, y = _data()
    runs = []
    for track in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = Tracker(model, (x.to(dtype), y), optimizer=optimizer, every=4) if track else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrackerWarning)
            runs.append(_train(model, optimizer, tracker, forward=lambda x, m=model: m(x.to(dtype))))
    assert _same(*runs)
    assert tracker.table()[-1]["values"]["eigenvalue"] is not None


def test_under_autocast_accumulation_and_within_the_blocks_of_a_loop():
    """A step in the middle of accumulated gradients, inside autocast and no_grad."""
    runs = []
    for track in (False, True):
        model = _net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = Tracker(model, _data(), optimizer=optimizer, every=1, strict=True) if track else None
        x, y = _data()
        torch.manual_seed(5)
        for step in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                if tracker is not None:
                    with torch.no_grad():
                        tracker.step(step, loss)
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        runs.append(model.state_dict())
    assert _same(*runs)


@pytest.mark.slow
def test_a_compiled_model():
    runs, graphs = [], []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    for track in (False, True):
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        model.load_state_dict(
            {k: torch.linspace(-1, 1, v.numel()).view(v.shape) for k, v in model.state_dict().items()}
        )
        compiled = torch.compile(model, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = Tracker(compiled, _data(), optimizer=optimizer, every=2, strict=True) if track else None
        before = len(graphs)
        runs.append(_train(model, optimizer, tracker, forward=compiled))
        assert len(graphs) == before + 1, "the tracker makes dynamo compile again"
    assert _same(*runs)


@pytest.mark.parametrize("wrap", [lambda base: PertOPT(base, gamma=0.5), lambda base: SAM(base, rho=0.1)])
def test_our_own_optimizers_and_what_they_know(wrap):
    x, y = _data()
    runs = []
    for track in (False, True):
        model = _net().eval()
        optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
        tracker = Tracker(model, (x, y), optimizer=optimizer, every=2, strict=True) if track else None

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for step in range(5):
            loss = optimizer.step(closure)
            if tracker is not None:
                tracker.step(step, loss)
        runs.append(model.state_dict())
    assert _same(*runs)
    found = tracker.table()[-1]["values"]
    if isinstance(optimizer, SAM):
        assert found["sam/rise"] == pytest.approx(optimizer.last.rise) and found["sam/threshold"] < 20
    else:
        known = optimizer.diagnostics()
        assert 0 <= found["pertopt/kappa_bound"] <= 1 and found["pertopt/relative_noise"] > 0
        assert found["pertopt/h"] > 0 and known.step == 5
    assert tracker.table()[-1]["threshold"] == pytest.approx(20.0)


def test_the_numbers_are_those_of_the_measures():
    model, data = _net(), _data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tracker = Tracker(model, data, optimizer=optimizer, every=4, quantities=EVERYTHING, strict=True)
    initial = torch.cat([p.detach().flatten() for p in model.parameters()])
    _train(model, optimizer, tracker, steps=9)
    row = tracker.table()[-1]
    found, stderr = row["values"], row["stderr"]
    minimum = Minimum(copy.deepcopy(model).eval(), data)
    exact = measures.hessian_top_eigenvalue(minimum, samples=None, tolerance=1e-5).value
    gauss_newton = measures.hessian_top_eigenvalue(minimum, samples=None, curvature="gauss_newton").value
    assert found["eigenvalue"] == pytest.approx(exact, rel=0.02)
    assert found["gauss_newton"] == pytest.approx(gauss_newton, rel=0.02)
    assert found["noise_scale"] == pytest.approx(measures.gradient_noise_scale(minimum).value, rel=1e-4)
    assert found["fisher_trace"] == pytest.approx(measures.fisher_trace(minimum).value, rel=1e-4)
    now = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert found["distance"] == pytest.approx(float((now - initial).norm()), rel=1e-4)
    hessian, gradient = _dense(model, data)
    assert found["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert abs(found["trace"] - float(hessian.trace())) < 4 * stderr["trace"]
    p = torch.cat([_adams(optimizer, q).flatten() for q in model.parameters()]).double()
    scaled = hessian / p.sqrt().outer(p.sqrt())
    assert found["preconditioned"] == pytest.approx(float(torch.linalg.eigvalsh(scaled)[-1]), rel=0.02)
    assert row["threshold"] == pytest.approx(3800.0) and row["edge"] == found["preconditioned"] / row["threshold"]


def _adams(optimizer, p):
    state = optimizer.state[p]
    t = float(state["step"])
    return ((state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8) * (1 - 0.9**t)


def _dense(model, data):
    """Hessian and gradient of the mean loss in float64, of a copy in eval mode."""
    x, y = data
    model = copy.deepcopy(model).double().eval()
    names = [n for n, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        state = dict(zip(names, parts, strict=True)) | dict(model.named_buffers())
        return F.cross_entropy(torch.func.functional_call(model, state, (x.double(),)), y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, flat), torch.autograd.functional.jacobian(loss, flat)


@pytest.mark.slow
def test_traces_are_unbiased_and_their_errors_are_honest():
    """Twenty looks at the same weights: the mean is the trace, and the spread is what is said."""
    model, data = _net(), _data()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    hessian, _ = _dense(model, data)
    seen = []
    for seed in range(20):
        tracker = Tracker(model, data, every=1, quantities=["eigenvalue", "trace"], options=Options(seed=seed, cap=4))
        for step in range(2):
            tracker.step(step)
        seen.append((tracker.rows[-1]["values"]["trace"], tracker.rows[-1]["stderr"]["trace"]))
    values, errors = torch.tensor(seen).T
    assert abs(float(values.mean()) - float(hessian.trace())) < 4 * float(values.std()) / math.sqrt(20)
    assert 0.5 < float(errors.square().mean().sqrt() / values.std()) < 2


def test_the_log_survives_and_goes_on(tmp_path):
    """Every row is in the file when step() returns; a second process goes on with the carried vector."""
    log = tmp_path / "runs" / "a.jsonl"
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = Tracker(model, _data(), optimizer=optimizer, every=2, log=log)
    _train(model, optimizer, tracker, steps=5)
    assert [row["step"] for row in TrackTable.read(log)] == [0, 2, 4]  # nothing was closed: kill -9 loses no row
    tracker.close()
    with log.open("a") as file:
        file.write('{"step": 6, "values": {"eig')  # a line that was cut
    again = Tracker(model, _data(), optimizer=optimizer, every=2, log=log)
    assert [row["step"] for row in again.table()] == [0, 2, 4]
    again.step(6)
    assert (
        not again.rows[-1]["details"]["eigenvalue"]["fresh"]
        and again.rows[-1]["details"]["eigenvalue"]["products"] <= 4
    )
    assert again.rows[-1]["details"]["distance"]["relative"] > 0  # from where the first process began
    again.step(3)  # a run that went back to an earlier checkpoint
    assert [row["step"] for row in again.table()] == [0, 2, 3]
    assert [row["step"] for row in TrackTable.read(log)] == [0, 2, 3]
    with pytest.raises(UsageError, match="is the log of a run with parameters"):
        Tracker(nn.Linear(6, 3), _data(), log=log)


def test_a_checkpoint_of_the_users_carries_the_vector():
    model = _net()
    tracker = Tracker(model, _data(), every=2, quantities=["eigenvalue", "distance"])
    tracker.step(0)
    with torch.no_grad():
        model.last.weight.add_(0.1)
    state = torch.load(_saved(tracker.state_dict()), weights_only=True)
    fresh = Tracker(model, _data(), every=2, quantities=["eigenvalue", "distance"])
    fresh.load_state_dict(state)
    tracker.step(2)
    fresh.step(2)
    assert fresh.rows[-1]["values"] == tracker.rows[-1]["values"]
    assert not fresh.rows[-1]["details"]["eigenvalue"]["fresh"]


def _saved(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


class TestFaults:
    def test_frozen_and_added_parameters(self):
        model = _net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = Tracker(model, _data(), optimizer=optimizer, every=1, strict=True)
        tracker.step(0)
        model.first.weight.requires_grad_(False)
        tracker.step(1)
        model.last = nn.Sequential(model.last, nn.Linear(3, 3))
        tracker.step(2)
        assert [row["undefined"].get("eigenvalue") for row in tracker.rows] == [None] * 3
        exact = measures.hessian_top_eigenvalue(Minimum(copy.deepcopy(model).eval(), _data()), samples=None).value
        assert tracker.rows[-1]["values"]["eigenvalue"] == pytest.approx(exact, rel=0.02)

    def test_a_model_on_another_device(self):
        model = _net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        tracker = Tracker(model, _data(), optimizer=optimizer, every=2, strict=True)
        here = Tracker(copy.deepcopy(model), _data(), every=2, quantities=["eigenvalue"])
        tracker.step(0)
        here.step(0)
        with SimulatedDevice():
            model.to("mps")
            tracker.step(2)
        here.step(2)
        row = tracker.rows[-1]
        assert row["values"]["eigenvalue"] == pytest.approx(here.rows[-1]["values"]["eigenvalue"], rel=1e-3)
        assert not row["details"]["eigenvalue"]["fresh"]  # the carried direction went along

    def test_a_model_in_another_dtype(self):
        model, (x, y) = _net(), _data()
        tracker = Tracker(model, (x, y), every=1, quantities=["eigenvalue"])
        tracker.step(0)
        model.double()  # the probe does not follow: said once, and training goes on
        with pytest.warns(TrackerWarning, match="cannot take the inputs"):
            tracker.step(1)
        with warnings.catch_warnings(record=True) as again:
            warnings.simplefilter("always")
            tracker.step(2)
        assert again == []
        assert tracker.rows[-1]["values"] == {} and "inputs" in tracker.rows[-1]["undefined"]["eigenvalue"]
        model.float()
        tracker.step(3)
        assert tracker.rows[-1]["values"]["eigenvalue"] is not None

    def test_an_optimizer_that_was_replaced(self):
        model = _net()
        tracker = Tracker(model, _data(), optimizer=torch.optim.SGD(_net().parameters(), lr=0.1), every=1)
        with pytest.warns(TrackerWarning, match="holds none of the model's parameters"):
            tracker.step(0)
        assert tracker.rows[-1]["values"]["eigenvalue"] is not None and tracker.rows[-1]["threshold"] is None
        tracker.optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        tracker.step(1)
        assert tracker.rows[-1]["threshold"] == pytest.approx(4.0)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_and_weights_that_are_not_finite(self, bad):
        model = _net()
        tracker = Tracker(model, _data(), every=1)
        with torch.no_grad():
            model.last.weight[0, 0] = bad
        with pytest.warns(TrackerWarning) as said:
            tracker.step(0, torch.tensor(bad))
        assert any("not finite" in str(w.message) for w in said)
        row = tracker.rows[-1]
        assert row["events"] == ["the training loss is not finite"] and "NaN or Inf" in row["undefined"]["eigenvalue"]
        json.dumps(row, allow_nan=False)

    def test_a_probe_that_is_too_large_is_halved(self, monkeypatch):
        model = _net()
        tracker = Tracker(model, _data(), every=1, quantities=["eigenvalue"], strict=True)
        forward = model.forward

        def small(x):
            if len(x) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(x)

        model.forward = small
        tracker.step(0)
        exact = measures.hessian_top_eigenvalue(Minimum(_net().eval(), _data()), samples=None).value
        assert tracker.rows[-1]["values"]["eigenvalue"] == pytest.approx(exact, rel=0.02)

    def test_an_exception_inside_and_strict(self, monkeypatch):
        from flatminima.track.check import Check

        def broken(*_):
            raise RuntimeError("something of torch")

        monkeypatch.setattr(Check, "trace", broken)
        model = _net()
        tracker = Tracker(model, _data(), every=1)
        with pytest.warns(TrackerWarning, match="trace: RuntimeError: something of torch"):
            tracker.step(0)
        assert tracker.rows[-1]["values"]["trace"] is None and tracker.rows[-1]["values"]["eigenvalue"] is not None
        with pytest.raises(RuntimeError, match="something of torch"):
            Tracker(model, _data(), every=1, strict=True).step(0)
        assert model.training

    def test_a_sink_that_fails_and_a_full_disk(self, tmp_path):
        def sink(step, values):
            raise OSError("the server is away")

        model = _net()
        seen = []
        tracker = Tracker(model, _data(), every=1, quantities=["distance"], sinks=[sink, lambda *row: seen.append(row)])
        with pytest.warns(TrackerWarning, match="a sink failed: OSError: the server is away"):
            tracker.step(0, 1.5)
        assert seen == [(0, {"distance": 0.0, "loss": 1.5})]

    def test_where_warnings_are_errors(self, capsys):
        tracker = Tracker(_net(), _data(), every=1, quantities=["distance"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tracker.step(0, math.nan) is not None
        assert "the training loss is not finite; training goes on" in capsys.readouterr().err

    def test_not_converged_is_no_number(self):
        tracker = Tracker(_net(), _data(), every=1, quantities=["eigenvalue"], options=Options(tolerance=1e-9, cap=2))
        tracker.step(0)
        assert tracker.rows[-1]["values"]["eigenvalue"] is None
        assert "not converged after" in tracker.rows[-1]["undefined"]["eigenvalue"]


def test_options_that_cannot_be_are_refused_before_training():
    model, data = _net(), _data()
    for wrong in ({"every": 0}, {"every": True}, {"quantities": {"trace": 0}}, {"options": Options(tolerance=2.0)}):
        with pytest.raises(UsageError, match="got"):
            Tracker(model, data, **wrong)
    with pytest.raises(UnknownName, match="did you mean 'eigenvalue'"):
        Tracker(model, data, quantities=["eigenvalues"])
    with pytest.raises(UsageError, match="distance"):
        Tracker(model, data, quantities=["distance_from_init"])


def test_steps_between_checks_touch_nothing():
    model = _net()
    tracker = Tracker(model, _data(), every=1000, quantities=["eigenvalue"], strict=True)
    tracker.step(0)
    model.forward = None  # any look would fail
    for step in range(1, 999):
        tracker.step(step, torch.tensor(1.0))
    assert len(tracker.rows) == 1
