"""What the optimizers must not do to their host, and what they must take from it: torch, the base, closures, tools."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import UsageError
from flatminima.optim import SAM, PertOPT

WRAPPERS = {"pertopt": lambda b, **k: PertOPT(b, gamma=0.3, **k), "sam": lambda b, **k: SAM(b, rho=0.1, **k)}
both = pytest.mark.parametrize("kind", WRAPPERS)


def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def samples(t=0):
    g = torch.Generator().manual_seed(t)
    return torch.randn(12, 4, generator=g), torch.randint(0, 3, (12,), generator=g)


def closure_of(model, opt, t=0):
    x, y = samples(t)

    def closure():
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@both
def test_nothing_of_torch_is_patched(kind):
    """Neither the class nor the module keeps a trace, also after an exception."""
    names = ("state_dict", "load_state_dict", "train", "__getstate__", "__call__", "__setattr__")
    before = {name: getattr(nn.Module, name) for name in names}
    model = network()
    attributes = {m: set(vars(m)) for m in model.modules()}
    opt = WRAPPERS[kind](torch.optim.SGD(model.parameters(), 0.1))
    for t in range(3):
        opt.step(closure_of(model, opt, t))
    with pytest.raises(KeyboardInterrupt), opt.perturbed():
        model(samples()[0])
        raise KeyboardInterrupt
    assert {name: getattr(nn.Module, name) for name in names} == before
    assert {m: set(vars(m)) for m in model.modules()} == attributes
    for m in model.modules():
        assert not m._state_dict_pre_hooks and not m._load_state_dict_pre_hooks and not m._forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


@both
def test_a_given_model_is_guarded_from_the_first_block_on(kind):
    model = network()
    opt = WRAPPERS[kind](torch.optim.SGD(model.parameters(), 0.1), model=model)
    x, y = samples()
    cross_entropy(model(x), y).backward()
    with opt.perturbed():
        for call in (model.state_dict, model[0].state_dict, lambda: model.load_state_dict({}), lambda: model.eval()(x)):
            with pytest.raises(UsageError, match="perturbed"):
                call()
        with pytest.raises(UsageError, match="perturbed"):
            copy.deepcopy(model)
        model.train()
    model.state_dict(), copy.deepcopy(model), model.eval()(x)


@both
def test_train_and_eval_of_the_base_are_reached_and_refused_inside(kind):
    """Schedule-Free's: they move the weights."""

    class Base(torch.optim.SGD):
        calls: ClassVar = []
        mode = property(lambda self: self.calls[-1])

        def train(self):
            self.calls.append("train")

        def eval(self):
            self.calls.append("eval")

    model = network()
    opt = WRAPPERS[kind](Base(model.parameters(), 0.1))
    opt.base.calls = []
    opt.eval()
    assert opt.base.mode == "eval" and opt.mode == "eval"
    opt.train()
    cross_entropy(model(samples()[0]), samples()[1]).backward()
    with opt.perturbed():
        opt.train()  # loops that call it before every pass: it is in that mode already
        with pytest.raises(UsageError, match=r"eval\(\) while the weights are perturbed"):
            opt.eval()
    assert opt.base.calls == ["eval", "train"]
    plain = WRAPPERS[kind](torch.optim.SGD(model.parameters(), 0.1))
    assert not hasattr(plain, "train") and not hasattr(plain, "_step_supports_amp_scaling")


@both
def test_a_closure_that_skips_its_batch_skips_the_step(kind):
    """It clears the gradients and makes none; the next step is as if it had not been."""
    a, b = network(), network()
    first, second = (WRAPPERS[kind](torch.optim.AdamW(m.parameters(), 1e-2)) for m in (a, b))
    for t in range(5):
        first.step(closure_of(a, first, t))
        second.step(closure_of(b, second, t))
        assert second.step(second.zero_grad) is None
    assert same(a, b)


@both
def test_a_closure_that_does_nothing_leaves_the_blocks_gradients(kind):
    """Lightning's manual optimization gives such closures; peers then step with no gradient at all."""
    a, b = network(), network()
    first, second = (WRAPPERS[kind](torch.optim.AdamW(m.parameters(), 1e-2)) for m in (a, b))
    for t in range(4):
        x, y = samples(t)
        first.step(closure_of(a, first, t))
        second.zero_grad()
        if kind == "sam":
            cross_entropy(b(x), y).backward()
        with second.perturbed():
            cross_entropy(b(x), y).backward()
        second.step(lambda: None)
    assert same(a, b)
    cross_entropy(b(x), y).backward()
    with pytest.raises(UsageError, match="without a perturbed pass"):
        second.step(lambda: None)


@both
def test_gradients_from_outside_of_a_block_are_not_added_to(kind):
    model = network()
    opt = WRAPPERS[kind](torch.optim.SGD(model.parameters(), 0.1))
    x, y = samples()

    def closure():
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    closure()
    with pytest.raises(UsageError, match="outside of a perturbed block"):
        opt.step(closure)
    opt.zero_grad(set_to_none=False)
    opt.step(closure)  # zeros are nothing to be added to


def twice(model, x, y):
    out = model(x)
    (cross_entropy(out, y) / 2).backward(retain_graph=True)
    (cross_entropy(out, y) / 2).backward()


def clipped(model, x, y):
    cross_entropy(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)


@both
@pytest.mark.parametrize("passes", [twice, clipped])
@pytest.mark.parametrize("frozen", [False, True])
def test_whatever_a_closure_does_it_adds_to_no_gradients_from_outside(kind, passes, frozen):
    """Clipping and second passes write a gradient too: a count of writes took them for a clearing in place."""
    model = network()
    if frozen:  # the smallest parameter keeps a gradient that no pass adds to
        model[2].bias.grad = torch.ones(3)
        model[2].bias.requires_grad_(False)
    opt = WRAPPERS[kind](torch.optim.SGD(model.parameters(), 0.1))
    x, y = samples()
    before = [p.detach().clone() for p in model.parameters()]
    passes(model, x, y)
    with pytest.raises(UsageError, match="outside of a perturbed block"):
        opt.step(lambda: passes(model, x, y))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert not any(p._backward_hooks for p in model.parameters())


@both
@pytest.mark.parametrize("passes", [twice, clipped])
@pytest.mark.parametrize("clear", [
    lambda model, opt: opt.zero_grad(), lambda model, opt: opt.zero_grad(set_to_none=False),
    lambda model, opt: model.zero_grad(), lambda model, opt: model.zero_grad(set_to_none=False),
], ids=["zero_grad", "in place", "the model's", "the model's, in place"])  # fmt: skip
def test_gradients_that_a_closure_clears_in_any_way_are_no_addition(kind, passes, clear):
    model, plain = network(), network()
    opt, base = (WRAPPERS[kind](torch.optim.SGD(m.parameters(), 0.1)) for m in (model, plain))
    x, y = samples()
    for _ in range(3):

        def closure(model=model, opt=opt, clear=clear):
            clear(model, opt)
            passes(model, x, y)

        opt.step(closure)
        base.step(lambda: closure(plain, base, lambda m, _: m.zero_grad()))
    assert same(model, plain)


@both
def test_gradients_that_are_added_to_from_some_step_on(kind):
    """A framework may begin to accumulate in a later epoch: the closures before cleared, this one does not."""
    model = network()
    opt = WRAPPERS[kind](torch.optim.SGD(model.parameters(), 0.1))
    x, y = samples()
    for _ in range(2):
        opt.step(closure_of(model, opt))
    clipped(model, x, y)
    opt.step(lambda: clipped(model, x, y))  # nobody looked
    with pytest.raises(UsageError, match="outside of a perturbed block"):
        opt.step(lambda: clipped(model, x, y))


@both
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints_before_the_first_step(kind, flat):
    """A template from a new optimizer, filled from the file: bit for bit, and no noise at t = 0 if it is not filled."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    extra = {"every": 3, "reuse": 0.7} if kind == "sam" else {}

    def make(model):
        return WRAPPERS[kind](torch.optim.AdamW(model.parameters(), 1e-2), **extra)

    a, b = network(), network()
    first, second = make(a), make(b)
    for t in range(4):
        first.step(closure_of(a, first, t))
    saved = copy.deepcopy(get_optimizer_state_dict(a, first, options=options))
    b.load_state_dict(a.state_dict())
    template = get_optimizer_state_dict(b, second, options=options)
    assert {k: type(v) for k, v in template.items()}.keys() == saved.keys()
    if flat:
        assert template.keys() == saved.keys()
    set_optimizer_state_dict(b, second, saved, options=options)
    for t in range(4, 8):
        first.step(closure_of(a, first, t))
        second.step(closure_of(b, second, t))
    assert same(a, b)
    empty = network()
    third = make(empty)
    get_optimizer_state_dict(empty, third)
    before = [p.detach().clone() for p in empty.parameters()]
    if kind == "pertopt":
        with third.perturbed():
            assert all(torch.equal(p, q) for p, q in zip(empty.parameters(), before, strict=True))


def test_h_stays_its_own_where_the_base_begins_to_decay():
    """Adam with weight_decay from the third step on: its moment then holds the penalty."""
    found = []
    for shares in (True, False):
        model = network(64)
        opt = PertOPT(torch.optim.Adam(model.parameters(), 1e-3), gamma=0.0, eps=0.0)
        if not shares:
            opt.param_groups[0]["weight_decay"] = 1e-30
        for t in range(6):
            if t == 3:
                opt.param_groups[0]["weight_decay"] = 0.5
            opt.step(closure_of(model, opt, t))
        found.append([opt._curvature.live[p]["h"] for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("change", ["float64", "channels_last", "both"])
def test_state_follows_the_weights(change, monkeypatch):
    """Large and small tensors; restored bit for bit after every change."""
    monkeypatch.setattr("flatminima.optim.blocks.CACHE", 64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    opt = PertOPT(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), gamma=0.3, beta2=9.0)
    x, y = torch.randn(6, 2, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    for t in range(6):
        if t in (2, 4):
            back = t == 4
            if change in ("float64", "both"):
                model.to(torch.float32 if back else torch.float64)
            if change in ("channels_last", "both"):
                model.to(memory_format=torch.contiguous_format if back else torch.channels_last)
        before = [p.detach().clone() for p in model.parameters()]
        opt.zero_grad()
        with opt.perturbed():
            moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
            assert moved == (t > 0)
            cross_entropy(model(x.to(model[0].weight.dtype)), y).backward()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        opt.step()
        assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for p, held in opt._curvature.live.items():
        assert all(t.dtype == p.dtype for t in held.values())


def test_noise_has_its_place_in_one_stream():
    """A frozen parameter, or one that never had a gradient, moves no other's noise."""
    found = []
    for frozen in (False, True):
        model = network()
        opt = PertOPT(torch.optim.SGD(model.parameters(), 0.1), gamma=0.3, beta2=9.0)
        for _ in range(2):
            opt.zero_grad()
            opt._at.entered = True
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.1)
            opt.step()
        if frozen:
            model[0].weight.requires_grad_(False)
        with opt.perturbed():
            found.append([p.detach().clone() for p in model.parameters()])
    assert not torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_a_checkpoint_of_the_first_version_is_read():
    """Its numbers lay in an entry of their own, its tensors had another mark, and sigma no sign."""
    models = [network() for _ in range(2)]
    opts = [
        PertOPT(torch.optim.SGD(m.parameters(), 0.1), gamma=0.3, beta2=9.0, seed=s)
        for m, s in zip(models, (5, 0), strict=True)
    ]
    for t in range(3):
        opts[0].step(closure_of(models[0], opts[0], t))
    x, y = samples(3)
    with opts[0].perturbed():
        cross_entropy(models[0](x), y).backward()
    saved = opts[0].state_dict()
    numbers = {k.removeprefix("pert_"): v for k, v in saved["param_groups"][0].items() if k in opts[0]._fresh_numbers}
    old = {
        "state": {
            i: {f"flatminima.{k.removeprefix('flatminima_')}": v for k, v in held.items()}
            for i, held in saved["state"].items()
        },
        "param_groups": [
            {k: v for k, v in g.items() if k not in opts[0]._fresh_numbers} for g in saved["param_groups"]
        ],
        "pertopt": numbers | {"squared_distance": torch.tensor(numbers["squared_distance"], dtype=torch.float64)},
    }
    for held in old["state"].values():
        held["flatminima.drift"] = -held["flatminima.drift"]
    models[1].load_state_dict(models[0].state_dict())
    opts[1].load_state_dict(old)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        q.grad = p.grad.clone()
    for model, opt in zip(models, opts, strict=True):
        with opt.perturbed():
            cross_entropy(model(x), y).backward()
        opt.step()
        opt.step(closure_of(model, opt, 4))
    assert same(*models)
