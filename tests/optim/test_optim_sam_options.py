"""What SAM's users ask for: fewer ascents, schedules, chosen parameters, the rise of the loss."""

from __future__ import annotations

import warnings

import numpy as np
import optim_oracle as oracle
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import UsageError
from flatminima.optim import SAM, PertOPT
from flatminima.optim.diagnostics import PerturbationWarning


def looksam(w, opt, steps, rho, every, alpha):
    """Liu et al. 2022, Algorithm 1, in NumPy."""
    x, y = oracle.data()
    for t, (xb, yb) in enumerate(oracle.batches(x, y, steps)):
        g = oracle.loss_and_gradient(w, xb, yb)[1]
        if t % every == 0:
            gs = oracle.loss_and_gradient(w + rho * g / np.linalg.norm(g), xb, yb)[1]
            cosine = g @ gs / np.linalg.norm(g) / np.linalg.norm(gs)
            gv = gs - np.linalg.norm(gs) * cosine * g / np.linalg.norm(g)
        else:
            gs = g + alpha * np.linalg.norm(g) / np.linalg.norm(gv) * gv
        w = opt(w, gs)
    return w


def closure_of(model, opt, x, y, calls=None):
    def closure():
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        if calls is not None:
            calls.append(float(loss.detach()))
        return loss

    return closure


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("by_hand", [False, True])
def test_reuse_equals_looksam(alpha, by_hand):
    """Would catch g_v along g, a norm per tensor, an ascent in the wrong step, a stale direction."""
    model = oracle.network(oracle.start())
    opt = SAM(torch.optim.SGD(model.parameters(), 0.2, momentum=0.9), rho=0.3, every=3, reuse=alpha)
    passes = []
    for x, y in oracle.torch_batches(20):
        if by_hand:
            opt.zero_grad()
            cross_entropy(model(x), y).backward()
            if opt.due:
                with opt.perturbed():
                    cross_entropy(model(x), y).backward()
            opt.step()
        else:
            opt.step(closure_of(model, opt, x, y, passes))
    truth = looksam(oracle.start(), oracle.SGD(), 20, 0.3, 3, alpha)
    np.testing.assert_allclose(oracle.weights(model), truth, rtol=1e-10, atol=1e-12)
    assert by_hand or len(passes) == 20 + 7


def test_reuse_goes_on_from_a_checkpoint():
    """Between two ascents: the direction and the count of steps since."""
    models = [oracle.network(oracle.start()) for _ in range(3)]

    def make(model):
        return SAM(torch.optim.Adam(model.parameters(), 0.05), rho=0.3, every=4, reuse=0.7, steps_per_epoch=3)

    batches = oracle.torch_batches(12)
    whole, first = make(models[0]), make(models[1])
    for x, y in batches:
        whole.step(closure_of(models[0], whole, x, y))
    for x, y in batches[:6]:
        first.step(closure_of(models[1], first, x, y))
    models[2].load_state_dict(models[1].state_dict())
    again = make(models[2])
    again.load_state_dict(first.state_dict())
    assert again.epoch == 3
    for x, y in batches[6:]:
        again.step(closure_of(models[2], again, x, y))
    assert (oracle.weights(models[0]) == oracle.weights(models[2])).all()


@pytest.mark.parametrize("adaptive", [True, "matrices"])
def test_eta_and_the_choice_of_parameters(adaptive):
    """Kwon et al.'s code: T = |w| + eta of weights, 1 of biases. e = rho T^2 g / ||T g||."""
    model = oracle.network(oracle.start())
    opt = SAM(torch.optim.SGD(model.parameters(), 0.2), rho=0.3, adaptive=adaptive, eta=0.01)
    w = oracle.start()
    shapes = [np.full(int(np.prod(s)), len(s)) for s in oracle.SHAPES]
    matrices = np.concatenate(shapes) == 2
    x, y = oracle.data()
    for (xt, yt), (xb, yb) in zip(oracle.torch_batches(9), oracle.batches(x, y, 9), strict=True):
        opt.step(closure_of(model, opt, xt, yt))
        g = oracle.loss_and_gradient(w, xb, yb)[1]
        t = np.where(matrices | (adaptive is True), np.abs(w) + 0.01, 1.0)
        e = 0.3 * t * t * g / np.linalg.norm(t * g)
        w = w - 0.2 * oracle.loss_and_gradient(w + e, xb, yb)[1]
    np.testing.assert_allclose(oracle.weights(model), w, rtol=1e-10, atol=1e-12)


def test_schedule_and_start_epoch():
    """Before it exactly the base, one pass; then rho times the schedule's factor of the epoch."""
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    opt = SAM(torch.optim.SGD([w], 0.0), rho=1.0, start_epoch=2, schedule=lambda e: e / 4, steps_per_epoch=2)
    radii, calls = [], []

    def closure():
        calls.append(w.detach().clone())
        opt.zero_grad()
        loss = (w @ w) / 2
        loss.backward()
        return loss

    for _ in range(6):
        before = len(calls)
        opt.step(closure)
        radii.append(float((calls[-1] - w.detach()).norm()) if len(calls) - before == 2 else None)
    assert radii[:2] == [None, None]
    assert radii[2:] == pytest.approx([0.5, 0.5, 0.75, 0.75])


def test_the_rise_of_the_loss_costs_no_pass():
    model = oracle.network(oracle.start())
    opt = SAM(torch.optim.SGD(model.parameters(), 0.2), rho=0.3)
    x, y = oracle.torch_batches(1)[0]
    assert opt.last is None
    calls = []
    opt.step(closure_of(model, opt, x, y, calls))
    assert len(calls) == 2 and opt.last.loss == calls[0] and opt.last.rise == pytest.approx(calls[1] - calls[0])
    assert opt.last.rise > 0


@pytest.mark.parametrize("every", [1, 3])
def test_maximising_minus_f_is_minimising_f(every):
    found = []
    for maximize in (False, True):
        w = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
        opt = SAM(torch.optim.SGD([w], 0.05, maximize=maximize), rho=0.3, every=every, reuse=0.7)

        def closure(w=w, opt=opt, maximize=maximize):
            opt.zero_grad()
            f = (w**4).sum() + w.sum().square()
            loss = -f if maximize else f
            loss.backward()
            return loss

        for _ in range(5):
            opt.step(closure)
        found.append(w.detach())
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"every": 2.5}, {"reuse": -1.0}, {"eta": float("nan")}, {"start_epoch": 0}, {"adaptive": 3}]
)
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(UsageError, match=r"^got "):
        SAM(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), **wrong)


BY_EPOCH = {
    "start_epoch": (lambda b, **k: SAM(b, start_epoch=3, **k), "start_epoch=3"),
    "schedule": (lambda b, **k: SAM(b, schedule=lambda epoch: min(1.0, epoch / 4), **k), "schedule="),
    "a table": (lambda b, **k: SAM(b, schedule=lambda epoch: [0.0, 1.0, 2.0][int(epoch)], **k), "schedule="),
    "anneal": (lambda b, **k: PertOPT(b, beta2=10.0, anneal=lambda epoch: 1 / epoch, **k), "anneal="),
}


@pytest.mark.parametrize("kind", BY_EPOCH)
@pytest.mark.parametrize("told", ["never", "set", "counted"])
def test_what_goes_by_the_epoch_needs_to_be_told(kind, told):
    make, given = BY_EPOCH[kind]
    model = oracle.network(oracle.start())
    opt = make(torch.optim.SGD(model.parameters(), 0.1), **({"steps_per_epoch": 2} if told == "counted" else {}))
    if told == "set":
        opt.epoch = 1.0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for x, y in oracle.torch_batches(2):
            opt.step(closure_of(model, opt, x, y))
    messages = [str(w.message) for w in seen if issubclass(w.category, PerturbationWarning)]
    assert len(messages) == (told == "never")
    assert all(f"every epoch for the first, and {given} goes by it" in m for m in messages)


def test_a_schedule_of_one_number_needs_no_epoch():
    model = oracle.network(oracle.start())
    opt = SAM(torch.optim.SGD(model.parameters(), 0.1), schedule=lambda epoch: 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in oracle.torch_batches(2):
            opt.step(closure_of(model, opt, x, y))
    assert opt.epoch == 1
