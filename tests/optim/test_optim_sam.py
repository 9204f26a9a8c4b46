"""SAM and adaptive SAM against the papers' pseudo-code; what the second pass must not touch."""

from __future__ import annotations

import copy

import numpy as np
import optim_oracle as oracle
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import UsageError
from flatminima.optim import SAM


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_fifty_steps_equal_the_papers_pseudo_code(adaptive, base):
    """Would catch: a norm per tensor, T once instead of twice, an update at w + e, a stale first gradient."""
    model = oracle.network(oracle.start())
    if base == "sgd":
        inner, theirs = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9), oracle.SGD()
    else:
        inner, theirs = torch.optim.Adam(model.parameters(), 0.05), oracle.Adam()
    opt = SAM(inner, rho=0.3, adaptive=adaptive)
    for x, y in oracle.torch_batches(50):

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        opt.step(closure)
    expected = oracle.sam(oracle.start(), theirs, 50, 0.3, adaptive)
    np.testing.assert_allclose(oracle.weights(model), expected, rtol=1e-10, atol=1e-12)


def test_groups_share_one_norm_and_have_radii_of_their_own():
    """e_i = rho_i g_i / ||g||, with g over all groups."""
    a, b = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0]))
    opt = SAM(torch.optim.SGD([{"params": [a], "sam_rho": 1.0}, {"params": [b], "sam_rho": 10.0}], 0.1))
    (a * 3 + b * 4).sum().backward()
    with opt.perturbed():
        assert float(a.detach()) == pytest.approx(3 + 1 * 3 / 5) and float(b.detach()) == pytest.approx(4 + 10 * 4 / 5)
        assert a.grad is None and b.grad is None


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_a_useless_first_gradient_displaces_nothing(value):
    """Peers put NaN into the weights."""
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    opt = SAM(torch.optim.SGD([w], 0.1))
    w.grad = torch.tensor([value, value])
    with opt.perturbed():
        assert w.tolist() == [1.0, 2.0]
        w.square().sum().backward()
    opt.step()
    assert w.tolist() == pytest.approx([0.8, 1.6])


def test_a_displacement_needs_gradients():
    opt = SAM(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1))
    with pytest.raises(UsageError, match=r"call backward\(\) before"), opt.perturbed():
        pass
    with pytest.raises(UsageError, match="got sam_rho=nan"):
        SAM(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), rho=float("nan"))


@pytest.mark.parametrize("momentum", [0.1, None], ids=["exponential", "cumulative"])
@pytest.mark.parametrize("given", [True, False], ids=["model given", "model found"])
def test_running_statistics_move_once(momentum, given):
    """As after one ordinary forward pass at w: not twice, not with the displaced weights; the count too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 3))
    plain = copy.deepcopy(model)
    opt = SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.5, model=model if given else None)
    x, y = torch.randn(20, 6), torch.randint(0, 3, (20,))

    def closure():
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        with torch.no_grad():
            for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                p.copy_(q)
            plain(x)
        opt.step(closure)
        for p, q in zip(plain[1].buffers(), model[1].buffers(), strict=True):
            assert torch.equal(p, q)
    opt.zero_grad()
    cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model[1].state_dict())
    with pytest.raises(KeyboardInterrupt), opt.perturbed():
        model(x)
        raise KeyboardInterrupt
    assert all(torch.equal(b, before[k]) for k, b in model[1].named_buffers())
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("plain_between", [0, 1, 2])
def test_a_second_block_in_one_step_is_refused(plain_between, clip):
    """It would displace along the gradient of the first one's block, and clear it: a step of the last micro-batch."""
    model, opt, (x, y) = small_problem()
    before = oracle.weights(model)
    cross_entropy(model(x), y).backward()
    with opt.perturbed():
        cross_entropy(model(x), y).backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for _ in range(plain_between):
        cross_entropy(model(x), y).backward()
    with pytest.raises(UsageError, match="in one step, which would displace along the first"), opt.perturbed():
        raise AssertionError
    assert (oracle.weights(model) == before).all()


@pytest.mark.parametrize("clear", [
    lambda model, opt: opt.zero_grad(), lambda model, opt: opt.zero_grad(set_to_none=False),
    lambda model, opt: model.zero_grad(), lambda model, opt: model.zero_grad(set_to_none=False),
    lambda model, opt: opt.step(),
], ids=["zero_grad", "in place", "the model's", "the model's, in place", "a step"])  # fmt: skip
def test_a_block_after_a_skipped_step_is_not(clear):
    model, opt, (x, y) = small_problem()
    for _ in range(3):
        cross_entropy(model(x), y).backward()
        with opt.perturbed():
            cross_entropy(model(x), y).backward()
        clear(model, opt)
        if clear.__code__.co_names == ("step",):
            opt.zero_grad()
        for _ in range(2):  # micro-batches
            cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def small_problem():
    model = oracle.network(oracle.start())
    return model, SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.1), next(iter(oracle.torch_batches(1)))
