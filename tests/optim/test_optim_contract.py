"""What every wrapper owes to whoever knows torch.optim: PertOPT and SAM over the same table."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from wrapped import (
    BASES,
    RADII,
    STRENGTH_0,
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

pytestmark = pytest.mark.slow


@both
@pytest.mark.parametrize("base", BASES)
def test_strength_zero_is_the_base_bit_for_bit(kind, base):
    plain, wrapped = network(), network()
    train(plain, BASES[base](plain.parameters()), range(6))
    train(wrapped, WRAPPERS[kind](BASES[base](wrapped.parameters()), **STRENGTH_0[kind]), range(6))
    assert same(plain, wrapped)
    different = network()
    train(different, WRAPPERS[kind](BASES[base](different.parameters())), range(6))
    assert not same(plain, different)


@both
@pytest.mark.parametrize("base", BASES)
def test_resume_in_the_middle_of_an_epoch_is_bit_exact(kind, base):
    """Through a file, into a fresh process' objects; would catch h, w_{t-1}, step, epoch or a moment left out."""
    through, first = network(), network()
    train(through, WRAPPERS[kind](BASES[base](through.parameters())), range(12))
    opt = WRAPPERS[kind](BASES[base](first.parameters()))
    train(first, opt, range(6))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = network(seed=9)
    second.load_state_dict(saved["model"])
    again = WRAPPERS[kind](BASES[base](second.parameters()))
    again.load_state_dict(saved["opt"])
    train(second, again, range(6, 12))
    assert same(through, second)


def test_resume_with_the_epoch_set_by_hand_and_between_micro_batches():
    """A checkpoint between two micro-batches: the noise of the step is drawn already and must be drawn again alike."""

    def half(opt, model, t):
        x, y = samples(t)
        with opt.perturbed():
            cross_entropy(model(x), y).backward()

    through, first, second = network(), network(), network()
    settings = {"steps_per_epoch": None}
    opts = [WRAPPERS["pertopt"](BASES["momentum"](m.parameters()), **settings) for m in (through, first, second)]
    for model, opt in ((through, opts[0]), (first, opts[1])):
        for t in range(5):
            train(model, opt, [t])
            opt.epoch += 0.5
        half(opt, model, 5)
    second.load_state_dict(first.state_dict())
    opts[2].load_state_dict(opts[1].state_dict())
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        q.grad = p.grad.clone()
    for model, opt in ((through, opts[0]), (second, opts[2])):
        half(opt, model, 6)
        opt.step()
        train(model, opt, range(7, 10))
    assert same(through, second)


@with_a_key
def test_loading_a_checkpoint_of_the_base_starts_ours_afresh(kind):
    model = network()
    base = BASES["adamw"](model.parameters())
    train(model, base, range(3))
    opt = WRAPPERS[kind](BASES["adamw"](model.parameters()))
    opt.load_state_dict(base.state_dict())
    assert torch.equal(opt.state[model[0].weight]["exp_avg"], base.state[model[0].weight]["exp_avg"])
    key, value = RADII[kind]
    assert opt.param_groups[0][key] == value
    train(model, opt, range(3, 6))


@both
def test_groups_and_state_are_the_bases(kind):
    model = network()
    base = BASES["adamw"](model.parameters())
    opt = WRAPPERS[kind](base)
    train(model, opt, range(2))
    assert opt.param_groups is base.param_groups and opt.state is base.state
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups is base.param_groups and opt.state is base.state
    assert isinstance(opt, torch.optim.Optimizer)


@both
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    ],
    ids=["one cycle", "cosine", "lambda"],
)
def test_schedulers_drive_it_without_a_warning(kind, schedule):
    """Warnings are errors here: peers warn that lr_scheduler.step() came before optimizer.step()."""
    plain, wrapped = network(), network()
    base = BASES["momentum"](plain.parameters())
    opt = WRAPPERS[kind](BASES["momentum"](wrapped.parameters()))
    rates = []
    for model, o in ((plain, base), (wrapped, opt)):
        scheduler = schedule(o)
        for t in range(5):
            train(model, o, [t])
            scheduler.step()
            rates.append(o.param_groups[0]["lr"])
    assert rates[:5] == rates[5:] and len(set(rates)) > 3
    resumed = WRAPPERS[kind](BASES["momentum"](wrapped.parameters()))
    resumed.load_state_dict(opt.state_dict())
    assert resumed.param_groups[0]["lr"] == rates[-1]
    pickle.loads(pickle.dumps(opt))  # also with the scheduler's `step` on the instance


@both
def test_closure_and_loop_by_hand_agree(kind):
    a, b = network(), network()
    first, second = (WRAPPERS[kind](BASES["adam"](m.parameters())) for m in (a, b))
    for t in range(5):
        loss = first.step(closure(a, first, t))
        assert loss.requires_grad and loss.dim() == 0
        second.zero_grad()
        by_hand(kind, b, second, *samples(t))
        assert second.step() is None
    assert same(a, b)


@both
def test_the_closure_runs_first_and_as_often_as_promised(kind):
    model = network()
    opt = WRAPPERS[kind](BASES["sgd"](model.parameters()))
    train(model, opt, range(2))
    seen = []
    run = closure(model, opt, 3)
    before = model[0].weight.detach().clone()

    def counted():
        assert torch.is_grad_enabled()
        seen.append(torch.equal(model[0].weight, before))
        return run()

    with torch.no_grad():
        opt.step(counted)
    assert seen == ([True, False] if kind in TWO_PASSES else [False])


@both
def test_step_without_a_perturbed_pass_is_refused(kind):
    """Peers then take a plain step without a word."""
    model = network()
    opt = WRAPPERS[kind](BASES["sgd"](model.parameters()))
    x, y = samples(0)
    cross_entropy(model(x), y).backward()
    with pytest.raises(UsageError, match="without a perturbed pass"):
        opt.step()
    opt.zero_grad()
    by_hand(kind, model, opt, x, y)
    opt.step()
    with pytest.raises(UsageError, match="without a perturbed pass"):
        opt.step()


@both
def test_weights_come_back_bit_for_bit_also_on_an_exception(kind):
    model = network()
    opt = WRAPPERS[kind](BASES["adam"](model.parameters()))
    train(model, opt, range(3))
    before = copy.deepcopy(model.state_dict())
    x, y = samples(4)

    def broken():
        broken.calls += 1
        if broken.calls == (2 if kind in TWO_PASSES else 1):
            assert not torch.equal(model[0].weight, before["0.weight"]), "not even displaced"
            raise KeyboardInterrupt
        return closure(model, opt, 4)()

    broken.calls = 0
    with pytest.raises(KeyboardInterrupt):
        opt.step(broken)
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
    opt.zero_grad()
    by_hand(kind, model, opt, x, y)
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
    opt.step()
    opt.restore()  # harmless
    assert not torch.equal(model[0].weight, before["0.weight"])


@both
def test_no_checkpoint_no_evaluation_no_step_inside(kind):
    """Each would take noisy weights for the trained ones; everything works again outside."""
    model, other = network(), network()
    whole = nn.Sequential(model)
    opt = WRAPPERS[kind](BASES["adam"](model.parameters()))
    train(model, opt, range(2))
    inside = {
        "opt.state_dict": opt.state_dict,
        "opt.load": lambda: opt.load_state_dict({}),
        "step": opt.step,
        "nested": lambda: opt.perturbed().__enter__(),
        "group": lambda: opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        "model.state_dict": lambda: model.state_dict(),
        "a part's": lambda: model[0].state_dict(),
        "a whole's": lambda: whole.state_dict(),
        "load": lambda: model.load_state_dict({}),
        "eval": lambda: whole.eval()(x),
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: torch.save(model, io.BytesIO()),
        "pickle the optimizer": lambda: pickle.dumps(opt),
    }
    x, y = samples(3)
    if kind in TWO_PASSES:
        cross_entropy(model(x), y).backward()
    with opt.perturbed():
        for name, call in inside.items():
            with pytest.raises(UsageError, match="perturbed"):
                call()
            whole.train()
            assert not torch.equal(model[0].weight, opt._at.moved[0][1].view_as(model[0].weight)), name
        other.state_dict(), other.eval(), copy.deepcopy(other)
        model[1].eval(), model[1].train(), model.train()  # a part may be frozen
        cross_entropy(model(x), y).backward()
    for call in (opt.state_dict, model.state_dict, lambda: whole.eval()(x), lambda: copy.deepcopy(model)):
        call()
    pickle.loads(pickle.dumps(opt))


@both
def test_two_wrappers_may_be_inside_at_once(kind):
    a, b = network(), network(seed=1)
    first, second = (WRAPPERS[kind](BASES["sgd"](m.parameters())) for m in (a, b))
    x, y = samples(0)
    if kind in TWO_PASSES:
        cross_entropy(a(x), y).backward()
        cross_entropy(b(x), y).backward()
    with first.perturbed():
        with second.perturbed():
            cross_entropy(a(x) + b(x), y).backward()
        b.state_dict()
        with pytest.raises(UsageError, match="perturbed"):
            a.state_dict()
    a.state_dict()
    first.step(), second.step()


@both
@pytest.mark.parametrize("earlier", [False, True])
def test_backward_after_the_block_is_refused_where_torch_computes_the_forward_pass_again(kind, earlier):
    """Activation checkpointing does, at the weights of then: nothing is wrong for torch."""
    model, (x, y) = network(), samples(0)
    opt = WRAPPERS[kind](BASES["sgd"](model.parameters()))
    train(model, opt, range(2))
    opt.zero_grad()
    before = copy.deepcopy(model)
    if kind in TWO_PASSES:
        cross_entropy(model(x), y).backward()
    if earlier and kind not in TWO_PASSES:  # another micro-batch, as it should be
        by_hand(kind, model, opt, x, y)
    with opt.perturbed():
        loss = cross_entropy(checkpoint(model, x, use_reentrant=False), y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(UsageError, match="came after the perturbed block"):
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    opt.zero_grad()
    by_hand(kind, model, opt, x, y)
    opt.step()


@both
def test_a_block_without_a_pass_is_no_late_one(kind):
    """A batch that is skipped; the next one's plain pass, or another block, is not its backward pass."""
    model, twin, (x, y) = network(), network(), samples(0)
    opt, other = (WRAPPERS[kind](BASES["sgd"](m.parameters())) for m in (model, twin))
    for t in range(3):
        if kind not in TWO_PASSES or t:
            if kind in TWO_PASSES:
                cross_entropy(model(x), y).backward()
            with opt.perturbed():
                pass
            opt.zero_grad()
        by_hand(kind, model, opt, x, y)
        by_hand(kind, twin, other, x, y)
        for some in (opt, other):
            some.step()
            some.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@both
@pytest.mark.parametrize("copied", [False, True])
def test_a_step_of_the_base_in_place_of_ours_is_refused(kind, copied):
    """PertOPT would never draw noise: its clock stands still."""
    model = network()
    opt = WRAPPERS[kind](BASES["sgd"](model.parameters()))
    if copied:
        model, opt = copy.deepcopy((model, opt))
    x, y = samples(0)
    by_hand(kind, model, opt, x, y)
    with pytest.raises(UsageError, match="of the base optimizer after a perturbed pass"):
        opt.base.step()
    by_hand(kind, model, opt, x, y)
    opt.step()
    opt.base.step()  # no pass of ours comes to nothing: plain training goes on


@both
def test_a_base_that_is_wrapped_again_is_the_new_wrappers(kind):
    model, (x, y) = network(), samples(0)
    base = BASES["sgd"](model.parameters())
    old = WRAPPERS[kind](base)
    by_hand(kind, model, old, x, y)  # and no step
    new = WRAPPERS[kind](base)
    new.zero_grad()
    by_hand(kind, model, new, x, y)
    new.step()
    assert old._at.entered


@both
def test_a_base_without_a_rate_of_its_own(kind):
    """Adafactor of transformers chooses its rate: lr=None."""
    model = network()
    opt = WRAPPERS[kind](BASES["sgd"](model.parameters()))
    opt.param_groups[0]["lr"] = None
    with pytest.raises(UsageError, match="without a perturbed pass"):
        opt.step()


@both
def test_backward_after_the_block_is_refused_by_torch(kind):
    model = network()
    opt = WRAPPERS[kind](BASES["sgd"](model.parameters()))
    train(model, opt, range(2))
    x, y = samples(0)
    if kind in TWO_PASSES:
        cross_entropy(model(x), y).backward()
    with opt.perturbed():
        loss = cross_entropy(model(x), y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
