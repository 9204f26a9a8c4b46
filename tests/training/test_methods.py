"""Optimizers, methods and dropout by name; what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatminima.errors import ModelError, UnknownName, UsageError
from flatminima.optim import SAM, PertOPT
from flatminima.training import base_optimizer, method, set_dropout


def parameters():
    return [nn.Parameter(torch.ones(3, 2))]


@pytest.mark.parametrize("name", ["SGD", "adamw", "RMSprop", "NAdam", "adafactor", "torch.optim:Adagrad"])
def test_any_torch_optimizer(name):
    found = base_optimizer(name, parameters(), 0.1)
    assert type(found).__name__.lower() == name.rpartition(":")[2].lower()
    assert found.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamm", {}, "unknown optimizer 'adamm': did you mean 'adam'"),
        ("sgd", {"momentun": 0.9}, "unknown option of optimizer sgd 'momentun': did you mean 'momentum'"),
        ("sgd", {"momentum": -1}, "optimizer sgd refused its options: Invalid momentum value"),
        ("sgd", {"momentum": "x"}, "optimizer sgd refused its options"),
        ("sgd", {"lr": 1.0}, "unknown option of optimizer sgd 'lr'"),
        ("no.such:Thing", {}, "cannot import the optimizer 'no.such:Thing'"),
        ("torch.nn:Linear", {}, "torch.nn:Linear is no subclass of torch.optim.Optimizer"),
    ],
)
def test_optimizers_that_do_not_fit(name, options, message):
    with pytest.raises(UsageError, match=message):
        base_optimizer(name, parameters(), 0.1, options)


def test_methods_by_name():
    model = nn.Linear(2, 3)
    base = base_optimizer("sgd", model.parameters(), 0.1)
    assert method("plain", model, base, steps_per_epoch=5).optimizer is base
    pertopt = method("pertopt", model, base, {"gamma": 0.5}, steps_per_epoch=5, seed=7).optimizer
    assert isinstance(pertopt, PertOPT) and pertopt.seed == 7 and pertopt.clock.steps_per_epoch == 5
    base = base_optimizer("sgd", model.parameters(), 0.1)
    sam = method("sam", model, base, {"adaptive": True}, steps_per_epoch=5).optimizer
    assert isinstance(sam, SAM) and sam.model is model and sam.param_groups[0]["sam_adaptive"]
    fisher = method("fisher_trace", model, base, {"beta": 3.0}, steps_per_epoch=5)
    assert fisher.backward is not None and fisher.modules["fisher_trace"].beta == 3.0 and fisher.diagnostics() == {}


def test_methods_and_options_that_do_not_exist():
    model = nn.Linear(2, 3)
    for name, options, message in (
        ("pertop", {}, "unknown method 'pertop': did you mean 'pertopt'"),
        ("pertopt", {"gama": 1}, "option of method pertopt 'gama': did you mean 'gamma'"),
        ("pertopt", {"steps_per_epoch": 1}, "option of method pertopt 'steps_per_epoch'"),
        ("plain", {"rho": 1}, "got options rho for the method 'plain'"),
        ("sam", {"rho": -1.0}, "got sam_rho=-1.0"),
        ("sam", {"rho": "big"}, "got sam_rho='big'"),
    ):
        base = base_optimizer("sgd", model.parameters(), 0.1)  # a group keeps what it was given, also if refused
        with pytest.raises(UsageError, match=message):
            method(name, model, base, options, steps_per_epoch=5)


def test_dropout_of_all_layers():
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Dropout2d(0.2), nn.AlphaDropout(0.3)))
    set_dropout(model, 0.5)
    assert [m.p for m in model.modules() if hasattr(m, "p")] == [0.5, 0.5, 0.5]
    with pytest.raises(ModelError, match="Linear has no dropout layer"):
        set_dropout(nn.Linear(2, 2), 0.5)
    with pytest.raises(UsageError, match=r"got dropout=1\.0"):
        set_dropout(model, 1.0)
    with pytest.raises(UnknownName):
        method("dropout", model, base_optimizer("sgd", parameters(), 0.1), steps_per_epoch=1)
