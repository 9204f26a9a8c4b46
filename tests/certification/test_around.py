"""Certificates around an existing minimum: arithmetic, coverage, random labels, and everything that is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from two_blobs import blobs, linear

from flatminima import Minimum, bounds
from flatminima.certification import Certificate, Scales, Union, certify, certify_around
from flatminima.certification.gibbs.outputs import class_labels
from flatminima.certification.gibbs.posteriors import (
    POSTERIORS,
    DiagonalGaussian,
    EigenDecomposition,
    UniformBox,
    family,
)
from flatminima.certification.gibbs.risk import risk_of
from flatminima.core.perturbation import Relative
from flatminima.data import load_tensors
from flatminima.errors import DataError, FlatMinimaError, ModelError, UnknownName, UsageError
from flatminima.training import TrainConfig, train

pytestmark = pytest.mark.slow

WIDE = Scales((0.1, 0.4, 1.6))


def around(
    posterior: str = "gaussian", data: Any = None, model: nn.Module | None = None, **options: Any
) -> Certificate:
    defaults: dict[str, Any] = {"prior": "zero", "scales": WIDE, "draws": 64}
    minimum = Minimum(model or linear(), blobs(64, 0) if data is None else data)
    return certify_around(minimum, posterior, **(defaults | options))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_arithmetic_is_the_pipeline_of_kl_inverses(posterior: str) -> None:
    c = around(posterior, union=Union(candidates=3, evaluations=2), delta=0.05, delta_mc=0.02)
    assert c.is_certificate
    upper = bounds.kl_inverse(c.empirical_risk, math.log(6 / 0.02) / c.draws)  # three centres, two certificates each
    assert c.monte_carlo_upper == pytest.approx(upper, rel=1e-9)
    b = (c.kl + math.log(3) + math.log(2 * 8 * 6 / 0.03)) / 64  # three scales
    assert c.risk_bound == pytest.approx(bounds.kl_inverse(upper, b), rel=1e-9)
    assert c.penalty == pytest.approx(math.log(3))
    assert sum(c.terms().values()) == pytest.approx(c.risk_bound, rel=1e-12)
    assert c.delta == 0.05 and c.delta_mc == 0.02
    assert c.kl > 0 and c.n == 64 and c.sigma in WIDE.values
    assert c.draws_by == ("example" if posterior in ("gaussian", "diagonal_laplace") else "batch")
    assert c.cross_entropy is not None and c.cross_entropy_bound is not None
    assert 0 <= c.cross_entropy <= c.cross_entropy_bound <= 1


def test_the_risk_is_that_of_the_posterior() -> None:
    """One input, one direction: P(w1 > w0) is known, for weights drawn by the example and by the batch."""
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [0.2]]))
    minimum = Minimum(net, (torch.ones(64, 1), torch.ones(64, dtype=torch.long)))
    distance = torch.zeros(2).double()
    half = torch.full((2,), 0.3)
    truth = {
        DiagonalGaussian(distance, 1.0, half): 0.5 * math.erfc(0.2 / (0.3 * math.sqrt(2)) / math.sqrt(2)),
        UniformBox(distance, 1.0, half): (0.6 - 0.2) ** 2 / 2 / 0.36,  # a triangle: of two uniforms' difference
    }
    for q, expected in truth.items():
        risk = risk_of(minimum, q, draws=4000, batch_size=1, p_min=1e-5, seed=0)
        assert risk.draws >= 4000
        assert risk.error == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / risk.draws))


def test_images_that_share_weights_are_one_draw() -> None:
    minimum = Minimum(linear(), blobs(64, 0))
    q = UniformBox(torch.zeros(6).double(), 1.0, torch.full((6,), 0.1))
    assert risk_of(minimum, q, draws=9, batch_size=20, p_min=1e-5, seed=0).draws == 12  # 16 divides 64, 20 does not


@pytest.mark.parametrize(("posterior", "eta"), [("gaussian", 1.0), ("fisher_laplace", 0.3)])
def test_coverage_where_the_risk_is_known(posterior: str, eta: float) -> None:
    """Fair coins as labels: every Q errs on half of new samples, and this one on few of those it was made from.

    Without KL, or with 8 n for n, every one of these bounds lies below 1/2.
    """
    violations = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randn(32, 64, generator=g), torch.randint(0, 2, (32,), generator=g)
        net = nn.Linear(64, 2, bias=False)
        with torch.no_grad():
            net.weight.copy_(0.15 * torch.tensor([[-1.0], [1.0]]) * ((2 * y - 1).unsqueeze(1) * x).sum(0))
        c = around(
            posterior, (x, y), net, scales=1.0, etas=(eta,), delta=0.2, delta_mc=0.1, draws=256, batch_size=1, seed=seed
        )
        assert c.empirical_risk < 0.25
        violations += c.risk_bound < 0.5
    assert violations <= 4


@pytest.fixture(scope="module")
def memorised() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A network with permuted labels of the digits, its samples, and the test set."""
    torch.manual_seed(1)
    x, y = load_tensors("digits", "train", limit=200)
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    net = maker()
    train(net, x, y, config=TrainConfig(lr=0.1, batch_size=20, epochs=100, seed=0))
    assert bool((net.eval()(x).argmax(1) == y).all())
    return net, (x, y), load_tensors("digits", "test")


def fresh() -> nn.Module:
    return nn.Linear(2, 2)


def maker() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def test_random_labels_are_certified_by_none_of_them_and_by_jia_and_su(memorised: Any) -> None:
    """A network that memorised permuted labels errs on 9 of 10 new samples, and every certificate says so.

    Theorem 1 of Jia & Su "certifies" it: its prior is a set that the samples determine (erratum J-l).
    """
    net, data, test = memorised
    held_out = float((net(test[0]).argmax(1) != test[1]).float().mean())
    assert held_out > 0.8
    minimum = Minimum(net, data)
    for posterior in POSTERIORS:
        c = certify_around(minimum, posterior, prior=maker, draws=100, scales=Scales.series(4.0, 2.0, 12))
        assert c.is_certificate and c.risk_bound > held_out, posterior
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(net(data[0]), data[1]))
    weights = sum(p.numel() for p in net.parameters())
    assert weights > 9 * len(data[1])  # so that the Fisher matrix is singular, ln det = -inf; -1e6 stands for it
    assert float(bounds.jia_su(loss, -1e6, weights, 1.0, len(data[1]), 0.05)) < 0.5 < held_out


def test_a_prior_at_the_trained_weights_would_certify_random_labels(memorised: Any) -> None:
    """What the refusals protect from: the same number is a score there, and wrong as a certificate."""
    net, data, _ = memorised
    minimum = Minimum(net, data)
    with pytest.raises(UsageError, match=r"trained network itself.*score=True"):
        certify_around(minimum, prior=copy.deepcopy(net))
    c = certify_around(minimum, prior=copy.deepcopy(net), score=True, scales=0.005, draws=100)
    assert not c.is_certificate and str(c).startswith("Score, not a certificate")
    assert c.risk_bound < 0.3 and c.kl < 1e-3
    other = copy.deepcopy(net)
    with torch.no_grad():  # moved a little
        other[1].bias.add_(1e-3)
    assert certify_around(minimum, prior=other, draws=100).standing == "score"  # nothing states where it comes from
    with pytest.raises(UsageError, match="stated to be untrained, but"):
        certify_around(minimum, prior=other, stated="untrained")
    words = certify_around(minimum, prior=other, stated="trained on other digits", draws=100)
    assert words.standing == "conditional"
    assert words.statement.startswith("Conditional certificate: if, as stated, the prior's network is trained on other")


def test_a_prior_from_samples_of_its_own() -> None:
    x, y = blobs(128, 0)
    first, second = (x[:64], y[:64]), (x[64:], y[64:])
    c = around("fisher_laplace", second, prior=linear(0.9), prior_data=first)
    wrong = int((linear()(second[0]).argmax(1) != second[1]).sum())
    assert c.holdout_bound == pytest.approx(float(bounds.binomial_tail_inverse(wrong, 64, 0.05)))
    assert c.prior == "trained on 64 other samples"
    assert around(data=second).holdout_bound >= 0.3  # of the zero network, which answers one class
    with pytest.raises(UsageError, match="the bound's samples are the prior's: 64 of 64 with equal inputs"):
        around(data=second, prior=linear(0.9), prior_data=second)
    with pytest.raises(UsageError, match="32 of 64 with equal inputs"):  # in another order, and half of them
        around(data=second, prior=linear(0.9), prior_data=(x[48:96].flip(0)[:32].clone(), y[48:96].flip(0)[:32]))
    assert not around(data=second, prior=linear(0.9), prior_data=second, score=True).is_certificate
    assert c.standing == "conditional" and "trained on the 64 samples of prior_data" in c.statement
    stated = around(data=second, prior=linear(0.9), prior_data="another corpus")
    assert [a.status for a in stated.assumptions if "prior does not depend" in a.text] == ["stated"]
    assert "trained on another corpus" in str(stated).splitlines()[0]


def test_the_shapes_of_wang_et_al() -> None:
    """Sigma is the papers' function of the Gauss-Newton diagonal, at every eta and scale."""
    minimum = Minimum(linear(), blobs(64, 0))
    from flatminima.statistics import GaussNewtonDiagonal

    h = minimum[GaussNewtonDiagonal()].numpy()
    distance = minimum.parameters.flat(torch.float64)
    kappa = Relative(1.0, 0.1, 0.05)
    k = kappa.of(distance).numpy()
    box = family("uniform", minimum, distance, kappa=kappa, rho=0.2).at(2.0, 30.0)
    assert isinstance(box, UniformBox)
    assert box.sigma.numpy() == pytest.approx(bounds.uniform_sigma(h, 0.2, k, 30.0), rel=1e-6)
    cut: Any = family("truncated_gaussian", minimum, distance, kappa=kappa, rho=0.2, box=2.0).at(0.5, 30.0)
    assert cut.sigma.numpy() == pytest.approx(bounds.truncated_gaussian_sigma(h, 0.2, k, 0.25, 30.0), rel=1e-6)
    assert cut.kappa.numpy() == pytest.approx(k) and cut.box == 2.0
    diagonal: Any = family("diagonal_laplace", minimum, distance).at(0.5, 30.0)
    assert diagonal.sigma.numpy() == pytest.approx((30.0 * h + 4.0) ** -0.5, rel=1e-6)


def test_by_itself_a_box_lies_inside_of_the_priors() -> None:
    c = around("uniform", scales=(1.5, 3.0))
    assert c.kl < math.inf and c.sigma in (1.5, 3.0)
    with pytest.raises(UsageError, match=r"KL is infinite.*up to 1 from"):
        around("uniform", scales=(0.1, 0.5))
    with pytest.raises(UsageError, match="KL is infinite"):
        around("truncated_gaussian", box=0.9)
    assert around("truncated_gaussian", box=2.0).kl < math.inf


def test_scales() -> None:
    assert Scales.of(0.3).penalty(0.3) == 0
    series = Scales.series(1.0, 2.0, 5)
    assert series.penalty(0.25) == pytest.approx(math.log(math.pi**2 * 9 / 6))
    assert math.fsum(Scales.series(terms=1000).shares) == pytest.approx(1, abs=7e-4)
    for bad in ((), (0.0,), (-1.0,), (math.nan,)):
        with pytest.raises(UsageError, match="scales"):
            Scales(bad)
    with pytest.raises(UsageError, match="at most 1"):
        Scales((1.0, 2.0), (0.9, 0.2))
    with pytest.raises(UsageError, match="ratio"):
        Scales.series(ratio=1.0)
    wide, one = around(scales=WIDE), around(scales=(around(scales=WIDE).sigma,))
    assert wide.kl == one.kl and wide.risk_bound > one.risk_bound


class WithStatistics(nn.Module):
    """BatchNorm in eval mode, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen, self.head = nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.frozen(self.norm(x)))
        return out


def test_statistics_of_the_bounds_samples_are_refused() -> None:
    torch.manual_seed(0)
    prior = WithStatistics().eval()
    model = copy.deepcopy(prior)
    with torch.no_grad():
        model.head.weight.add_(0.1)
    assert around(model=model, prior=prior, stated="made elsewhere").standing == "conditional"
    model.train()(blobs(64, 0)[0])
    model.eval()
    with pytest.raises(UsageError, match=r"norm\.running_mean, norm\.running_var differ"):
        around(model=model, prior=prior)
    with pytest.raises(UsageError, match=r"frozen\.weight.*running_mean"):
        around(model=model, prior="zero")
    copied = copy.deepcopy(prior)
    with torch.no_grad():
        copied.head.weight.add_(0.1)
        copied.frozen.weight.add_(0.1)
    with pytest.raises(UsageError, match=r"frozen\.weight differ"):
        around(model=copied, prior=prior)
    assert not around(model=model, prior=prior, score=True).is_certificate


BAD: list[tuple[dict[str, Any], str]] = [
    ({"delta": 0.0}, "delta"),
    ({"delta": 1.0}, "delta"),
    ({"delta": math.nan}, "delta"),
    ({"delta_mc": 0.05}, "delta_mc"),
    ({"draws": 0}, "draws"),
    ({"batch_size": 0}, "batch_size"),
    ({"p_min": 1.0}, "p_min"),
    ({"scales": 0.0}, "scales"),
    ({"scales": (0.1, math.nan)}, "scales"),
    ({"box": 0.0}, "box"),
    ({"posterior": "gausian"}, "did you mean 'gaussian'"),
    ({"posterior": "fisher_laplace", "curvature": "hessian"}, "curvature"),
    ({"posterior": "fisher_laplace", "curvature_samples": 0}, "at least 1"),
    ({"prior": "init"}, "expected a network"),
    ({"prior": nn.Linear(3, 2)}, "architecture"),
    ({"prior": lambda: 3}, "returned int"),
    ({"prior_data": blobs(8, 1)}, "leave it out"),
    ({"stated": "untrained"}, "leave it out"),
    ({"prior": lambda: nn.Linear(2, 2), "stated": "untrained"}, "leave the statement out"),
    ({"prior": lambda: nn.Linear(2, 2), "prior_data": blobs(8, 1)}, "give prior_training="),
    ({"prior": lambda: nn.Linear(2, 2), "prior_training": TrainConfig()}, "without prior_data"),
    ({"prior": linear(), "prior_training": TrainConfig()}, "a function that makes"),
    ({"prior": linear(), "prior_data": "a corpus", "stated": "untrained"}, "two statements"),
    ({"prior": linear(), "prior_data": blobs(8, 1), "stated": "untrained"}, "two statements"),
    ({"data": blobs(7, 0)}, "at least 8"),
    ({"delta": "0.05"}, "got delta='0.05' of type str"),
    ({"draws": 1.5}, "got draws=1.5; expected a whole number of at least 1"),
    ({"batch_size": 1.5}, "got batch_size=1.5"),
    ({"p_min": "a"}, "got p_min='a' of type str"),
    ({"box": "a"}, "got box='a' of type str"),
    ({"rho": None}, "got rho=None of type NoneType"),
    ({"scales": "abc"}, "got scales='abc' of type str"),
    ({"scales": None}, "got scales=None of type NoneType"),
    ({"etas": "a"}, "got etas='a' of type str"),
    ({"kappa": 0.5}, "got kappa of type float; expected a flatminima Relative"),
    ({"prior_fraction": "a"}, "got prior_fraction='a' of type str"),
    ({"prior_training": 3}, "got prior_training of type int"),
    ({"posterior": "fisher_laplace", "curvature_samples": 1.5}, "got curvature_samples=1.5"),
    ({"seed": 1 << 63}, "got seed=9223372036854775808"),
    ({"prior_seed": 1.5}, "got prior_seed=1.5; expected a whole number from"),
    ({"prior": lambda: 1 // 0}, "raised ZeroDivisionError"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[says for _, says in BAD])
def test_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        around(**options)
    assert "\n" not in str(error.value)


def test_seeds_and_scales_of_numpy_are_numbers() -> None:
    one = around(prior=lambda: nn.Linear(2, 2), prior_seed=np.int64(3), seed=np.int64(5), scales=np.array([0.5, 2.0]))
    two = around(prior=lambda: nn.Linear(2, 2), prior_seed=3, seed=5, scales=(0.5, 2.0))
    assert one.risk_bound == two.risk_bound and one.details["prior_seed"] == 3


class InPlace(nn.Module):
    """A line over inputs that it shifts and cuts off where they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.sub_(0.3).clamp_(-1.0, 1.0))
        return out


class Pure(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer((x - 0.3).clamp(-1.0, 1.0))
        return out


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_network_that_writes_its_inputs_leaves_the_callers_data_as_they_are(posterior: str) -> None:
    """Views of them went past `Minimum.forward`: the data were cut off, and the Minimum said that they had changed."""
    x, y = blobs(64, 0)
    found = []
    for kind in (InPlace, Pure):
        data = x.clone(), y.clone()
        torch.manual_seed(0)
        minimum = Minimum(kind().eval(), data)
        # a box around 0 holds the weights of every seed
        found.append(
            certify_around(minimum, posterior, prior=kind, scales=(2.0, 4.0), draws=64, test_data=blobs(64, 1))
        )
        assert torch.equal(data[0], x) and len(minimum.samples) == 64
    assert found[0].risk_bound == found[1].risk_bound and found[0].details["test"] == found[1].details["test"]


def test_what_is_no_classifier_is_refused() -> None:
    x, y = torch.randn(16, 2), torch.arange(16) % 2
    for out, targets, loss, says in (
        (1, torch.randn(16, 1), "mse", "the 0-1 error of a classifier"),
        (5, torch.rand(16, 5), "binary_cross_entropy", "needs one class index a sample"),
        (1, torch.full((16, 1), 0.3), "binary_cross_entropy", "needs labels 0 and 1"),
    ):
        with pytest.raises(UsageError, match=says):
            certify_around(Minimum(nn.Linear(2, out), (x, targets), loss), prior="zero")
    minimum = Minimum(linear(), (x, y))
    with pytest.raises(UsageError, match=r"targets of dtype torch\.complex64 .* one class index a sample"):
        class_labels(y * 1j, minimum.forward(x), minimum.loss)  # whose imaginary parts would be lost
    y[3] = -100
    ignoring = nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(DataError, match="label -100"):
        certify_around(Minimum(nn.Linear(2, 2), (x, y), ignoring), prior="zero")


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="none", weight=torch.tensor([1.0, 9.0])),
    ],
    ids=["label smoothing", "class weights"],
)
def test_the_bound_is_on_the_error_whatever_the_loss_of_training(loss: nn.Module) -> None:
    data = blobs(64, 0)
    plain = around("gaussian", data)
    other = certify_around(Minimum(linear(), data, loss), "gaussian", prior="zero", scales=WIDE, draws=64)
    assert other.is_certificate and other.risk_bound == plain.risk_bound


def test_one_logit_is_a_classifier_of_two() -> None:
    """A logit z is the second class's of (0, z): at small noise, the errors of the network that has both."""
    x, y = blobs(64, 0)
    one = nn.Linear(2, 1)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[2.0, 2.0]]))
        one.bias.zero_()
    minimum = Minimum(one, (x, y.float().unsqueeze(1)), "binary_cross_entropy")
    c = certify_around(minimum, "gaussian", prior="zero", scales=0.01, etas=(1.0,), draws=64)
    assert c.empirical_risk == pytest.approx(float((linear()(x).argmax(1) != y).float().mean()), abs=0.02)


class InTuple(nn.Module):
    """A network that returns (hidden, ...) the way others return tensors."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = linear(), kind

    def forward(self, x: Tensor) -> Any:
        z = self.net(x)
        return {"tuple": (z, x), "dict": {"logits": z, "hidden": x}}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict"])
@pytest.mark.parametrize("posterior", ["gaussian", "uniform"])
def test_outputs_are_taken_apart(kind: str, posterior: str) -> None:
    data = blobs(64, 0)
    minimum = Minimum(InTuple(kind), data, output=0 if kind == "tuple" else None)
    c = certify_around(minimum, posterior, prior="zero", scales=WIDE, draws=64)
    assert c.risk_bound == around(posterior, data).risk_bound


def test_dropout_and_nan_are_refused() -> None:
    with pytest.raises(ModelError, match="training mode"):
        around(model=nn.Sequential(nn.Dropout(0.5), linear()).train())
    broken = linear()
    with torch.no_grad():
        broken.bias[0] = math.nan
    with pytest.raises(FlatMinimaError, match="NaN"):
        around(model=broken)
    with pytest.raises(ModelError, match="finite weights"):
        around(prior=broken)
    with pytest.raises(UnknownName):
        family("cauchy", Minimum(linear(), blobs(8, 0)), torch.zeros(6))


def test_the_same_seed_gives_the_same_number_and_the_model_comes_back() -> None:
    model = linear()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    one, two = (around("fisher_laplace", model=model, prior=fresh).to_dict() for _ in range(2))
    assert one == two
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert one["details"]["directions"] > 0 and isinstance(EigenDecomposition.of(torch.eye(2)), EigenDecomposition)


def test_an_initialisation_that_is_made_here_has_its_seed() -> None:
    c = around(prior=lambda: nn.Linear(2, 2), prior_seed=3)
    assert c.prior == "initial weights of seed 3, no data"
    torch.manual_seed(3)
    assert (
        c.kl
        == around(prior=nn.Linear(2, 2), stated="untrained").kl
        != around(prior=lambda: nn.Linear(2, 2), prior_seed=4).kl
    )


def test_certify_hands_a_minimum_over() -> None:
    minimum = Minimum(linear(), blobs(64, 0))
    one = certify(minimum=minimum, posterior="gaussian", prior=fresh, delta=0.1, evaluations=2, seed=3)
    two = certify_around(minimum, prior=fresh, delta=0.1, union=Union(evaluations=2), seed=3)
    assert one.to_dict() == two.to_dict() and one.evaluations == 2
    assert certify(minimum=minimum, prior=fresh).details["posterior"] == "fisher_laplace"
    with pytest.raises(UsageError, match="needs its prior"):
        certify(minimum=minimum)
    with pytest.raises(UsageError, match="leave the others out"):
        certify(linear(), minimum=minimum, prior=linear)
    with pytest.raises(UsageError, match="prior without a minimum"):
        certify(linear(), blobs(64, 0), prior=linear)


def test_the_error_on_test_data_is_reported_and_test_data_is_no_training_data() -> None:
    data = blobs(64, 0)
    model = linear()
    minimum = Minimum(model, data)
    c = certify_around(minimum, prior=fresh, scales=0.3, test_data=blobs(100, 1))
    assert c.details["test"]["n"] == 100
    wrong = float((model(blobs(100, 1)[0]).argmax(1) != blobs(100, 1)[1]).float().mean())
    assert c.details["test"]["mean_network_error"] == pytest.approx(wrong)
    assert abs(c.details["test"]["error"] - c.empirical_risk) < 0.1
    with pytest.raises(DataError, match="also in the test data"):
        certify_around(minimum, prior=fresh, test_data=data)
