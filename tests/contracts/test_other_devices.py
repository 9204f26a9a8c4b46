"""Networks and data on another device than the CPU: nothing in the library forgets where a tensor lies."""

import warnings
from functools import partial

import pytest
import torch
from measure_networks import SMALL, generator
from test_every_network import MEASURES, NETWORKS, small
from torch import nn

from flatminima import Minimum, audit, certify, measure, optim
from flatminima.certification import Recipe, certify_around
from flatminima.errors import ModelError
from flatminima.landscape import directions, landscape
from flatminima.models import build
from flatminima.studies import STUDIES
from flatminima.studies.images import on
from flatminima.training import TrainConfig, Training, base_optimizer, method, train
from simulated_device import DEVICE, SimulatedDevice

pytestmark = pytest.mark.apart
CLOSE = 1e-3  # relative: kernels are the CPU's, but sums may be taken in another order


FEWEST = {"draws": 2, "probes": 1, "samples": 5, "steps": 2, "subset": 3, "trials": 2}


def _least(name):
    """A measure that does each thing, and few of them twice."""
    function, options = small(name).func, SMALL.get(name, {})
    return partial(function, **options | {k: v for k, v in FEWEST.items() if k in options})


def _moved(data, device):
    return (data[0].to(device), data[1].to(device)) if isinstance(data, tuple) else data


def _measured(key, device=None, data_there=False):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns about is not ours
        torch.manual_seed(0)
        model, data, loss = NETWORKS[key][0]()
        model = model.eval() if device is None else model.eval().to(device)
        data = _moved(data, device) if data_there else data
        return measure(Minimum(model, data, loss, batch_size=8), [_least(name) for name in MEASURES])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["mlp", "vgg", "pre-activation resnet", "gpt2"])
def test_every_measure_has_the_same_value_there(key):
    """With data of the CPU that is moved a batch at a time, and with data there."""
    here = _measured(key)
    for data_there in (False, True) if key in ("mlp", "vgg") else (False,):
        with SimulatedDevice():
            there = _measured(key, "mps", data_there)
        for (name, a), (other, b) in zip(here.items(), there.items(), strict=True):
            assert name == other and (a.undefined is None) == (b.undefined is None), (name, a.undefined, b.undefined)
            if a.undefined is None:
                assert b.value == pytest.approx(a.value, rel=CLOSE, abs=1e-6), name


def _data():
    return torch.randn(40, 1, 8, 8, generator=generator(0)), torch.arange(40) % 3


def _cnn(device=None):
    model = build("small_cnn", seed=0, channels=1, image_size=8, classes=3, width=4)
    return model if device is None else model.to(device)


@pytest.mark.parametrize("name", ["plain", "pertopt", "sam", "fisher_trace"])
def test_training_goes_on_there_to_the_weights_of_the_cpu(name):
    def trained(device):
        (x, y), model = _data(), _cnn(device)
        x, y = (x, y) if device is None else (x.to(device), y.to(device))
        options = {"gamma": 1e-30, "eps": 0.0} if name == "pertopt" else {}  # its noise is each device's own
        base = base_optimizer("sgd", model.parameters(), 0.05, {"momentum": 0.9})
        chosen = method(name, model, base, options, steps_per_epoch=3)
        config = TrainConfig(epochs=2, batch_size=16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            training = Training(model, x, y, config=config, optimizer=chosen.optimizer, backward=chosen.backward)
            states = []
            training.run(on_step=lambda at: states.append(at.state_dict()) if at.steps == 2 else None)
            training.load_state_dict(states[0])
            training.run()
        return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])

    here = trained(None)
    with SimulatedDevice():
        there = trained("mps")
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-6)


def test_perturbed_weights_are_drawn_there():
    with SimulatedDevice():
        model = nn.Linear(4, 3).to("mps")
        optimizer, x = optim.PertOPT(torch.optim.SGD(model.parameters(), 0.1), gamma=0.5, beta2=1e9), _data()[0]
        x = x[:, 0, 0, :4].to("mps")
        moved = []
        for _ in range(3):
            before = model.weight.detach().clone()
            with optimizer.perturbed():
                moved.append(not torch.equal(model.weight, before))
                model(x).square().mean().backward()
            assert torch.equal(model.weight, before)
            optimizer.step()
        assert moved[-1] and model.weight.device == DEVICE


def _relu_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def test_audit_and_landscape_there():
    with SimulatedDevice():
        minimum = Minimum(_relu_network().to("mps"), _data())
        found = audit(minimum, ["hessian_trace", "path_norm"])
        along = [direction for kind in ("filter", "eigenvectors") for direction in directions(minimum, kind, 1)]
        drawn = landscape(minimum, along, steps=3)
    assert found and torch.isfinite(torch.as_tensor(drawn.losses)).all()


@pytest.mark.parametrize("data_there", [True, False])
def test_certificate_there(data_there):
    x, y = (torch.cat([t] * 10) for t in _data())
    recipe = Recipe(epochs=1, prior=TrainConfig(epochs=1), passes=2)
    here = certify(_relu_network(), (x, y), recipe=recipe, score=True)
    with SimulatedDevice():
        data = (x.to("mps"), y.to("mps")) if data_there else (x, y)
        there = certify(_relu_network().to("mps"), data, recipe=recipe, score=True)
    assert there.kl == pytest.approx(here.kl, rel=1e-2) and 0 < there.risk_bound <= 1


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["fisher_laplace", "diagonal_laplace"])
def test_certificate_around_a_minimum_there(posterior):
    def found(model):
        return certify_around(Minimum(model, _data()), posterior, prior=_relu_network, draws=40, score=True)

    here = found(_relu_network())
    with SimulatedDevice():
        there = found(_relu_network().to("mps"))
    assert there.kl == pytest.approx(here.kl, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_studies_run_there(name):
    config = STUDIES[name].list_runs("smoke")[-1]
    here = STUDIES[name].run(config, {"digits": "digits"})
    with SimulatedDevice(), on("mps"):
        there = STUDIES[name].run(config, {"digits": "digits"})
    assert there.keys() == here.keys()


def test_a_model_left_behind_is_an_error_and_not_a_number():
    x, y = _data()
    with SimulatedDevice(), pytest.raises(ModelError, match="same device"):
        train(_cnn(), x.to("mps"), y.to("mps"), config=TrainConfig(epochs=1))
