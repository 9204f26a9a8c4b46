"""accelerate's `prepare`, `accumulate`, schedulers and `save_state` around PertOPT and SAM, against a loop by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

from flatminima.errors import UsageError  # noqa: E402
from flatminima.optim import SAM, PertOPT  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
WRAP = {"pertopt": lambda b: PertOPT(b, gamma=0.3, eta=1e4), "sam": lambda b: SAM(b, rho=0.2)}
both = pytest.mark.parametrize("kind", WRAP)


@pytest.fixture(autouse=True)
def _fresh():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches(size=4):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (24,), generator=g)
    return list(zip(x.split(size), y.split(size), strict=True))


def by_hand(kind, accumulate=2, epochs=2):
    net = network()
    opt = WRAP[kind](torch.optim.AdamW(net.parameters(), 1e-2))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.9**t)
    for x, y in batches(4 * accumulate) * epochs:

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            return loss

        opt.step(closure)
        schedule.step()
    return net


def prepared(kind, accumulate=2):
    net = network()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    opt = WRAP[kind](torch.optim.AdamW(net.parameters(), 1e-2))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.9**t)
    return accelerator, net, *accelerator.prepare(net, opt, schedule)


def train(accelerator, model, opt, schedule, rows, by_closure, clears=False):
    for x, y in rows:
        with accelerator.accumulate(model):

            def closure(x=x, y=y):
                if clears:
                    opt.zero_grad()
                loss = cross_entropy(model(x), y)
                accelerator.backward(loss)
                return loss

            if by_closure:
                opt.step(closure)
            else:
                with opt.perturbed():
                    closure()
                opt.step()
            schedule.step()
            opt.zero_grad()


@both
@pytest.mark.parametrize("clears", [False, True])
def test_closures_of_accumulated_batches_are_one_step(kind, clears):
    """SAM repeats all of them at w + e; a closure may clear the gradients, which waits for the step's end."""
    accelerator, net, *rest = prepared(kind)
    train(accelerator, *rest, batches() * 2, by_closure=True, clears=clears)
    for p, q in zip(net.parameters(), by_hand(kind).parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_blocks_of_accumulated_batches_are_one_step():
    accelerator, net, *rest = prepared("pertopt")
    train(accelerator, *rest, batches() * 2, by_closure=False)
    for p, q in zip(net.parameters(), by_hand("pertopt").parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@both
def test_save_state_goes_on_with_the_same_bits(kind, tmp_path):
    whole = prepared(kind)
    train(whole[0], *whole[2:], batches() * 2, by_closure=True)
    first = prepared(kind)
    train(first[0], *first[2:], batches(), by_closure=True)
    first[0].save_state(tmp_path)
    again = prepared(kind)
    again[0].load_state(tmp_path)
    train(again[0], *again[2:], batches(), by_closure=True)
    assert all(torch.equal(p, q) for p, q in zip(whole[1].parameters(), again[1].parameters(), strict=True))


def test_float16_keeps_accelerates_wrapper_and_takes_no_closure(monkeypatch):
    """Its scaler would leave a closure's gradients scaled; by hand the block is the inner optimizer's."""
    accelerator = accelerate.Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator.state), "mixed_precision", "fp16")
    net = network()
    model, opt = accelerator.prepare(net, SAM(torch.optim.SGD(net.parameters(), 0.1)))
    assert not isinstance(opt, SAM) and isinstance(opt.optimizer, SAM)
    x, y = batches()[0]
    with pytest.raises(UsageError, match="would leave scaled"):
        opt.step(lambda: cross_entropy(model(x), y).backward())
    cross_entropy(model(x), y).backward()
    with opt.optimizer.perturbed():
        cross_entropy(model(x), y).backward()
    opt.step()
