"""Two gloo ranks: the weights of a run without a tracker, and the numbers of one process, under DDP and FSDP2."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from flatminima.core.distributed import Ranks
from flatminima.track import Options, Tracker, TrackTable

SHARDED = ("fsdp", "fsdp, evaluated", "fsdp, nested")
NAMES = ["eigenvalue", "preconditioned", "trace", "gradient_norm", "critical_sharpness", "distance"]


def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(22, 4, generator=g, dtype=torch.float64), torch.arange(22) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def train(model, rank, tracked, log=None, evaluated=False, **options):
    x, y = data()

    def evaluate():
        """After which FSDP2 has the root's whole weights in the shards' place."""
        if evaluated:
            with torch.no_grad():
                model.eval()(x)
            model.train()

    mine = slice(0, 11) if rank == 0 else slice(11, 22)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    evaluate()
    tracker = None
    if tracked:
        chosen = Options(fresh_every=2, seed=3, tolerance=1e-4, **options)
        tracker = Tracker(
            model, (x, y), optimizer=optimizer, every=2, quantities=NAMES, options=chosen, log=log, strict=True
        )
    for step in range(5):
        optimizer.zero_grad()
        loss = cross_entropy(model(x[mine]), y[mine])
        loss.backward()
        optimizer.step()
        evaluate()
        if tracker is not None:
            tracker.step(step, loss)
    if evaluated:
        model.reshard()
    weights = [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in model.parameters()]
    return weights, tracker


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def nested(model):
    """The first layer is gathered by itself, and the root keeps the last."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[0], mesh=init_device_mesh("cpu", (2,)))
    return sharded(model)


def worker(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    kinds = {
        "plain": (DistributedDataParallel, False, {}),
        "alone": (DistributedDataParallel, True, {}),
        "together": (DistributedDataParallel, True, {"ranks": Ranks()}),
        "fsdp": (sharded, True, {}),
        "fsdp, evaluated": (sharded, True, {"evaluated": True}),
        "fsdp, nested": (nested, True, {"evaluated": True}),
    }
    try:
        found = {}
        for name, (wrap, tracked, options) in kinds.items():
            log = Path(folder) / f"{name}.jsonl"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                weights, tracker = train(wrap(network()), rank, tracked, log, **options)
            found[name] = weights, None if tracker is None else tracker.rows
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_and_fsdp2(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    plain = one["plain"][0]
    for found in (one, two):
        for name in ("plain", "alone", "together"):
            assert all(torch.equal(a, b) for a, b in zip(found[name][0], plain, strict=True)), name
        for name in SHARDED:
            assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found[name][0], plain, strict=True)), name
    assert two["alone"][1] == []  # it looked alone
    assert [row["values"] for row in one["together"][1]] == [row["values"] for row in two["together"][1]]
    here = [n for n in NAMES if n != "preconditioned"]
    for name, names in (("together", NAMES), *((name, here) for name in SHARDED)):
        for row, other in zip(one[name][1], one["alone"][1], strict=True):
            for key in names:
                assert row["values"][key] == pytest.approx(other["values"][key], rel=2e-3, abs=1e-9), (name, key)
        assert [row["step"] for row in TrackTable.read(tmp_path / f"{name}.jsonl")] == [0, 2, 4]
