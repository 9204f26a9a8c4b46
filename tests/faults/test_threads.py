"""Two threads at once: one thread's numbers, or a refusal; and torch's switches are afterwards as they were.

FLATMINIMA_TRIALS says how often each pairing is tried: 3 here.
"""

from __future__ import annotations

import copy
import itertools
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flatminima import Minimum, measure
from flatminima.certification import certify_around
from flatminima.core.ambient import neutral
from flatminima.errors import FlatMinimaError
from flatminima.optim import SAM, FisherTrace, PertOPT

TRIALS = int(os.environ.get("FLATMINIMA_TRIALS", "3"))
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 5, generator=GENERATOR), torch.arange(48) % 3
Act = Callable[[nn.Module], Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def measurement(model: nn.Module) -> Any:
    table = measure(Minimum(model, (X, Y)), ["fisher_trace", "margin", "expected_sharpness"])
    return [(name, e.value, e.stderr) for name, e in table.items()]


def certificate(model: nn.Module) -> Any:
    minimum = Minimum(model, (X, Y))
    return certify_around(minimum, prior="zero", scales=0.1, etas=(1.0,), draws=20, score=True).risk_bound


def _gradients(model: nn.Module) -> Any:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def perturbed(kind: Any) -> Act:
    """Three steps at a learning rate of 0, so that the weights stay: the gradients at displaced weights."""

    def act(model: nn.Module) -> Any:
        optimizer, seen = kind(torch.optim.SGD(model.parameters(), lr=0.0)), []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        for _ in range(3):
            if isinstance(optimizer, SAM):
                optimizer.step(closure)
            else:
                with optimizer.perturbed():
                    closure()
                optimizer.step()
            seen.append(_gradients(model))
        return seen

    return act


def fisher(model: nn.Module) -> Any:
    """Gradients add up: a thread that cleared them would take them from another one's backward()."""
    method, seen = FisherTrace(model), []
    for _ in range(3):
        method.backward(F.cross_entropy, X, Y)
        seen.append(_gradients(model))
    return seen


ACTS: dict[str, Act] = {
    "measurement": measurement,
    "certificate": certificate,
    "PertOPT": perturbed(lambda base: PertOPT(base, seed=3)),
    "SAM": perturbed(SAM),
    "FisherTrace": fisher,
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def switches() -> tuple[Any, ...]:
    cuda = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"), torch.get_default_device(),
    )  # fmt: skip


def together(acts: list[Callable[[], Any]]) -> list[Any]:
    """What each gives or raises, begun at once in a thread of its own."""
    found: list[Any] = [None] * len(acts)
    barrier = threading.Barrier(len(acts))

    def run(i: int) -> None:
        barrier.wait()
        try:
            found[i] = acts[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,), name=f"thread {i}") for i in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "the threads wait for each other"
    return found


PAIRS = list(itertools.combinations_with_replacement(ACTS, 2))


@pytest.mark.parametrize("shared", [False, True], ids=["two networks", "one network"])
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_each_gets_its_own_numbers_or_a_refusal(one: str, two: str, shared: bool) -> None:
    """Where one gradient buffer is shared, training from two threads is refused or takes turns; else nothing is."""
    truths = [ACTS[name](network()) for name in (one, two)]
    before, start = switches(), [p.detach().clone() for p in network().parameters()]
    refused = 0
    for _ in range(TRIALS):
        first = network()
        models = [first, first if shared else copy.deepcopy(first)]
        found = together([partial(ACTS[name], model) for name, model in zip((one, two), models, strict=True)])
        for answer, truth in zip(found, truths, strict=True):
            if isinstance(answer, BaseException):
                assert shared and isinstance(answer, FlatMinimaError), repr(answer)
                assert "\n" not in str(answer)
                refused += 1
            elif not (shared and _trains(one) and _trains(two)):
                assert same(answer, truth), (answer, truth)
        assert switches() == before
        for model in models:
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
    assert refused < 2 * TRIALS, "nobody got anything"


def _trains(name: str) -> bool:
    return name not in ("measurement", "certificate")


@pytest.mark.parametrize("shared", ["one Minimum", "two of one network"])
def test_one_minimum_in_two_threads(shared: str) -> None:
    """14 wrong numbers and 17 errors in 40 trials, before there was a lock."""
    names = [["fisher_trace", "expected_sharpness"], ["hessian_trace", "sharpness"]]
    truths = [[e.value for e in measure(Minimum(network(), (X, Y)), n).values()] for n in names]
    for _ in range(TRIALS):
        model = network()
        one = Minimum(model, (X, Y))
        two = one if shared == "one Minimum" else Minimum(model, (X, Y))
        found = together([lambda m=m, n=n: [e.value for e in measure(m, n).values()]
                          for m, n in zip((one, two), names, strict=True)])  # fmt: skip
        assert found == truths


def test_a_minimum_within_another_threads_block_is_refused_and_names_the_thread() -> None:
    model, inside, go_on = network(), threading.Event(), threading.Event()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    F.cross_entropy(model(X), Y).backward()
    known = Minimum(model, (X, Y))

    def train() -> None:
        with optimizer.perturbed():
            F.cross_entropy(model(X), Y).backward()
            inside.set()
            go_on.wait(60)

    thread = threading.Thread(target=train, name="the trainer")
    thread.start()
    assert inside.wait(60)
    try:
        for act in (lambda: Minimum(model, (X, Y)), lambda: measure(known, ["margin"]), optimizer.step):
            with pytest.raises(FlatMinimaError, match=r"the trainer|perturbed"):
                act()
    finally:
        go_on.set()
        thread.join()
    assert measure(Minimum(model, (X, Y)), ["margin"])["margin"].value is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")
def test_a_child_made_while_another_thread_measures_does_not_wait_for_it() -> None:
    """A DataLoader's worker is such a child."""
    from flatminima.core.ambient import SWITCHES_LOCK

    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with SWITCHES_LOCK:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if SWITCHES_LOCK.acquire(blocking=False) else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_counter_of_another_thread_goes_on_counting_during_a_measurement() -> None:
    """Its hooks are of the whole process; they are silent for the thread that measures."""
    entered, measuring, found = threading.Event(), threading.Event(), []

    def count() -> None:
        with FlopCounterMode(display=False) as counter:
            entered.set()
            measuring.wait(60)
            network()(X)
        found.append(counter.get_flop_counts())

    alone = threading.Thread(target=lambda: (measuring.set(), count()))
    alone.start()
    alone.join()
    entered.clear()
    measuring.clear()
    beside = threading.Thread(target=count)
    beside.start()
    assert entered.wait(60)
    with neutral():
        measuring.set()
        beside.join()
    assert found[0] == found[1] and "Sequential.0" in found[1]


def test_no_backward_begins_while_another_thread_writes_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights were back, and its gradients not yet written: the other one took them for those of a sub-batch."""
    model, said = network(), list[str]()
    clip = FisherTrace._clip

    def clipping(self: FisherTrace, total: Any) -> None:
        def other() -> None:
            with pytest.raises(FlatMinimaError, match="perturbed"):
                FisherTrace(model).backward(F.cross_entropy, X, Y)
            said.append("refused")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
        clip(self, total)

    monkeypatch.setattr(FisherTrace, "_clip", clipping)
    FisherTrace(model).backward(F.cross_entropy, X, Y)
    assert said == ["refused"]
