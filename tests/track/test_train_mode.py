"""Train mode: batch statistics of the probe, one dropout mask, against a dense Hessian; nothing of the model moves."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flatminima.errors import DataError, UsageError
from flatminima.track import Options, Tracker

F = nn.functional
TRAIN = Options(mode="train", seed=7, tolerance=1e-3)
NAMES = ["eigenvalue", "preconditioned", "trace", "gradient_norm", "critical_sharpness", "update_sharpness", "distance"]


def _data(n=40):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


class Net(nn.Module):
    """BatchNorm and dropout, and a block that is computed again in the backward pass."""

    def __init__(self, recompute=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.dropout, self.recompute = nn.Dropout(0.3), recompute

    def hidden(self, x):
        return self.dropout(torch.tanh(self.norm(self.first(x))))

    def forward(self, x):
        hidden = checkpoint(self.hidden, x, use_reentrant=False) if self.recompute else self.hidden(x)
        return self.last(hidden)


def _dense(model, x, y, seed=7):
    """Hessian, gradient and loss in float64, of a copy in its modes, with the mask of this seed."""
    model = copy.deepcopy(model).double()
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat):
        parts = [part.view(s) for part, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        state = dict(zip(names, parts, strict=True)) | {k: v.clone() for k, v in model.named_buffers()}
        torch.manual_seed(seed)
        return F.cross_entropy(torch.func.functional_call(model, state, (x.double(),)), y)

    return torch.autograd.functional.hessian(loss, flat), torch.autograd.functional.jacobian(loss, flat)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_numbers_are_those_of_the_network_as_it_trains(frozen):
    model, (x, y) = Net().train(), _data()
    with torch.no_grad():
        model.norm.running_mean += 1.0
        model.norm.running_var *= 4.0
    if frozen:
        model.norm.eval()
    found = {}
    for mode in ("train", "eval"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        names = ["eigenvalue", "gradient_norm"]
        options = Options(mode=mode, seed=7, tolerance=1e-3)
        tracker = Tracker(model, (x, y), optimizer=optimizer, every=1, quantities=names, options=options, strict=True)
        found[mode] = tracker.step(0)["values"]
        assert tracker.header["mode"] == mode and tracker.header["samples"] == 40
        assert tracker.header["loss_function"] == "cross_entropy"
    hessian, gradient = _dense(model, x, y)
    assert found["train"]["eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=2e-3)
    assert found["train"]["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert abs(found["eval"]["eigenvalue"] / found["train"]["eigenvalue"] - 1) > 0.01  # another function


@pytest.mark.parametrize("recompute", [False, True])
def test_weights_running_statistics_modes_and_random_state_are_those_of_a_run_without(recompute):
    x, y = _data()
    runs = []
    for track in (False, True):
        model = Net(recompute).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        tracker = None
        if track:
            tracker = Tracker(model, (x, y), optimizer=optimizer, every=3, quantities=NAMES, options=TRAIN, strict=True)
        torch.manual_seed(3)
        for step in range(7):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if tracker is not None:
                tracker.step(step, loss)
        assert all(m.training for m in model.modules())
        runs.append(model.state_dict() | {"random": torch.rand(2)})
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    last = tracker.rows[-1]
    assert last["values"]["eigenvalue"] is not None and last["edge"] is not None
    hessian, _ = _dense(model, x, y)
    assert last["values"]["eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=2e-2)
    assert abs(last["values"]["trace"] - float(hessian.trace())) < 4 * last["stderr"]["trace"]


def test_dict_probes_and_another_loss():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, features):
            return {"logits": self.net(features), "other": features}

    x, y = _data()
    model = Named().train()
    tracker = Tracker(model, ({"features": x}, y), every=1, quantities=["eigenvalue"], options=TRAIN, strict=True)
    hessian, _ = _dense(model.net, x, y)
    assert tracker.step(0)["values"]["eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=2e-3)


def test_what_has_no_meaning_there_is_refused_before_training():
    model, (x, y) = Net(), _data()
    for name in ("noise_scale", "gauss_newton", "fisher_trace"):
        with pytest.raises(UsageError, match=f"mode='train' and the quantity '{name}'"):
            Tracker(model, (x, y), quantities=["eigenvalue", name], options=TRAIN)
    with pytest.raises(UsageError, match="got mode='both'"):
        Options(mode="both")
    with pytest.raises(DataError, match="out of range"):
        Tracker(model, (x, y + 3), quantities=["eigenvalue"], options=TRAIN)
