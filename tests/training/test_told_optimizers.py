"""What a training tells its optimizer, and what it says of a network or an optimizer that cannot be meant."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from flatminima.errors import UsageError
from flatminima.optim import SAM, PertOPT
from flatminima.training import TrainConfig, Training, train

CONFIG = TrainConfig(epochs=4, batch_size=20, lr=0.1)
MAKE = {
    "sam, start": lambda base, **k: SAM(base, rho=1.0, start_epoch=2, **k),
    "sam, schedule": lambda base, **k: SAM(base, rho=1.0, schedule=lambda epoch: min(1.0, (epoch - 1) / 2), **k),
    "pertopt": lambda base, **k: PertOPT(base, gamma=1.0, **k),
}


def samples():
    g = torch.Generator().manual_seed(5)
    return torch.randn(60, 6, generator=g), torch.randint(0, 3, (60,), generator=g)


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *layers, nn.Tanh(), nn.Linear(16, 3))


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", MAKE)
def test_the_epoch_is_told_where_nobody_counts_it(kind):
    """Else SAM never starts, and PertOPT's noise stays that of the first epoch, the largest."""
    found = []
    for options in ({}, {"steps_per_epoch": 3}):
        model = network()
        opt = MAKE[kind](torch.optim.SGD(model.parameters(), 0.1), **options)
        train(model, *samples(), config=CONFIG, optimizer=opt)
        found.append(flat(model))
    plain = network()
    train(plain, *samples(), config=CONFIG, optimizer=torch.optim.SGD(plain.parameters(), 0.1))
    assert torch.equal(*found)
    assert not torch.equal(found[0], flat(plain))


def test_a_training_that_goes_on_is_in_the_epoch_where_it_was():
    whole, states = network(), []
    opt = MAKE["pertopt"](torch.optim.SGD(whole.parameters(), 0.1))
    training = Training(whole, *samples(), config=CONFIG, optimizer=opt)
    training.run(on_step=lambda t: states.append(t.state_dict()) if t.steps == 7 else None)
    again = network()
    other = Training(
        again, *samples(), config=CONFIG, optimizer=MAKE["pertopt"](torch.optim.SGD(again.parameters(), 0.1))
    )
    other.load_state_dict(states[0])
    assert other.optimizer.epoch == 3
    other.run()
    assert torch.equal(flat(whole), flat(again))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(16), nn.Dropout(0.3)])
def test_a_network_in_eval_mode_is_noticed_and_comes_back_so(layer):
    """Its statistics would stay those of the start without a word."""
    model = network(layer).eval()
    with pytest.warns(UserWarning, match=r"trains in eval\(\) mode"):
        train(model, *samples(), config=CONFIG)
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_is_frozen_on_purpose_is_not(frozen):
    model = network(nn.BatchNorm1d(16))
    model[1].train(not frozen)
    plain = network(nn.Dropout(0.0)).eval()  # of which eval mode changes nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for some in (model, plain):
            train(some, *samples(), config=CONFIG)
    assert model.training
    assert model[1].training is not frozen


def test_an_optimizer_without_a_rate_has_no_schedule():
    """transformers' Adafactor has lr=None by default; a TypeError does not tell what to do."""
    model = network()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    opt.param_groups[0]["lr"] = None
    with pytest.raises(UsageError, match="lr=None, which chooses its rate by itself"):
        train(model, *samples(), config=CONFIG, optimizer=opt)
