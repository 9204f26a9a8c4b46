"""Two ranks, compiled models, activation checkpointing: what SAM's users have asked for."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from flatminima.errors import UsageError
from flatminima.optim import SAM, FisherTrace, PertOPT
from processes import ranks

STEPS = 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def batch(t, n=16):
    g = torch.Generator().manual_seed(t)
    return torch.randn(n, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


def wrapped(kind, network, **more):
    base = torch.optim.AdamW(network.parameters(), 1e-2)
    if kind == "sam":
        return SAM(base, rho=0.2, **more)
    return PertOPT(base, eta=1e4, gamma=0.3, **more)


def steps(model, opt, mine=slice(None)):
    for t in range(STEPS):
        x, y = (tensor[mine] for tensor in batch(t))

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        opt.step(closure)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def fisher_steps(model, mine=slice(None)):
    opt = torch.optim.SGD(model.parameters(), 0.1)
    reg = FisherTrace(model, beta=5.0, alpha=0.1, sub_batches=4, step=0.01, max_norm=0.5)
    for t in range(STEPS):
        x, y = (tensor[mine] for tensor in batch(t))
        opt.zero_grad()
        reg.backward(cross_entropy, x, y)
        opt.step()


def local_sam_steps(ddp, mine):
    """A displacement per rank: the first backward pass is not synchronised."""
    opt = wrapped("sam", ddp)
    apart = []
    for t in range(STEPS):
        x, y = (tensor[mine] for tensor in batch(t))
        opt.zero_grad()
        with ddp.no_sync():
            cross_entropy(ddp(x), y).backward()
        with opt.perturbed():
            apart.append(flat(ddp))
            cross_entropy(ddp(x), y).backward()
        opt.step()
    return apart[-1]


def worker(rank, port, folder):
    """One of two ranks, each with its half of every batch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        mine = slice(8 * rank, 8 * rank + 8)
        found = {}
        for kind in ("sam", "pertopt"):
            model = DistributedDataParallel(network())
            steps(model, wrapped(kind, model), mine)
            found[kind] = flat(model)
        model = DistributedDataParallel(network())
        opt = wrapped("pertopt", model, noise="per_rank")
        steps(model, opt, mine)
        found["per rank"] = flat(model)
        with opt.perturbed():
            found["per rank, displaced"] = flat(model)
        model = DistributedDataParallel(network())
        found["local sam, displaced"] = local_sam_steps(model, mine)
        found["local sam"] = flat(model)
        model = DistributedDataParallel(network())
        fisher_steps(model, mine)
        found["fisher"] = flat(model)
        torch.manual_seed(0)
        norm = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
        model = DistributedDataParallel(norm)
        fisher_steps(model, mine)
        x, y = (tensor[mine] for tensor in batch(9))
        cross_entropy(model(x), y).backward()  # an ordinary pass of DDP still works afterwards
        found["fisher, batch norm"] = flat(model)
        try:
            FisherTrace(model, sub_batches=3).backward(cross_entropy, x, y)
        except UsageError as error:
            found["refusal"] = str(error)
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    """Half a batch each: SAM's norm from synchronised gradients, the same noise on both ranks, one all-reduce."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks(worker, port, str(tmp_path))
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key in ("sam", "pertopt", "per rank", "local sam", "fisher", "fisher, batch norm"):
        assert torch.equal(a[key], b[key]), f"{key}: ranks drifted apart"
    for kind in ("sam", "pertopt"):
        model = network()
        steps(model, wrapped(kind, model))
        torch.testing.assert_close(a[kind], flat(model), rtol=1e-9, atol=1e-12)
    model = network()
    fisher_steps(model)
    torch.testing.assert_close(a["fisher"], flat(model), rtol=1e-8, atol=1e-11)
    for key in ("per rank, displaced", "local sam, displaced"):
        assert not torch.allclose(a[key], b[key]), key
    assert not torch.allclose(a["per rank"], a["pertopt"])
    assert "give a multiple of 2" in a["refusal"]


class Convolutional(nn.Module):
    """With BatchNorm and, on demand, checkpointed activations."""

    def __init__(self, recompute=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 3))
        self.recompute = recompute

    def forward(self, x):
        if self.recompute is None:
            return self.head(self.body(x))
        return self.head(checkpoint(self.body, x, use_reentrant=self.recompute))


def images(t):
    g = torch.Generator().manual_seed(t)
    return torch.randn(12, 1, 8, 8, generator=g).requires_grad_(), torch.randint(0, 3, (12,), generator=g)


def image_steps(model, opt):
    for t in range(4):
        x, y = images(t)

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        opt.step(closure)


@pytest.mark.parametrize("kind", ["sam", "pertopt"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_at_the_displaced_weights(kind, reentrant):
    plain, recomputed = Convolutional(), Convolutional(reentrant)
    for model in (plain, recomputed):
        image_steps(model, wrapped(kind, model, **({"model": model} if kind == "sam" else {"beta2": 9.0})))
    for p, q in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", ["sam", "pertopt", "fisher"])
def test_compiled_models(kind):
    """Displaced in place behind the compiler's back; the displacement is no reason to compile again."""
    plain, inner = Convolutional(), Convolutional()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(inner, backend="aot_eager")
    for model, module in ((plain, plain), (compiled, inner)):
        if kind == "fisher":
            opt = torch.optim.AdamW(module.parameters(), 1e-2)
            reg = FisherTrace(model, sub_batches=3, beta=1.0, alpha=0.1)
            for t in range(4):
                opt.zero_grad()
                x, y = images(t)
                reg.backward(cross_entropy, x.detach(), y)
                opt.step()
            x, y = images(0)
            assert reg.error(cross_entropy, x.detach(), y).cosine > 0.5, "double backward bypasses the compiler"
        else:
            image_steps(model, wrapped(kind, model, model=model, **({} if kind == "sam" else {"beta2": 9.0})))
    for p, q in zip(plain.state_dict().values(), inner.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs <= (2 if kind == "fisher" else 1)


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")  # about the hook; model= avoids it
@pytest.mark.parametrize("in_place", [True, False])
def test_sam_finds_the_running_statistics_of_a_compiled_model(in_place):
    """Without model= the layers are found by a hook, which compiled code does not run; in place it takes model=."""
    inner = Convolutional()
    torch._dynamo.reset()
    if in_place:
        inner.compile(backend="aot_eager")
    compiled = inner if in_place else torch.compile(inner, backend="aot_eager")
    opt = wrapped("sam", inner, model=inner if in_place else None)
    x, y = images(0)
    plain = Convolutional()
    plain(x)

    def closure():
        opt.zero_grad()
        loss = cross_entropy(compiled(x), y)
        loss.backward()
        return loss

    opt.step(closure)
    assert int(inner.body[1].num_batches_tracked) == 1
    torch.testing.assert_close(inner.body[1].running_mean, plain.body[1].running_mean)
