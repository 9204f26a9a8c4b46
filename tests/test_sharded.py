"""FSDP2 on two gloo ranks: what shards can give is what one process gives; the model is as it was."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from flatminima import Minimum, measure, measures
from flatminima.core.fsdp import ShardedMinimum
from flatminima.statistics import HessianProbes, TopEigenvalues
from processes import FSDP2_ON_CPU, ranks

pytestmark = pytest.mark.skipif(not FSDP2_ON_CPU, reason="FSDP2 of torch 2.6 has no backward pass on a CPU")

CHOSEN = [
    "margin",
    partial(measures.expected_sharpness, draws=5, samples=7),
    partial(measures.sharpness, samples=None, steps=3),
    partial(measures.sharpness, samples=8, steps=3),
    partial(measures.hessian_trace, groups=5, probes=2),
    partial(measures.hessian_top_eigenvalue, samples=None, tolerance=1e-6),
    partial(measures.hessian_top_eigenvalue, samples=15, tolerance=1e-6),
]
UNDEFINED = ["fisher_trace", "fisher_logdet", "frobenius_norm"]


def network(dtype=torch.float64):
    """7 and 3 rows over two ranks: parts of unequal size, a frozen parameter, and a buffer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))
    model[3].bias.requires_grad_(False)
    return model.to(dtype).eval()


def data(dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(23, 4, generator=g, dtype=torch.float64)
    return x.to(dtype), network()(x).argmax(1)


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[3], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def numbers(minimum):
    table = measure(minimum, CHOSEN)
    return {name: (e.value, e.stderr, e.undefined) for name, e in table.items()}


def worker(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.save(_found(), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _found():
    model = sharded(network())
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 0.5)
    before = [p.to_local().clone() for p in model.parameters()]
    with torch.no_grad():
        model(data()[0])  # leaves the root's weights gathered
    minimum = ShardedMinimum(model, data(), batch_size=8)  # 8, 8 and 7: the last is no multiple of two
    found = {"measures": numbers(minimum), "held": minimum.parameters.here, "all": len(minimum.parameters)}
    after = [p.to_local() for p in model.parameters()]
    found["same weights"] = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    found["same gradients"] = all(bool((p.grad.to_local() == 0.5).all()) for p in model.parameters() if p.requires_grad)
    found["modes"] = [m.training for m in model.modules()]
    found["undefined"] = {n: (e.value, e.undefined) for n, e in measure(minimum, UNDEFINED).items()}
    diagonal = torch.zeros(len(minimum.parameters), dtype=torch.float64)
    for (start, stop), part in zip(
        minimum.parameters.spans,
        minimum[HessianProbes(2)].diagonal.split([b - a for a, b in minimum.parameters.spans]),
        strict=True,
    ):
        diagonal[start:stop] = part
    found["diagonal"] = minimum.parameters.total(diagonal)
    single = sharded(network(torch.float32))
    found["float32"] = ShardedMinimum(single, data(torch.float32))[TopEigenvalues(1, None, 1e-3)].values
    with torch.no_grad():
        for p in model.parameters():
            p.to_local().mul_(1.1)
    found["errors"] = [
        _error(lambda: minimum[HessianProbes(3)]),
        _error(lambda: ShardedMinimum(network(), data())),
        _error(lambda: ShardedMinimum(sharded(network()).train(), data())),
        _error(lambda: ShardedMinimum(_broken(sharded(network())), data())),
        _error(lambda: ShardedMinimum(sharded(network()), (data()[0], data()[1] + 9))),
    ]
    return found


def _broken(model):
    """NaN in a weight of the first rank alone."""
    if dist.get_rank() == 0:
        with torch.no_grad():
            model[0].weight.to_local()[0, 0] = torch.nan
    return model


def _error(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both ranks found."""
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks(worker, port, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_measures_are_those_of_one_process(found):
    """A probe drawn alike on two ranks, a padded sample counted, or weights gathered before they moved is far off."""
    alone = numbers(Minimum(network(), data(), batch_size=4))
    for name, expected in alone.items():
        for one, two in zip(found[0]["measures"][name], expected, strict=True):
            assert one == (pytest.approx(two, rel=1e-7, abs=1e-9) if isinstance(two, float) else two), name


def test_both_ranks_have_the_same_numbers(found):
    assert found[0]["measures"] == found[1]["measures"]
    assert found[0]["undefined"] == found[1]["undefined"]


def test_the_diagonal_lies_in_parts(found):
    diagonal = Minimum(network(), data())[HessianProbes(2)].diagonal
    torch.testing.assert_close(found[0]["diagonal"], diagonal, rtol=1e-6, atol=1e-9)


def test_the_weights_are_shared_out(found):
    whole = found[0]["all"]
    assert whole == sum(p.numel() for p in network().parameters() if p.requires_grad)
    assert sum(one["held"] for one in found) == whole and max(one["held"] for one in found) < 0.6 * whole


def test_the_model_is_as_it_was(found):
    for one in found:
        assert one["same weights"] and one["same gradients"] and not any(one["modes"])


def test_differences_in_float32_keep_three_digits(found):
    exact = Minimum(network(), data())[TopEigenvalues(1, None, 1e-8)].values
    torch.testing.assert_close(found[0]["float32"], exact, rtol=1e-3, atol=0.0)


def test_what_shards_cannot_give_is_undefined_with_a_reason(found):
    for value, reason in found[0]["undefined"].values():
        assert value is None and "FSDP's shards" in reason


def test_refusals_are_the_same_on_both_ranks(found):
    kinds = ["StaleMinimum", "ModelError", "ModelError", "NumericalError", "DataError"]
    words = ["changed since", "fully_shard", "call model.eval()", "NaN or Inf", "out of range"]
    for one in found:
        for (kind, message), expected, word in zip(one["errors"], kinds, words, strict=True):
            assert kind == expected and word in message
