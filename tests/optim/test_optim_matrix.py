"""Every framework, method and situation: equal to the algorithm as a plain loop without us, or refused in one line.

The references are transcriptions (matrix_reference.py), float64 but for the switch of dtype, so that equal is 1e-9.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import torch
from matrix_loops import Accelerate, Fabric, Plain, train
from matrix_ranks import work
from matrix_reference import METHODS, SITUATIONS, expected
from matrix_table import FRAMEWORKS, RANKS, REASONS, reason, table

from flatminima.optim import blocks
from processes import FSDP2_ON_CPU, ranks

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
NEEDS = {
    "Lightning, automatic": "lightning.pytorch", "Lightning, manual": "lightning.pytorch", "Fabric": "lightning.fabric",
    "accelerate": "accelerate", "Hugging Face Trainer": "transformers",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")


def cells(frameworks):
    return [pytest.param(f, m, s, id=f"{f}-{m}-{s}") for f in frameworks for m in METHODS for s in SITUATIONS]


def in_one_process(framework, method, situation, folder):
    if framework in ("Lightning, automatic", "Lightning, manual"):
        from matrix_trainers import train_lightning

        return train_lightning(method, situation, folder, manual=framework == "Lightning, manual")
    if framework == "Hugging Face Trainer":
        from matrix_trainers import train_huggingface

        return train_huggingface(method, situation, folder)
    return train(method, situation, {"plain loop": Plain, "Fabric": Fabric, "accelerate": Accelerate}[framework]())


def compare(framework, method, situation, weights):
    starts_afresh = framework.startswith("Lightning")
    if framework == "Lightning, automatic" and situation == "callback before ours":
        situation = "accumulation"  # between whose micro-batches the callback looks
    stops = starts_afresh or framework == "Hugging Face Trainer"
    truth = expected(method, situation, fresh_optimizer=starts_afresh, stops=stops)
    bound = 1e-5 if situation == "dtype switch" else 1e-9
    assert float((weights - truth).norm() / truth.norm()) < bound


@pytest.mark.apart
@pytest.mark.parametrize(("framework", "method", "situation"), cells(f for f in FRAMEWORKS if f not in RANKS))
def test_one_process(framework, method, situation, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS.get(framework, "torch"))
    monkeypatch.setattr(blocks, "CACHE", 32)  # so that weights are pieces of memory and copies, both
    why = reason(framework, method, situation)
    if why is not None:
        with pytest.raises(Exception, match=re.escape(REASONS[why][1])) as caught:
            in_one_process(framework, method, situation, tmp_path)
        assert "\n" not in str(caught.value)
        return
    compare(framework, method, situation, in_one_process(framework, method, situation, tmp_path))


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    """Weights, or the error's text, of every cell of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks(work, port, str(folder))
    return torch.load(folder / "cells.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "method", "situation"), cells(RANKS))
def test_two_ranks(framework, method, situation, of_two_ranks):
    if framework == "FSDP2" and not FSDP2_ON_CPU:
        pytest.skip("FSDP2 of torch 2.6 has no backward pass on a CPU")
    found, why = of_two_ranks[framework, method, situation], reason(framework, method, situation)
    if why is not None:
        assert isinstance(found, str), "it was not refused"
        assert REASONS[why][1] in found and "\n" not in found
        return
    assert not isinstance(found, str), found
    compare(framework, method, situation, found)


def test_the_page_shows_the_table():
    assert table() in PAGE.read_text(), "run tests/optim/matrix_table.py and put its output on the page"
