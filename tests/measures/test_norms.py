"""Parameter count, norms and path norms against enumeration and dense algebra."""

import dataclasses
import itertools
import math

import pytest
import torch
from measure_oracle import blobs, cnn, fitted, generator, mlp, randomise
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from case_networks import Net
from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import (
    frobenius_norm,
    group_norm,
    lipschitz,
    parameter_count,
    path_norm,
    spectral_complexity,
    spectral_norm,
)
from flatminima.statistics import (
    FeedForward,
    FeedForwardNetwork,
    FlatWeights,
    LinearLayer,
    Margins,
    Node,
    OperatorNorms,
    Outputs,
    OutputSummary,
    ParameterCount,
    SortedMargins,
    Weights,
)
from flatminima.statistics.operator_norms import norms_of


def _margin(minimum, fraction=0.05):
    """gamma, from sorted numbers."""
    x, y = minimum.samples.inputs, minimum.samples.targets
    with torch.no_grad():
        scores = minimum.model(x)
    two = scores.topk(2).values
    assert bool((scores.argmax(1) == y).all())
    return float((two[:, 0] - two[:, 1]).sort().values[math.ceil(fraction * len(x)) - 1])


def _paths(weights, biases, p):
    """Sum over all paths of prod |w|^p, path by path; a bias starts paths of its own."""
    total = 0.0
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    for nodes in itertools.product(*map(range, widths)):
        total += math.prod(abs(float(w[b, a])) ** p for w, a, b in zip(weights, nodes, nodes[1:], strict=False))
    for start, bias in enumerate(biases):
        if bias is None:
            continue
        for nodes in itertools.product(*map(range, widths[start + 1 :])):
            rest = zip(weights[start + 1 :], nodes, nodes[1:], strict=False)
            total += abs(float(bias[nodes[0]])) ** p * math.prod(abs(float(w[b, a])) ** p for w, a, b in rest)
    return total


def _linear(model):
    layers = [m for m in model if isinstance(m, nn.Linear)]
    return [m.weight.detach() for m in layers], [None if m.bias is None else m.bias.detach() for m in layers]


@pytest.fixture(params=[True, False], ids=["biases", "no biases"])
def network(request):
    model = mlp(4, 5, 3, 3, bias=request.param)
    return fitted(model, blobs(40, 4, 3)[0])


def test_path_norms_by_enumeration(network):
    """Catches biases left out or not raised to the power p, and a root taken twice."""
    weights, biases = _linear(network.model)
    gamma = _margin(network)
    one, two = _paths(weights, biases, 1), _paths(weights, biases, 2)
    found = path_norm(network)
    assert found.value == pytest.approx(math.log(two / gamma**2), rel=1e-10)
    assert found.details["log_path_norm"] == pytest.approx(math.log(math.sqrt(two)), rel=1e-10)
    assert path_norm(network, p=1).value == pytest.approx(math.log(one**2 / gamma**2), rel=1e-10)
    capacity = two * 4**3 * 5 * 3 * 3 / gamma**2
    assert path_norm(network, normalise="capacity").value == pytest.approx(math.log(capacity), rel=1e-10)
    capacity = one**2 * 4**3 / gamma**2
    assert path_norm(network, p=1, normalise="capacity").value == pytest.approx(math.log(capacity), rel=1e-10)


def test_products_of_norms_by_dense_algebra(network):
    weights, _ = _linear(network.model)
    gamma = _margin(network, 0.2)
    frobenius = math.prod(float((w**2).sum()) for w in weights) / gamma**2
    spectral = math.prod(float(torch.linalg.svdvals(w)[0]) ** 2 for w in weights) / gamma**2
    options = {"fraction": 0.2, "normalise": "figure"}
    assert frobenius_norm(network, **options).value == pytest.approx(math.log(frobenius), rel=1e-10)
    assert spectral_norm(network, **options).value == pytest.approx(math.log(spectral), rel=1e-10)
    assert frobenius_norm(network, fraction=0.2).value == pytest.approx(math.log(frobenius * 4**3), rel=1e-10)
    assert spectral_norm(network, fraction=0.2).value == pytest.approx(math.log(spectral * 5 * 3 * 3), rel=1e-10)


def test_the_layers_in_the_details_multiply_to_the_value(network):
    for measure in (frobenius_norm, spectral_norm):
        found = measure(network)
        assert len(found.details["layers"]) == 3
        assert found.value == pytest.approx(sum(found.details["layers"].values()) - 2 * found.details["log_margin"])


def test_a_convolutional_network_is_its_unrolled_matrix():
    """BatchNorm folded, strides and padding: the path norm of the network written out as dense layers.

    Catches a BatchNorm that is left in the middle, and averaging that keeps its weight 1/k at p = 2.
    """
    model = cnn()
    x = torch.randn(30, 2, 7, 6, generator=generator(8), dtype=torch.float64)
    minimum = fitted(model, x)
    gamma = _margin(minimum)
    first, norm, _, second, *_, head = model
    scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    zero = torch.zeros(1, 2, 7, 6, dtype=torch.float64)
    folded = torch.func.jacrev(lambda t: norm(first(t)))(zero).flatten(4).reshape(-1, 84)
    bias = norm(first(zero)).detach().flatten()
    shape = first(zero).shape
    inner = torch.func.jacrev(second)(torch.zeros(shape, dtype=torch.float64)).reshape(-1, bias.numel())
    weights = [folded.detach(), inner.detach(), head.weight.detach()]
    biases = [bias, None, head.bias.detach()]
    for p in (1, 2):
        signal = torch.ones(84, dtype=torch.float64)
        for w, b in zip(weights, biases, strict=True):
            signal = w.abs().pow(p) @ signal + (0 if b is None else b.abs().pow(p))
        expected = 2 / p * math.log(float(signal.sum())) - 2 * math.log(gamma)
        assert path_norm(minimum, p=p).value == pytest.approx(expected, rel=1e-9)
    matrices = [first.weight.detach().flatten(1) * scale.unsqueeze(1), second.weight.detach().flatten(1), weights[2]]
    product = math.prod(4 * float((m**2).sum()) for m in matrices) / gamma**2
    found = frobenius_norm(minimum)
    assert found.value == pytest.approx(math.log(product), rel=1e-9)
    assert found.details["folded"] == 1


NETWORK = FeedForwardNetwork(
    (LinearLayer("a", torch.tensor([[3.0, 4.0]]).double()), LinearLayer("b", torch.tensor([[2.0], [0.0]]).double())),
    log_path_norm_1=math.log(14.0),
    log_path_norm_2=math.log(10.0),
    folded=0,
    max_pooled=False,
)


def _given(margins, network=NETWORK):
    outputs = OutputSummary(torch.zeros(len(margins)).double(), torch.tensor(margins).double())
    found = SortedMargins(torch.tensor(sorted(margins)).double(), "sample")
    chain = tuple(Node("same", (i - 1,), layer) for i, layer in enumerate(network.layers))
    norms = norms_of(dataclasses.replace(network, graph=chain))
    return Fixed({FeedForward(): network, Outputs(): outputs, Margins(): found, OperatorNorms(): norms})


def test_closed_forms_from_given_numbers():
    """Row (3, 4) then column (2, 0): norms 5 and 2, paths 6 + 8 and 36 + 64; the margin is 1/2."""
    given = _given([0.5, 4.0])
    assert frobenius_norm(given, normalise="figure").value == pytest.approx(math.log(4 * 25 * 4))
    assert frobenius_norm(given).value == pytest.approx(math.log(4 * 100 * 16))
    assert spectral_norm(given, normalise="figure").value == pytest.approx(math.log(4 * 25 * 4))
    assert spectral_norm(given).value == pytest.approx(math.log(4 * (1 * 25) * (2 * 4)))
    assert path_norm(given).value == pytest.approx(math.log(4 * 100))
    assert path_norm(given, p=1).value == pytest.approx(math.log(4 * 14**2))
    assert path_norm(given, p=1, normalise="capacity").value == pytest.approx(math.log(4 * 28**2 * 4))
    assert path_norm(given, normalise="capacity").value == pytest.approx(math.log(4 * 100 * 16 * 1 * 2))


def test_a_batchnorm_of_its_own_is_a_diagonal_map():
    layer = LinearLayer("bn", torch.tensor([[0.5, -3.0, 1.0]]).double(), diagonal=True)
    given = _given([1.0], FeedForwardNetwork((layer,), 0.0, 0.0, 0, False))
    assert spectral_norm(given, normalise="figure").value == pytest.approx(math.log(9.0))
    assert spectral_norm(given).value == pytest.approx(math.log(9.0))  # no width of its own, in either
    assert path_norm(given, normalise="capacity").value == pytest.approx(math.log(4.0))


def test_a_convolution_has_one_width_in_every_capacity():
    """Channels times positions, 4 x 4 x 3 and 3 x 3 x 1, also where tokens share a dense layer."""
    minimum = fitted(cnn(), torch.randn(30, 2, 7, 6, generator=generator(8), dtype=torch.float64))
    widths = [4 * 4 * 3, 3 * 3 * 1, 3]
    log_widths = sum(map(math.log, widths))
    for measure, exponent in ((spectral_norm, 1.0), (path_norm, 1.0)):
        capacity, figure = measure(minimum, normalise="capacity"), measure(minimum, normalise="figure")
        assert capacity.details["widths"] == widths
        fours = 0.0 if measure is spectral_norm else 3 * math.log(4)
        assert capacity.value - figure.value == pytest.approx(exponent * log_widths + fours, rel=1e-10)
    capacity, figure = (group_norm(minimum, p=4.0, q=4.0, normalise=n) for n in ("capacity", "figure"))
    expected = sum(map(math.log, widths[:2])) + 3 * math.log(4)  # 2 (1 - 1/4 - 1/4) = 1, hidden layers alone
    assert capacity.value - figure.value == pytest.approx(expected, rel=1e-10)
    assert spectral_norm(minimum, convolutions="kernel").details["widths"] == [4, 3, 3]
    tokens = randomise(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2)), 1)
    pointwise = nn.Sequential(nn.Conv1d(4, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2)).double()
    x = torch.randn(20, 5, 4, generator=generator(3), dtype=torch.float64)
    for net, inputs in ((tokens, x), (pointwise, x.transpose(1, 2))):
        found = path_norm(Minimum(net, (inputs, torch.arange(20) % 2)), over_margin=False, normalise="capacity")
        assert found.details["widths"] == [15, 2]


class Scaled(nn.Module):
    """A factor behind the first layer, or behind its ReLU."""

    def __init__(self, model, factor, late):
        super().__init__()
        self.model, self.factor, self.late = model, factor, late

    def forward(self, x):
        first, relu, second = self.model
        hidden = self.factor * relu(first(x)) if self.late else relu(first(x) * self.factor)
        return second(hidden)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "measure", [frobenius_norm, spectral_norm, group_norm, path_norm, spectral_complexity, lipschitz]
)
def test_a_factor_multiplies_the_product_wherever_it_is_written(measure, late):
    """The same function with the factor in the weights; the ratios of spectral complexity do not see it."""
    model = mlp(4, 5, 3, bias=False)
    scaled = fitted(Scaled(model, -0.3, late), blobs(40, 4, 3)[0])
    with torch.no_grad():
        inside = mlp(4, 5, 3, bias=False)
        inside[0].weight *= 0.3
    options = {"over_margin": False}
    plain = Minimum(inside, (blobs(40, 4, 3)[0], torch.arange(40) % 3))
    found = measure(scaled, **options)
    assert found.value == pytest.approx(measure(plain, **options).value, rel=1e-10)
    if "log_product" in found.details:
        assert found.details["log_product"] == pytest.approx(measure(plain, **options).details["log_product"])


def test_a_factor_of_zero_is_undefined_and_named():
    minimum = Minimum(Scaled(mlp(4, 5, 3), 0.0, True), (blobs(9, 4, 3)[0], torch.arange(9) % 3))
    assert frobenius_norm(minimum, over_margin=False).undefined == (
        "activations are multiplied by 0 ('mul'): the product of norms is 0"
    )


class Written(nn.Module):
    """Parameters in their own layouts: (in, out), a transpose, a kernel of a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 5))
        self.up, self.normed = nn.ConvTranspose1d(5, 2, 3), weight_norm(nn.Linear(6, 3))

    def forward(self, x):
        x = torch.relu(torch.relu(x @ self.w) @ self.v)
        return self.normed(torch.relu(self.up(x.unsqueeze(2))).flatten(1))


def test_initial_weights_are_read_in_the_layout_of_the_layer():
    """And through a parametrization where the network itself is given."""
    trained, start = randomise(Written(), 1), randomise(Written(), 2)
    minimum = Minimum(trained, (blobs(9, 4, 3)[0], torch.arange(9) % 3))
    found = spectral_complexity(minimum, initial=start, over_margin=False).details["ratios"]
    up = torch.autograd.functional.jacobian(lambda x: trained.up(x).flatten(), torch.zeros(1, 5, 1).double())
    pairs = [
        (trained.w, start.w, trained.w), (trained.v, start.v, trained.v),
        (trained.up.weight, start.up.weight, up.reshape(6, 5)),
        (trained.normed.weight, start.normed.weight, trained.normed.weight),
    ]  # fmt: skip
    for value, (a, b, operator) in zip(found.values(), pairs, strict=True):
        expected = (a - b).square().sum() / torch.linalg.matrix_norm(operator, 2) ** 2
        assert value == pytest.approx(float(expected.detach()))
    assert list(found) == ["0: w", "1: v", "2: up", "3: normed"]
    with pytest.raises(UsageError, match=r"lack 'normed.weight': give the network itself"):
        spectral_complexity(minimum, initial=start.state_dict(), over_margin=False)


def test_weights_made_from_several_parameters_have_no_initial_value():
    net = randomise(
        Net(lambda s, x: torch.nn.functional.linear(x, s.a.weight + s.b.weight), a=nn.Linear(4, 3), b=nn.Linear(4, 3)),
        1,
    )
    minimum = Minimum(net, (blobs(9, 4, 3)[0], torch.arange(9) % 3))
    assert spectral_complexity(minimum, over_margin=False).value is not None
    with pytest.raises(UsageError, match="'a, b' are made from several parameters"):
        spectral_complexity(minimum, initial=net, over_margin=False)


@pytest.mark.parametrize("measure", [frobenius_norm, spectral_norm, path_norm])
def test_a_margin_that_is_not_positive_is_undefined(measure):
    """Its square would hide the sign: neighbours rank such networks among the best."""
    for worst in (-0.5, 0.0):
        found = measure(_given([worst, 1.0]))
        assert "margin is not positive" in found.undefined


@pytest.mark.parametrize("measure", [frobenius_norm, spectral_norm, path_norm])
def test_a_layer_of_zeros_is_undefined_not_an_error(measure):
    zero = FeedForwardNetwork((LinearLayer("dead", torch.zeros(2, 2).double()),), -math.inf, -math.inf, 0, False)
    assert measure(_given([1.0], zero)).undefined.endswith("is 0")


def test_a_dead_hidden_layer_leaves_the_paths_of_the_output_bias():
    """Its margin is still positive; the product of norms is 0, whose logarithm is no number."""
    model = mlp(3, 4, 2)
    with torch.no_grad():
        for p in model[0].parameters():
            p.zero_()
    minimum = fitted(model, blobs(9, 3, 2)[0])
    assert frobenius_norm(minimum).undefined == "layer '0' is all zeros: the product of norms is 0"
    b = model[2].bias.detach()
    expected = math.log(float((b**2).sum() / (b[0] - b[1]) ** 2))
    assert path_norm(minimum).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("measure", [frobenius_norm, spectral_norm, path_norm])
def test_unknown_options_are_refused(measure):
    with pytest.raises(UsageError, match="expected 'capacity' or 'figure'"):
        measure(_given([1.0]), normalise="max")
    with pytest.raises(UsageError, match="fraction"):
        measure(_given([1.0]), fraction=2.0)


def test_path_norms_exist_for_1_and_2():
    with pytest.raises(UsageError, match="got p=3"):
        path_norm(_given([1.0]), p=3)


@pytest.mark.parametrize("measure", [frobenius_norm, spectral_norm, path_norm])
def test_an_operation_outside_relu_networks_is_named(measure):
    model = randomise(nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)), 1)
    assert "sigmoid" in measure(fitted(model, blobs(9, 3, 2)[0])).undefined


class Tied(nn.Module):
    """One matrix used twice, and a frozen head: 2 x 2 + 2 weights count, 6 do not."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


def test_parameters_count_tied_ones_once_and_frozen_ones_never():
    x, y = blobs(8, 2, 2)
    found = parameter_count(Minimum(Tied().double(), (x, y)))
    assert (found.value, found.stderr, found.details["frozen"]) == (6.0, None, 6)


def test_parameter_count_of_given_numbers():
    weights = FlatWeights(torch.zeros(3), ("w",), (3,), frozen=2)
    found = parameter_count(Fixed({ParameterCount(): 3, Weights(): weights}))
    assert (found.value, found.details["frozen"]) == (3.0, 2)
