"""Two gloo ranks give what one process gives, every measure of the catalogue; an error on one is an error on both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from flatminima import Minimum, catalog, measure
from flatminima.core.distributed import Ranks
from flatminima.errors import DataError, Undefined, UsageError
from flatminima.statistics import HessianProbes, Outputs, Products, TopEigenvalues
from processes import ranks

pytestmark = pytest.mark.slow


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)


def data():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(23, 4, generator=g, dtype=torch.float64)
    return x, network()(x).argmax(1)


def functions():
    """Each measure of the catalogue, small; Gram subsets of 5."""
    found = []
    for row in catalog.MEASURES.values():
        function = row.load()
        counts = {"subset": 5, "trials": 4}
        known = {k: v for k, v in counts.items() if k in signature(function).parameters}
        found.append(partial(function, **known | dict(row.small)))
    return found


def numbers(minimum):
    table = measure(minimum, functions())
    return {name: (e.value, e.stderr, e.undefined) for name, e in table.items()}


def worker(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        ranks = Ranks()
        minimum = Minimum(network(), data(), batch_size=4, ranks=ranks)
        found = {"measures": numbers(minimum)}
        fresh = Minimum(network(), data(), batch_size=4, ranks=ranks)
        found["outputs"] = fresh[Outputs()].losses
        found["samples seen"] = fresh.passes.forward
        found["product"] = Products(fresh)(torch.ones(len(fresh.parameters)))
        found["eigenvalues"] = fresh[TopEigenvalues(3, None, 1e-8)].values
        found["errors"] = [_error(lambda: _broken(ranks, rank)), _error(lambda: _different(ranks, rank))]
        x, y = data()
        found["errors"].append(_error(lambda: Minimum(network(), (x, (y + rank) % 3), ranks=ranks)))
        found["undefined"] = _error(lambda: Minimum(network(), data(), _flat, ranks=ranks)[HessianProbes(2)])
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _flat(output, target):
    return (output.argmax(1) != target).double()


def _broken(ranks, rank):
    def work():
        if rank == 1:
            raise DataError("sample 7 is broken")

    ranks.together(work)


def _different(ranks, rank):
    model = network()
    with torch.no_grad():
        model[0].weight.add_(0.1 * rank)
    Minimum(model, data(), ranks=ranks)


def _error(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def _port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What both ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks(worker, _port(), str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return numbers(Minimum(network(), data(), batch_size=4))


@pytest.mark.parametrize("name", sorted(catalog.MEASURES))
def test_measures_are_those_of_one_process(name, shared, alone):
    """A shard counted twice, or a mean of two means over 12 and 11 samples, is far off."""
    key = next(k for k in alone if k.partition("(")[0] == name)
    for found in shared:
        for one, two in zip(found["measures"][key], alone[key], strict=True):
            assert one == (pytest.approx(two, rel=1e-8, abs=1e-11) if isinstance(two, float) else two)


def test_both_ranks_have_the_same_bits(shared):
    one, two = shared
    assert one["measures"] == two["measures"]
    for key in ("outputs", "product", "eigenvalues"):
        assert torch.equal(one[key], two[key])


def test_the_work_is_shared(shared):
    """And the losses come back complete, in the order of the data."""
    assert sorted(found["samples seen"] for found in shared) == [11, 12]
    minimum = Minimum(network(), data())
    for found in shared:
        torch.testing.assert_close(found["outputs"], minimum[Outputs()].losses)
        torch.testing.assert_close(found["product"], Products(minimum)(torch.ones(len(minimum.parameters))))
        torch.testing.assert_close(found["eigenvalues"], minimum[TopEigenvalues(3, None, 1e-8)].values)


def test_an_error_on_one_rank_is_an_error_on_both(shared):
    for found in shared:
        assert found["errors"][0] == ("DataError", "sample 7 is broken")
        for kind, message in found["errors"][1:]:
            assert kind == "UsageError" and "the ranks have different weights, data or options" in message
        assert found["undefined"] == ("Undefined", "loss '_flat' has no gradient with respect to the parameters")


def _command(*launcher):
    """Numbers of the command line, with the machine's own lines left out."""
    command = [sys.executable, *launcher, "-m", "flatminima", "measure", "--model", "flatminima.models:mlp"]
    command += ["--model-arg", "widths=[64,8,10]", "--data", "digits", "--limit", "40", "--batch-size", "7", "--json"]
    command += ["--measures", "fisher_trace,hessian_trace,expected_sharpness", "--subset", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["measures"]
    return {name: row["value"] for name, row in found.items()}, done.stderr


def test_the_command_under_torchrun():
    """One document on stdout, of the first rank, and each note once."""
    one, _ = _command()
    two, notes = _command("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(_port()))
    assert two == pytest.approx(one, rel=1e-4)
    assert notes.count("no --checkpoint") == 1


def test_undefined_survives_the_journey():
    """Exceptions with more than a message would not come back from a pickle."""
    from flatminima.core.distributed import _sendable

    assert isinstance(_sendable(Undefined("because")), Undefined)
    assert _sendable(None) is None
    odd = UnicodeDecodeError("utf-8", b"x", 0, 1, "odd")
    assert str(_sendable(odd)) == str(odd)


def test_spans_cover_every_position_once():
    class Three(Ranks):
        def __init__(self, rank):
            self.rank, self.size = rank, 3

    for total, multiple in ((7, 1), (23, 5), (2, 1), (9, 100), (0, 4)):
        spans = [Three(rank).span(total, multiple) for rank in range(3)]
        assert [i for a, b in spans for i in range(a, b)] == list(range(total))
        assert all(a % multiple == 0 or a == total for a, _ in spans)


def test_without_a_process_group():
    with pytest.raises(UsageError, match="no process group: call torch"):
        Ranks()
