"""Draws by the example: their distribution, what falls back, what is refused, and the coverage of their bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import bounds
from flatminima.certification.gibbs.risk import clamped_cross_entropy, gibbs_risk
from flatminima.certification.gibbs.stochastic import Prior, StochasticNetwork
from flatminima.errors import ModelError, UsageError

DRAWS = 6_000


def vary(network: StochasticNetwork) -> StochasticNetwork:
    """Different sigmas for different weights, so that a mixed-up one shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for rho in network.log_sigmas:
            rho.copy_(torch.rand_like(rho) - 2.0)
    return network


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, padding=1, groups=2), nn.Tanh(), nn.Conv2d(4, 2, 2, bias=False, dilation=2), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


class Tokens(nn.Module):
    """A linear layer and a norm over positions, which share its weights within an example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 3), nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x.reshape(len(x), 4, 4))).mean(1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Folded(nn.Module):
    """Positions folded into the batch: noise by the row would draw new weights for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 2)).reshape(len(x), -1, 3).sum(1)


NETWORKS = [
    pytest.param(lambda: nn.Sequential(nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)), (16,), id="mlp"),
    pytest.param(conv_net, (2, 3, 3), id="convolutions"),
    pytest.param(norm_net, (1, 5, 5), id="norms"),
    pytest.param(Tokens, (16,), id="tokens"),
]


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_outputs_are_distributed_as_with_whole_network_draws(make, shape) -> None:
    """Mean and covariance over the classes; a convolution with noise on its outputs would fail in the covariance."""
    torch.manual_seed(0)
    network = vary(StochasticNetwork(make(), 0.1))
    x = torch.randn(1, *shape)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network.probe(x.expand(3, *shape))
        assert network.by == "example", network.reason
        by_example = network(x.expand(DRAWS, *shape), g).double().numpy()
        whole = torch.cat([network.drawn(x, g) for _ in range(DRAWS)]).double().numpy()
    spread = whole.std(0)
    assert np.abs(by_example.mean(0) - whole.mean(0)).max() < 4.5 * spread.max() * math.sqrt(2 / DRAWS)
    scale = np.outer(spread, spread)
    assert np.abs((np.cov(by_example.T) - np.cov(whole.T)) / scale).max() < 5 * 2 / math.sqrt(DRAWS)


def test_two_positions_of_a_convolution_covary_as_their_kernel_says() -> None:
    """Closed form: Cov(y_a, y_b) = sum_k sigma_k^2 x_(a+k) x_(b+k) + sigma_bias^2."""
    network = vary(StochasticNetwork(nn.Sequential(nn.Conv1d(1, 1, 2), nn.Flatten()), 0.1))
    x = torch.tensor([[[1.0, -2.0, 3.0]]])
    with torch.no_grad():
        y = network(x.expand(50_000, 1, 3), torch.Generator().manual_seed(0)).double().numpy()
    s, b = (rho.exp().square().flatten().double() for rho in network.log_sigmas)
    windows = torch.tensor([[1.0, -2.0], [-2.0, 3.0]], dtype=torch.float64)
    truth = (windows * s @ windows.T + b).detach().numpy()
    assert np.abs(np.cov(y.T) - truth).max() < 5 * truth.max() * 2 / math.sqrt(50_000)


def test_examples_are_independent_draws() -> None:
    network = vary(StochasticNetwork(nn.Linear(3, 2), 0.1))
    x = torch.ones(2, 3)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = torch.stack([network(x, g)[:, 0] for _ in range(2_000)]).numpy()
    assert abs(np.corrcoef(outputs.T)[0, 1]) < 4 / math.sqrt(2_000)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Tied, "used twice"),
        (Folded, "its rows are not the examples"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU()), "outside of its layer"),
    ],
    ids=["tied", "folded", "unknown"],
)
def test_what_cannot_be_drawn_by_the_example_is_drawn_by_the_batch(make, says) -> None:
    network = StochasticNetwork(make(), 0.1)
    x, y = torch.randn(12, 4), torch.zeros(12, dtype=torch.long)
    network.probe(x)
    assert (network.by, says in network.reason) == ("batch", True)
    risk = gibbs_risk(network, x, y, passes=3, batch_size=5)
    assert (risk.by, risk.draws) == ("batch", 9)  # twelve samples in batches of four


def test_a_pass_over_n_examples_is_n_draws() -> None:
    network = StochasticNetwork(nn.Linear(4, 2), 0.1)
    risk = gibbs_risk(network, torch.randn(12, 4), torch.zeros(12, dtype=torch.long), passes=3, batch_size=5)
    assert (risk.by, risk.draws) == ("example", 36)


def test_the_bound_from_draws_by_the_example_covers() -> None:
    """Of 1,000 repetitions, kl^-1(mean, ln(1/delta)/draws) lies below the exact Gibbs error in at most delta.

    Examples of very different difficulty: their losses are independent, not identically distributed.
    """
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [0.15]]))
    network = StochasticNetwork(net, 0.1)
    x = torch.tensor([[-1.0]] + [[1.0]] * 19)  # w1 - w0 ~ N(0.15, 2 * 0.1^2), scaled by x
    y = torch.ones(20, dtype=torch.long)
    wrong = 0.5 * math.erfc(0.15 / (0.1 * math.sqrt(2)) / math.sqrt(2))
    truth = (19 * wrong + (1 - wrong)) / 20
    risks = np.array([gibbs_risk(network, x, y, seed=seed).error for seed in range(1_000)])
    assert abs(risks.mean() - truth) < 4 * risks.std() / math.sqrt(1_000)
    violations = (np.asarray(bounds.monte_carlo_risk(risks, 20, 0.1)) < truth).mean()
    assert violations <= 0.1


def test_kl_is_the_closed_form_and_zero_at_the_prior() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    network = StochasticNetwork(model, 0.2)
    prior = Prior({n: p.detach().clone() for n, p in model.named_parameters()}, 0.2)
    assert network.exact_kl(prior) == pytest.approx(0.0, abs=1e-6)  # sigma is stored as a float32 logarithm
    vary(network)
    with torch.no_grad():
        network.means[0].add_(0.05)
    with torch.no_grad():
        q = [
            torch.distributions.Normal(m.double(), r.double().exp())
            for m, r in zip(network.means, network.log_sigmas, strict=True)
        ]
        p = [torch.distributions.Normal(m.double(), 0.2) for m in prior.means.values()]
    truth = sum(float(torch.distributions.kl_divergence(a, b).sum()) for a, b in zip(q, p, strict=True))
    assert network.exact_kl(prior) == pytest.approx(truth, rel=1e-9)
    assert network.kl(prior).item() == pytest.approx(truth, rel=1e-5)


def test_an_open_prior_has_the_sigma_of_least_divergence() -> None:
    torch.manual_seed(0)
    network = vary(StochasticNetwork(nn.Linear(3, 2), 0.2))
    prior = Prior({n: torch.zeros_like(m) for n, m in zip(network.names, network.means, strict=True)}, None)
    best = network.best_sigma(prior)
    least = network.exact_kl(Prior(prior.means, best))
    assert network.kl(prior).item() == pytest.approx(least, rel=1e-5)
    assert all(network.exact_kl(Prior(prior.means, best * f)) > least for f in (0.97, 1.03))


def test_frozen_features_with_a_stochastic_head() -> None:
    torch.manual_seed(0)
    model = conv_net()
    network = StochasticNetwork(model, 0.3, ("4.weight", "4.bias"))
    x = torch.randn(6, 2, 3, 3)
    with torch.no_grad():
        y = network(x.repeat(2_000, 1, 1, 1), torch.Generator().manual_seed(0)).reshape(2_000, 6, 3)
        features = model[:4](x)
    variance = 0.09 * (features.square().sum(1) + 1)
    assert torch.allclose(y.var(0).mean(1), variance, rtol=0.1)
    assert torch.equal(network.mean_network(x), model(x))


def test_the_model_is_not_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    network = StochasticNetwork(model, 0.1, ("0.weight",))
    with torch.no_grad():
        network.means[0].add_(1.0)
    network(torch.randn(5, 4)).sum().backward()
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not network.train().training


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x))  # on in eval mode as well


class Centred(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Noisy, "dropout or other noise is left on"),
        (Centred, "depends on the others of its batch"),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)), "running statistics"),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (2, 1))), "needs logits"),
    ],
    ids=["noisy", "centred", "batch statistics", "shape"],
)
def test_networks_that_have_no_certificate_are_refused(make, says) -> None:
    with pytest.raises(ModelError, match=says):
        StochasticNetwork(make(), 0.1).probe(torch.randn(6, 4))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_sigmas_that_are_none_are_refused(sigma: float) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        StochasticNetwork(nn.Linear(2, 2), sigma)
    with pytest.raises(UsageError, match="must be positive"):
        Prior({}, sigma)


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="known: weight, bias"):
        StochasticNetwork(nn.Linear(2, 2), 0.1, ("nothing",))


def test_the_clamped_cross_entropy_is_that_of_the_bounds() -> None:
    torch.manual_seed(0)
    logits, y = 8 * torch.randn(50, 3, dtype=torch.float64), torch.randint(0, 3, (50,))
    p = logits.softmax(1)[torch.arange(50), y].numpy()
    assert np.allclose(
        clamped_cross_entropy(logits, y, 1e-3).numpy(), bounds.bounded_cross_entropy(p, 1e-3), atol=1e-12
    )


class Cutting(nn.Module):
    """Cuts its inputs off where they lie, and leaves rows above a level out of its layer."""

    def __init__(self, level: float = math.inf) -> None:
        super().__init__()
        self.layer, self.level = nn.Linear(4, 2), level

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5).clamp_(-0.2, 0.2)
        out, kept = x.new_zeros(len(x), 2), x[:, 0] < self.level
        out[kept] = self.layer(x if bool(kept.all()) else x[kept])
        return out


def test_a_network_that_writes_its_inputs_leaves_the_callers_as_they_are() -> None:
    """Every way to call it, and the same numbers each time: halved twice they would be others."""
    torch.manual_seed(0)
    network, x = StochasticNetwork(Cutting(), 0.1), torch.randn(12, 4)
    kept, y = x.clone(), torch.zeros(12, dtype=torch.long)
    first = network.mean_network(x)
    one, two = (gibbs_risk(network, x, y, passes=2, batch_size=4) for _ in range(2))
    assert network.by == "example" and network.writes_inputs and one == two
    with torch.no_grad():
        network(x), network.drawn(x), network(x, kernels_by_batch=True)
    assert torch.equal(x, kept) and torch.equal(network.mean_network(x), first)
    plain = StochasticNetwork(nn.Linear(4, 2), 0.1)
    plain.probe(x)
    assert not plain.writes_inputs  # whose inputs are not copied at each pass


def test_rows_left_out_in_the_middle_of_the_draws_are_refused() -> None:
    """Batches may be chosen before the draws alone: by what they give, the bound would be of the better of two."""
    network, x = StochasticNetwork(Cutting(0.19), 0.1), torch.zeros(1_000, 4)
    x[500] = 1.0  # between those that are looked at
    with pytest.raises(ModelError, match=r"its rows are not the examples\): apply each layer to every row") as raised:
        gibbs_risk(network, x, torch.zeros(1_000, dtype=torch.long))
    assert "\n" not in str(raised.value)


def test_outputs_in_a_dictionary_are_refused_by_name() -> None:
    class Named(Noisy):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(x)}

    with pytest.raises(ModelError, match=r"got an output dict; a certificate needs logits"):
        StochasticNetwork(Named(), 0.1).probe(torch.randn(6, 4))
