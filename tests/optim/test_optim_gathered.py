"""FSDP2 leaves whole weights in the shards' place after some passes: methods, guards and refusals do not mind."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import UsageError
from flatminima.optim import SAM, FisherTrace, PertOPT, gathered
from processes import FSDP2_ON_CPU, process_group, results_of_ranks

pytestmark = pytest.mark.skipif(not FSDP2_ON_CPU, reason="FSDP2 of torch 2.6 has no backward pass on a CPU")

STEPS = 3
SHARDINGS = ("root", "nested", "kept after forward", "kept after backward", "kept after the first backward", "method")
EVALUATIONS = ("none", "before", "between steps", "between passes", "begun ahead")
GENERATOR = torch.Generator().manual_seed(7)
X = torch.randn(STEPS, 2, 8, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, 3, (STEPS, 2, 8), generator=GENERATOR)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 17), nn.Linear(9, 3)
        self.block = nn.Sequential(nn.Linear(17, 9), nn.Tanh())

    def forward(self, x):
        return self.last(self.block(self.first(x).tanh()))

    def encode(self, x):
        """Registered with FSDP2, which gathers for it; no hook sees the root called, or its layers hold shards."""
        return self.last(self.block(self.first(x).tanh()))


def made(kind, network, **more):
    base = torch.optim.AdamW(network.parameters(), 1e-2)
    return SAM(base, rho=0.5, **more) if kind == "sam" else PertOPT(base, gamma=1.0, eta=5.0, **more)


def cut(sharding):
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    network = Network().double()
    kept = {"reshard_after_forward": False} if sharding == "kept after forward" else {}
    if sharding != "root":
        fully_shard(network.block, **kept)
    fully_shard(network, **kept)
    if sharding == "kept after backward":
        network.set_reshard_after_backward(False)
    register_fsdp_forward_method(network, "encode")
    return network


def evaluate(network, x, y):
    network.eval()
    with torch.no_grad():
        found = float(cross_entropy(network(x), y))
    network.train()
    return found


def train(kind, sharding, evaluation, given, rank):
    network = cut(sharding)
    opt = made(kind, network, **({"model": network} if given else {}))
    forward = network.encode if sharding == "method" else network
    for t in range(STEPS):
        x, y = X[t, rank], Y[t, rank]
        if evaluation == ("between steps" if t else "before"):
            evaluate(network, x, y)
        if sharding == "kept after the first backward":
            network.set_reshard_after_backward(False)
        if kind == "sam":
            cross_entropy(forward(x), y).backward()
        if sharding == "kept after the first backward":
            network.set_reshard_after_backward(True)
        if evaluation == "between passes":
            evaluate(network, x, y)
        if evaluation == "begun ahead":
            network.unshard(async_op=True)
        with opt.perturbed():
            cross_entropy(forward(x), y).backward()
        opt.step()
        opt.zero_grad()
    gathered.reshard(gathered.of_model(network))
    return torch.cat([p.full_tensor().detach().reshape(-1) for p in network.parameters()])


def in_one_process(kind):
    """Where the method leads, and where the base optimizer alone does."""
    network, plain = Network().double(), Network().double()
    opt, base = made(kind, network), torch.optim.AdamW(plain.parameters(), 1e-2)
    for x, y in zip(X.flatten(1, 2), Y.flatten(1, 2), strict=True):
        if kind == "sam":
            cross_entropy(network(x), y).backward()
        with opt.perturbed():
            cross_entropy(network(x), y).backward()
        opt.step()
        opt.zero_grad()
        cross_entropy(plain(x), y).backward()
        base.step()
        base.zero_grad()
    return (torch.cat([p.detach().reshape(-1) for p in net.parameters()]) for net in (network, plain))


def refusal(call):
    try:
        call()
    except UsageError as error:
        return str(error)
    return "accepted"


def guards(given, rank):
    """After an evaluation: what the block's weights give, what is refused in it, what a failed pass leaves behind."""
    network, (x, y), found = cut("root"), (X[0, rank], Y[0, rank]), {}
    evaluate(network, x, y)
    opt = made("pertopt", network, **({"model": network} if given else {}))
    found["made of copies"] = refusal(lambda: opt.perturbed().__enter__())
    network = cut("root")
    opt = made("pertopt", network, **({"model": network} if given else {}))
    forward = network if given else network.encode
    evaluate(network, x, y)
    for _ in range(2):  # there is no noise before a first gradient
        with opt.perturbed():
            cross_entropy(forward(x), y).backward()
        opt.step()
    before = evaluate(network, x, y)
    with opt.perturbed():
        found["first call"] = refusal(network.state_dict)
        found["evaluation"] = refusal(lambda: evaluate(network, x, y))
        network.train()
        loss = cross_entropy(forward(x), y)
        loss.backward()
        found["state_dict"] = refusal(network.state_dict)
    opt.step()
    found["moved"] = abs(float(loss) - before)
    before = evaluate(network, x, y)
    hook = network.last.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), opt.perturbed():
        network(x)
    hook.remove()
    found["held"] = [type(p).__name__ for p in network.parameters()]
    found["changed"] = abs(evaluate(network, x, y) - before)
    return found


def fisher(sharding, rank):
    network, (x, y) = cut(sharding), (X[0, rank], Y[0, rank])
    parts = {"whole": network, "inside": network.first}
    evaluate(network, x, y)
    return {
        name: refusal(lambda part=part: FisherTrace(part).backward(cross_entropy, x, y)) for name, part in parts.items()
    }


def worker(rank, port, folder):
    with process_group(rank, port):
        cells = itertools.product(("sam", "pertopt"), SHARDINGS, EVALUATIONS)
        found = {cell: train(*cell, i % 2 == 0, rank) for i, cell in enumerate(cells)}  # with model= and without
        guarded = {given: guards(given, rank) for given in (False, True)}
        refused = {sharding: fisher(sharding, rank) for sharding in ("root", "nested")}
        torch.save({"cells": found, "guards": guarded, "fisher": refused}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of_ranks(worker, tmp_path_factory.mktemp("gathered"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sam", "pertopt"])
def test_an_evaluation_does_not_switch_a_method_off(kind, found):
    """The passes of a block saw what the root had gathered before it: the base optimizer alone, 0.07 away."""
    truth, plain = in_one_process(kind)
    assert float((truth - plain).abs().max()) > 1e-3
    for rank in found:
        apart = {cell: float((w - truth).abs().max()) for cell, w in rank["cells"].items() if cell[0] == kind}
        assert len(apart) == len(SHARDINGS) * len(EVALUATIONS)
        assert {cell: off for cell, off in apart.items() if not off < 1e-13} == {}


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_guards_after_an_evaluation(given, found):
    """They know modules by the parameters that these hold: after an evaluation, by none."""
    for rank in found:
        seen = rank["guards"][given]
        for what in ("first call", "state_dict", "evaluation"):
            assert "while its weights are perturbed" in seen[what], what
        assert seen["moved"] > 1e-4
        assert "make it right after fully_shard" in seen["made of copies"]
        assert seen["changed"] == 0, "a pass that fails in the block leaves displaced weights gathered"
        assert set(seen["held"]) == {"DTensor"}


@pytest.mark.slow
def test_fisher_trace_refuses_gathered_weights(found):
    """It took them for whole ones, and left a gradient M times the loss's; `inside` is under the root, not a root."""
    for rank in found:
        for sharding in ("root", "nested"):
            for part in ("whole", "inside"):
                assert "has cut them into shards" in rank["fisher"][sharding][part], (sharding, part)


def test_a_model_without_the_optimizers_parameters_is_refused_at_every_block():
    """`load_state_dict(assign=True)` puts others in their place: the block's passes would not see the noise."""
    network = Network().double()
    opt = made("pertopt", network, model=network)
    x, y = X[0, 0], Y[0, 0]
    with opt.perturbed():
        cross_entropy(network(x), y).backward()
    opt.step()
    kept = [p.detach().clone() for group in opt.param_groups for p in group["params"]]
    network.load_state_dict({name: t.clone() for name, t in network.state_dict().items()}, assign=True)
    for _ in range(2):
        with pytest.raises(UsageError, match="none of the optimizer's parameters"), opt.perturbed():
            pass
    for p, before in zip((p for group in opt.param_groups for p in group["params"]), kept, strict=True):
        assert torch.equal(p, before)
    other = made("pertopt", network, model=nn.Sequential(network.first, nn.Linear(3, 3)))  # some of them is enough
    with other.perturbed():
        cross_entropy(network(x), y).backward()
