"""Wrappers under groups, dtypes, scalers, accumulated batches and autocast: PertOPT and SAM over the same table."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from wrapped import (
    BASES,
    RADII,
    TWO_PASSES,
    WRAPPERS,
    both,
    by_hand,
    closure,
    network,
    same,
    samples,
    train,
    with_a_key,
)

from flatminima.errors import UsageError
from flatminima.optim import SAM, PertOPT

pytestmark = pytest.mark.slow


@with_a_key
def test_groups_have_hyper_parameters_of_their_own(kind):
    """Base groups carry them; add_param_group takes them; a group of strength 0 stays where it is."""
    key, value = RADII[kind]
    quiet = {key: 0.0, "pert_eps": 0.0} if kind == "pertopt" else {key: 0.0}
    model = network()
    base = torch.optim.Adam(
        [{"params": model[0].parameters(), key: 0.5}, {"params": model[1].parameters(), **quiet}], 1e-2
    )
    opt = WRAPPERS[kind](base)
    opt.add_param_group({"params": model[3].parameters(), "lr": 1e-3})
    assert [g[key] for g in opt.param_groups] == [0.5, 0.0, value]
    assert all(g["eps"] == 1e-8 for g in opt.param_groups), "Adam's own eps is another thing"
    train(model, opt, range(2))
    before = copy.deepcopy(model.state_dict())
    x, y = samples(3)
    if kind in TWO_PASSES:
        cross_entropy(model(x), y).backward()
    with opt.perturbed():
        moved = [not torch.equal(model[i].weight, before[f"{i}.weight"]) for i in (0, 1, 3)]
    assert moved == [True, False, True]
    base.add_param_group({"params": [nn.Parameter(torch.ones(2))]})  # behind its back
    train(model, opt, [4])
    assert key in opt.param_groups[-1]
    with pytest.raises(UsageError, match=f"got {key}=-1"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], key: -1.0})


def test_a_group_may_be_left_out_of_the_noise():
    """perturb=False, for norm layers: no noise, no memory."""
    model = network()
    groups = [
        {"params": model[1].parameters(), "perturb": False},
        {"params": [*model[0].parameters(), *model[3].parameters()]},
    ]
    opt = PertOPT(torch.optim.SGD(groups, 0.1), gamma=0.3)
    train(model, opt, range(3))
    assert model[1].weight not in opt._curvature.live and model[0].weight in opt._curvature.live
    before = model[1].weight.detach().clone()
    with opt.perturbed():
        assert torch.equal(model[1].weight, before)


@both
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(kind, set_to_none):
    a, b = network(), network()
    first, second = (WRAPPERS[kind](BASES["sgd"](m.parameters())) for m in (a, b))
    for t in range(4):
        train(a, first, [t])
        by_hand(kind, b, second, *samples(t))
        second.step()
        second.zero_grad(set_to_none=set_to_none)
        assert all((p.grad is None) if set_to_none else not p.grad.any() for p in b.parameters())
    assert same(a, b)


@both
def test_hooks_fire_once_each(kind):
    model = network()
    opt = WRAPPERS[kind](BASES["adam"](model.parameters()))
    seen = []
    opt.register_step_pre_hook(lambda o, a, k: seen.append(("pre", o)))
    opt.register_step_post_hook(lambda o, a, k: seen.append(("post", o)))
    opt.base.register_step_pre_hook(lambda o, a, k: seen.append(("base", o)))
    opt.register_state_dict_pre_hook(lambda o: seen.append(("save", o)))
    opt.register_state_dict_post_hook(lambda o, d: {**d, "note": 1})
    opt.register_load_state_dict_pre_hook(lambda o, d: seen.append(("load", o)))
    opt.register_load_state_dict_post_hook(lambda o: seen.append(("loaded", o)))
    train(model, opt, [0])
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    assert saved["note"] == 1
    assert [name for name, _ in seen] == ["pre", "base", "post", "save", "load", "loaded"]
    assert all(o is (opt.base if name == "base" else opt) for name, o in seen)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_train_and_resume(kind, dtype):
    """State in float32 at least (g^2 underflows in half precision), and not cast down by loading."""
    through, first, second = (network(dtype) for _ in range(3))

    def make(m):
        return WRAPPERS[kind](torch.optim.SGD(m.parameters(), 0.05, momentum=0.9))

    train(through, make(through), range(8), dtype)
    opt = make(first)
    train(first, opt, range(4), dtype)
    second.load_state_dict(first.state_dict())
    again = make(second)
    again.load_state_dict(opt.state_dict())
    train(second, again, range(4, 8), dtype)
    assert same(through, second)
    assert all(torch.isfinite(p).all() for p in second.parameters())
    if kind == "pertopt":
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert all(held["h"].dtype == expected for held in again._curvature.live.values())


def test_a_bases_float32_state_of_bfloat16_weights_survives_loading():
    class Master(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    master = self.state[p].setdefault("master", p.detach().float())
                    p.copy_(master.sub_(0.01 * p.grad.float()))

    model = network(torch.bfloat16)
    opt = SAM(Master(model.parameters(), 0.1))
    train(model, opt, range(3), torch.bfloat16)
    again = SAM(Master(model.parameters(), 0.1))
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    for p in model.parameters():
        assert again.state[p]["master"].dtype == torch.float32
        assert torch.equal(again.state[p]["master"], opt.state[p]["master"])


@both
def test_sparse_gradients_are_refused(kind):
    embedding = nn.Embedding(5, 3, sparse=True)
    opt = WRAPPERS[kind](torch.optim.SGD(embedding.parameters(), 0.1))

    def run():
        opt.zero_grad()
        loss = embedding(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(UsageError, match="sparse=False"):
        opt.step(run)


@both
def test_bases_and_parameters_that_do_not_fit_are_refused(kind):
    w = nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([w], 0.1)
    for wrong, says in (
        (torch.optim.LBFGS([w]), "evaluates a closure by itself"),
        (WRAPPERS[kind](base), "plain torch optimizer"),
        ([w], "plain torch optimizer"),
        (torch.optim.SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))], 0.1), "real floating point"),
    ):
        with pytest.raises(UsageError, match=says):
            WRAPPERS[kind](wrong)


@both
def test_scaler_with_clipping_unscales_once(kind):
    """Same as the float32 loop without a scaler; powers of two change no rounding."""
    plain, scaled = network(), network()
    first, second = (WRAPPERS[kind](BASES["adamw"](m.parameters())) for m in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(6):
        x, y = samples(t)
        first.zero_grad(), second.zero_grad()
        by_hand(kind, plain, first, x, y)
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        first.step()
        by_hand(kind, scaled, second, x, y, lambda loss: scaler.scale(loss).backward())
        scaler.unscale_(second)
        assert float(nn.utils.clip_grad_norm_(scaled.parameters(), 0.5)) > 0.5
        scaler.step(second)
        scaler.update()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@both
@pytest.mark.parametrize("base", ["adamw", "fused"])
def test_a_step_that_the_scaler_skips_leaves_no_trace(kind, base):
    """With infinite gradients step() is never called: restoring there would leave the weights noisy for good."""
    clean, skipping = network(), network()
    first, second = (WRAPPERS[kind](BASES[base](m.parameters())) for m in (clean, skipping))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(5):
        x, y = samples(t)
        first.zero_grad()
        by_hand(kind, clean, first, x, y)
        first.step()
        if t == 3:
            before = copy.deepcopy(dict(skipping.named_parameters()))
            statistics = copy.deepcopy(skipping[1].state_dict())
            second.zero_grad()
            by_hand(kind, skipping, second, x, y, lambda loss: scaler.scale(loss * torch.inf).backward())
            scaler.step(second)
            scaler.update()
            assert all(torch.equal(p, before[k]) for k, p in skipping.named_parameters())
            skipping[1].load_state_dict(statistics)
        second.zero_grad()
        by_hand(kind, skipping, second, x, y, lambda loss: scaler.scale(loss).backward())
        scaler.step(second)
        scaler.update()
    for p, q in zip(clean.parameters(), skipping.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        assert torch.isfinite(q).all()


@both
def test_gradient_accumulation_equals_the_whole_batch(kind):
    """Micro-batches of one step share one displacement; without BatchNorm the sum is the whole batch's gradient."""

    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        return model, WRAPPERS[kind](torch.optim.AdamW(model.parameters(), 1e-2))

    (whole, first), (parts, second) = build(), build()
    for t in range(5):
        x, y = samples(t, dtype=torch.float64)
        first.zero_grad(), second.zero_grad()
        by_hand(kind, whole, first, x, y)
        first.step()
        micro = list(zip(x.split(5), y.split(5), strict=True))
        if kind in TWO_PASSES:
            for xi, yi in micro:
                (cross_entropy(parts(xi), yi) / 4).backward()
            with second.perturbed():
                for xi, yi in micro:
                    (cross_entropy(parts(xi), yi) / 4).backward()
        else:
            for xi, yi in micro:
                with second.perturbed():
                    (cross_entropy(parts(xi), yi) / 4).backward()
        second.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@both
def test_autocast_sees_the_displaced_weights(kind):
    """Its cache of casts outlives an in-place change: inside one autocast region a second forward would be stale."""
    model = nn.Linear(6, 3)
    strong = {"sam": {"rho": 5.0}, "pertopt": {"gamma": 1.0, "beta2": 9.0}}.get(kind, {})
    opt = WRAPPERS[kind](torch.optim.SGD(model.parameters(), 0.1), **strong)
    x, y = samples(0)
    train_once = closure(model, opt, 0)
    opt.step(train_once)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        if kind in TWO_PASSES:
            cross_entropy(model(x).float(), y).backward()
        with opt.perturbed():
            there = model(x).detach()
            assert not torch.equal(there, before)
        assert torch.equal(model(x), before)


@both
def test_the_global_random_state_is_left_alone(kind):
    model = network()
    opt = WRAPPERS[kind](BASES["sgd"](model.parameters()))
    state = torch.get_rng_state()
    train(model, opt, range(3))
    assert torch.equal(torch.get_rng_state(), state)


@both
def test_a_deep_copy_is_independent(kind):
    model = network()
    opt = WRAPPERS[kind](BASES["adamw"](model.parameters()))
    train(model, opt, range(3))
    twin, copied = copy.deepcopy((model, opt))
    train(model, opt, range(3, 6))
    train(twin, copied, range(3, 6))
    assert same(model, twin)


@both
def test_channels_last_and_empty_parameters(kind):
    """Memory formats that cannot be flattened without a copy."""
    torch.manual_seed(0)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 3)).double()
        model.register_parameter("nothing", nn.Parameter(torch.empty(0, dtype=torch.float64)))
        model = model.to(memory_format=memory_format)
        opt = WRAPPERS[kind](torch.optim.AdamW(model.parameters(), 1e-2))
        for t in range(4):
            g = torch.Generator().manual_seed(t)
            x = torch.randn(8, 2, 4, 4, generator=g, dtype=torch.float64).to(memory_format=memory_format)
            y = torch.randint(0, 3, (8,), generator=g)

            def run(model=model, opt=opt, x=x, y=y):
                opt.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            opt.step(run)
        results.append([p.detach().clone() for p in model.parameters()])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q.contiguous(), rtol=1e-9, atol=1e-12)
