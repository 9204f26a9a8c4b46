"""The audit: re-parameterisations are found, proved on the outputs, and tell apart what is invariant."""

import copy

import pytest
import torch
from torch import nn

from flatminima import Minimum, audit, measure
from flatminima.errors import Undefined, UsageError
from flatminima.models import resnet20
from flatminima.rescaling import Rescaling, _rescaled, rescalings


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randomise(model, seed=1):
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator(seed), dtype=torch.float64))
    return model


def labelled(model, x):
    with torch.no_grad():
        return Minimum(model, (x, model(x).argmax(1)), batch_size=7)


def rows(n=12):
    return torch.randn(n, 3, generator=generator(0), dtype=torch.float64)


def mlp(activation=None):
    layers = [nn.Linear(3, 5), activation or nn.ReLU(), nn.Linear(5, 4), activation or nn.ReLU(), nn.Linear(4, 3)]
    return labelled(randomise(nn.Sequential(*layers)), rows())


def cnn():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    net = randomise(net)
    net[1].running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    net[1].running_var.copy_(torch.tensor([0.5, 1e-9, 2.0]))  # below eps: what is compensated is their sum
    return labelled(net, torch.randn(12, 1, 6, 6, generator=generator(0), dtype=torch.float64))


NAMES = ["parameter_count", "margin", "path_norm", "frobenius_norm", "spectral_norm", "hessian_trace", "pacgen"]


def test_layers_of_a_relu_network():
    """What the literature says of each: path norms and products of norms stay, curvature does not."""
    m = mlp()
    found = audit(m, NAMES)
    (rescaling,) = found.values
    assert (rescaling.kind, rescaling.first, rescaling.second) == ("layer", "0", "2") and rescaling.drift < 1e-12
    verdicts = {name: found.invariant(rescaling, name) for name in NAMES}
    assert verdicts == {
        "parameter_count": True,
        "margin": True,
        "path_norm": True,
        "frobenius_norm": True,
        "spectral_norm": True,
        "hessian_trace": False,
        "pacgen": False,
    }
    one = found.factors.index(1.0)
    direct = measure(m, NAMES)
    for name in NAMES:
        assert found.values[rescaling][name][one].value == pytest.approx(direct[name].value, rel=1e-12)


def test_pacgen_without_epsilon_and_rho_is_invariant():
    """As Wang et al. 2018 say in sec. 5, and only then."""
    from functools import partial

    from flatminima import measures

    net = randomise(nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)))
    m = labelled(net, rows())
    exact = partial(measures.pacgen, diagonal="exact", rho="zero", gamma=0.1, epsilon=0.0)
    found = audit(m, [exact])
    (rescaling,) = found.values
    (name,) = found.values[rescaling]
    assert found.invariant(rescaling, name), found.values


def test_weights_ahead_of_a_batchnorm():
    found = audit(cnn(), ["parameter_count", "path_norm", "hessian_trace"], factors=(0.5, 1.0, 3.0))
    kinds = {r.kind: r for r in found.values}
    assert set(kinds) == {"layer", "batchnorm"}
    norm = kinds["batchnorm"]
    assert (norm.first, norm.second) == ("0", "1") and norm.drift < 1e-10
    assert found.invariant(norm, "parameter_count") and not found.invariant(norm, "hessian_trace")
    assert found.invariant(norm, "path_norm"), "BatchNorm is folded"
    assert (kinds["layer"].first, kinds["layer"].second) == ("1", "3"), "BatchNorm's own scale, then the next layer"


def test_a_resnet_in_float32():
    torch.manual_seed(0)
    net = resnet20().eval()
    m = Minimum(net, (torch.randn(8, 3, 32, 32), torch.arange(8)))
    before = copy.deepcopy(net.state_dict())
    found = rescalings(m, (0.1, 1.0, 10.0))
    assert "batchnorm" in {r.kind for r in found} and all(r.drift < 1e-3 for r in found)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_smooth_networks_have_none():
    with pytest.raises(Undefined, match="smooth activations"):
        audit(mlp(nn.Tanh()), ["margin"])


def test_a_candidate_that_changes_the_function_is_not_taken():
    class Skips(nn.Module):
        """The first layer's output is read twice, so that dividing one reader's weights is not enough."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.a(x).relu()
            return self.c((self.b(h) + h).relu())

    m = labelled(randomise(Skips()), rows())
    assert [(r.first, r.second) for r in rescalings(m)] == []


def test_tied_layers_are_left_alone():
    shared = nn.Linear(3, 3)
    m = labelled(randomise(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(3, 3))), rows())
    assert rescalings(m) == []


def test_a_wrong_rescaling_would_be_seen():
    """The proof itself: a rescaling that is none drifts."""
    m = mlp(nn.Tanh())
    other = _rescaled(m, Rescaling("layer", "0", "2", 0.0), 10.0)
    x = rows()
    assert float((other.model(x) - m.model(x)).detach().abs().max()) > 1e-3


def test_the_tables_fit_a_terminal_and_json():
    import json

    found = audit(cnn(), ["path_norm", "vc_dimension"])
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80 and "moves" not in text and "same" in text
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["rescalings"][0]["measures"]["path_norm"]["invariant"] is True


def test_undefined_measures_stay_undefined():
    found = audit(mlp(), ["distance_from_init"])
    (rescaling,) = found.values
    assert found.spread(rescaling, "distance_from_init") is None
    assert "initial" in found.to_dict()["rescalings"][0]["measures"]["distance_from_init"]["undefined"]


@pytest.mark.parametrize("factors", [(), (1.0,), (0.0, 1.0), (1.0, float("inf"))])
def test_factors_outside_their_range(factors):
    with pytest.raises(UsageError, match="two or more"):
        audit(mlp(), ["margin"], factors=factors)
