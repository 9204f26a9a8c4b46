"""FisherTrace on ranks whose batches differ: as many collectives on each, the mean of what each finds, or all stop."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from flatminima.optim import FisherTrace
from processes import process_group, results_of_ranks

STEPS = 5
GENERATOR = torch.Generator().manual_seed(7)
X = torch.randn(STEPS, 2, 8, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, 3, (STEPS, 2, 8), generator=GENERATOR)
MASKED = {  # (step, rank) of batches in which nothing counts
    "none": [],
    "first": [(0, 1)],
    "the other's first": [(0, 0)],
    "third": [(2, 1)],
    "in turn": [(0, 1), (1, 0), (2, 1), (3, 0)],
    "both": [(0, 0), (0, 1)],
    "all of one": [(t, 1) for t in range(STEPS)],
}
OPTIONS = {"count": {}, "from the loss": {}, "whole": {"main_gradient": "batch"}, "exact": {"mode": "exact"}}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def counted(_, y):
    return float((y != -100).sum())


def loss(a, b):
    return cross_entropy(a, b, ignore_index=-100, reduction="sum") / (b != -100).sum().clamp_min(1)


def batch(masked, t, rank, size=8):
    y = Y[t, rank, :size].clone()
    if (t, rank) in MASKED[masked]:
        y[:] = -100
    return X[t, rank, :size], y


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def sizes(rank):
    """Of the batches of a rank: rank 1 has fewer samples in each than it has sub-batches."""
    return 8 if rank == 0 else 1


def train(masked, option, rank, size=8):
    model = DistributedDataParallel(network())
    reg = FisherTrace(model, sub_batches=4, beta=1.0, alpha=0.1, **OPTIONS[option])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for t in range(STEPS):
        optimizer.zero_grad()
        reg.backward(loss, *batch(masked, t, rank, size), count=counted if option == "count" else None)
        optimizer.step()
    return flat(model), reg.state_dict()


def in_one_process(masked, option, size=lambda _: 8):
    """Two FisherTraces that know nothing of each other, and the mean of their gradients."""
    model = network()
    regs = [FisherTrace(model, sub_batches=2, beta=1.0, alpha=0.1, **OPTIONS[option]) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for t in range(STEPS):
        optimizer.zero_grad()
        for rank, reg in enumerate(regs):
            more = {"count": counted if option == "count" else None, "scale": 0.5}
            reg.backward(loss, *batch(masked, t, rank, size(rank)), **more)
        optimizer.step()
    return flat(model)


def broken(where):
    """(loss, count, x, y) that fail on this rank."""
    x, y = batch("none", 0, 1)
    calls = iter(range(100))
    late = {"the second part": 2, "the comparison": 4}.get(where, 0)  # two parts of two passes

    def failing(a, b):
        if next(calls) >= late:
            raise OSError("the disk of this rank")
        return loss(a, b)

    given = {
        "loss": (failing, counted, x, y),
        "count": (loss, failing, x, y),
        "sizes": (loss, counted, x, y[:-1]),
    }
    return given.get(where, (failing, counted, x, y))


FAILURES = ("loss", "count", "sizes", "the second part", "the comparison")


def failures(rank):
    """What each rank raises, and whether both work together afterwards."""
    found = {}
    for where in FAILURES:
        model = DistributedDataParallel(network())
        reg = FisherTrace(model, sub_batches=4, beta=1.0, alpha=0.1)
        kept = [torch.full_like(p, 0.5) for p in model.parameters()]
        for p, g in zip(model.parameters(), kept, strict=True):
            p.grad = g
        loss_fn, count, x, y = broken(where) if rank == 1 else (loss, counted, *batch("none", 0, 0))
        try:
            reg.backward(loss_fn, x, y, count=count)
            raised = "nothing"
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
        same = all(p.grad is g and bool((g == 0.5).all()) for p, g in zip(model.parameters(), kept, strict=True))
        model.zero_grad()
        reg.backward(loss, *batch("none", 1, rank), count=counted)
        found[where] = raised, same, torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    return found


def apart(rank):
    """A rank whose state, or whose weight of the penalty, is another."""
    found = {}
    for name in ("combined", "main_gradient", "beta"):
        model = DistributedDataParallel(network())
        reg = FisherTrace(model, sub_batches=4, beta=1.0, alpha=0.1)
        if rank == 1 and name != "beta":
            reg.load_state_dict({**reg.state_dict(), name: 7 if name == "combined" else "batch"})
        for t in range(3):
            reg.beta = 0.0 if (rank, name, t) == (1, "beta", 0) else 1.0
            reg.backward(loss, *batch("none", t, rank), count=counted)
        found[name] = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    return found


def coupled(rank):
    """A loss that is no mean over samples, where rank 1 has nothing to compare at the first step: both learn of it."""
    model = DistributedDataParallel(network())
    reg = FisherTrace(model, sub_batches=4, beta=1.0, alpha=0.1)
    said = []
    for t in range(2):
        x, y = batch("first", t, rank)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            reg.backward(lambda a, b: loss(a, b).square(), x, y, count=counted)
        said.append([str(w.message) for w in seen if "sub-batches' gradients" in str(w.message)])
    return reg.main_gradient, [len(s) for s in said]


def worker(rank, port, folder):
    with process_group(rank, port):
        found = {(m, o): train(m, o, rank) for m in MASKED for o in OPTIONS}
        found["uneven"] = train("none", "count", rank, sizes(rank))
        found |= {"failures": failures(rank), "apart": apart(rank), "coupled": coupled(rank)}
        torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of_ranks(worker, tmp_path_factory.mktemp("together"))


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("masked", MASKED)
def test_batches_in_which_nothing_counts(masked, option, found):
    """The rank without a label went on to reduce gradients while the other asked about its comparison: gloo aborts."""
    (ours, state), (theirs, other) = (rank[masked, option] for rank in found)
    assert torch.equal(ours, theirs), "the ranks drifted apart"
    assert state == other
    torch.testing.assert_close(ours, in_one_process(masked, option), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_a_batch_smaller_than_the_sub_batches(found):
    assert torch.equal(found[0]["uneven"][0], found[1]["uneven"][0])
    torch.testing.assert_close(found[0]["uneven"][0], in_one_process("none", "count", sizes), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("where", FAILURES)
def test_an_error_of_one_rank_ends_the_others_wait(where, found):
    """They waited for a reduction that never came, until the connection's time was up; gradients are as before."""
    (waiting, kept, after), (failing, theirs, other) = (rank["failures"][where] for rank in found)
    assert waiting.startswith("RankFailed: another rank failed in FisherTrace.backward()")
    assert failing.startswith("UsageError" if where == "sizes" else "OSError: the disk of this rank")
    assert kept
    assert theirs
    assert torch.equal(after, other)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["combined", "main_gradient", "beta"])
def test_ranks_of_unequal_state_still_meet(what, found):
    assert torch.equal(found[0]["apart"][what], found[1]["apart"][what])


@pytest.mark.slow
def test_a_rank_without_anything_to_compare_hears_what_the_other_found(found):
    for rank in found:
        assert rank["coupled"] == ("batch", [1, 0])


def test_a_batch_without_a_label_is_no_comparison():
    """The first that counts is: alone, `combined` waits for it."""
    reg = FisherTrace(network(), sub_batches=4, beta=1.0, alpha=0.1)
    reg.backward(loss, *batch("both", 0, 0), count=counted)
    assert reg.combined == 0
    with pytest.warns(UserWarning, match="sub-batches' gradients"):
        reg.backward(lambda a, b: loss(a, b).square(), *batch("both", 1, 0), count=counted)
    assert reg.combined == 1
