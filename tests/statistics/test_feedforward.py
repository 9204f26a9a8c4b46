"""Path norms and folded layers of ReLU networks against enumerated paths and unrolled matrices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from case_networks import Attention, Net, _scatter
from flatminima import Minimum
from flatminima.errors import Undefined
from flatminima.statistics import FeedForward, FeedForwardNetwork


def network(model: nn.Module, *shape: int, classes: int = 2) -> FeedForwardNetwork:
    model = model.double().eval()
    return Minimum(model, (torch.randn(3, *shape).double(), torch.arange(3) % classes))[FeedForward()]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = make().double().eval()
        _scatter(model)
    return model


def assert_norms(found: FeedForwardNetwork, one: float, two: float) -> None:
    """one: sum over paths of |product|; two: of its square."""
    assert found.log_path_norm_1 == pytest.approx(math.log(one), rel=1e-10)
    assert found.log_path_norm_2 == pytest.approx(0.5 * math.log(two), rel=1e-10, abs=1e-12)


# -- paths enumerated ------------------------------------------------------------------------------------------------


def enumerated(layers: list[nn.Linear], p: int) -> float:
    """Every path from an input or a bias's constant 1 to an output, one product each."""
    total = 0.0
    weights = [layer.weight.tolist() for layer in layers]
    sizes = [len(weights[0][0]), *(len(w) for w in weights)]
    for start in range(len(layers)):  # from the inputs, and from the bias of each layer
        nodes = [range(size) for size in sizes[start:]]
        for path in itertools.product(*nodes):
            product = 1.0
            for k, (source, target) in enumerate(itertools.pairwise(path)):
                product *= weights[start + k][target][source]
            total += abs(product) ** p if start == 0 else 0.0
        bias = layers[start].bias
        if bias is not None:
            for path in itertools.product(*nodes[1:]):
                product = bias.tolist()[path[0]]
                for k, (source, target) in enumerate(itertools.pairwise(path)):
                    product *= weights[start + 1 + k][target][source]
                total += abs(product) ** p
    return total


@pytest.mark.parametrize("bias", [True, False])
def test_every_path_of_an_mlp(bias: bool) -> None:
    model = seeded(lambda: nn.Sequential(
        nn.Linear(3, 4, bias), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2, bias), nn.ReLU(), nn.Linear(2, 2, bias)
    ))  # fmt: skip
    layers = [m for m in model if isinstance(m, nn.Linear)]
    assert_norms(network(model, 3), enumerated(layers, 1), enumerated(layers, 2))


def test_a_network_by_hand() -> None:
    """[1, -2] -> [3] with biases 0.5 and -4: paths 3, -6, 1.5, -4."""
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    for p, values in zip(model.parameters(), ([[1.0, -2.0]], [0.5], [[3.0]], [-4.0]), strict=True):
        p.data = torch.tensor(values)
    found = network(nn.Sequential(model), 2, classes=1)
    assert_norms(found, 3 + 6 + 1.5 + 4, 9 + 36 + 2.25 + 16)
    assert [layer.name for layer in found.layers] == ["0.0", "0.2"]


# -- unrolled --------------------------------------------------------------------------------------------------------


def unrolled(stage: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Matrix and offset of an affine stage, from what it does to each basis vector; no entry sums two weights."""
    size = math.prod(shape)
    with torch.no_grad():
        offset = stage(torch.zeros(1, *shape).double())
        columns = stage(torch.eye(size).double().view(size, *shape)) - offset
    return columns.reshape(size, -1).T, offset.reshape(-1), tuple(offset.shape[1:])


def by_matrices(stages: list[Callable[[Tensor], Tensor]], shape: tuple[int, ...], p: int) -> float:
    paths = torch.ones(math.prod(shape)).double()
    for stage in stages:
        matrix, offset, shape = unrolled(stage, shape)
        paths = matrix.abs() ** p @ paths + offset.abs() ** p
    return float(paths.sum())


POOLS: dict[str, Callable[[], nn.Module]] = {
    "average": lambda: nn.AvgPool2d(2),
    "average, overlapping": lambda: nn.AvgPool2d(3, 1),
    "average, padding counted": lambda: nn.AvgPool2d((2, 3), 2, padding=(1, 1)),
    "average, padding not counted": lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average, overhanging": lambda: nn.AvgPool2d(2, ceil_mode=True),
    "average, another divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((1, 5)),
    "adaptive, windows of unequal sizes": lambda: nn.AdaptiveAvgPool2d((2, 3)),
    "adaptive to one": lambda: nn.AdaptiveAvgPool2d(1),
    "mean": lambda: Net(lambda s, x: x.mean((2, 3))),
    "max": lambda: nn.MaxPool2d(2),
    "max, overlapping and padded": lambda: nn.MaxPool2d(3, 2, padding=1),
    "max, overhanging": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "max, dilated": lambda: nn.MaxPool2d(2, 1, padding=1, dilation=2),
    "max, adaptive": lambda: nn.AdaptiveMaxPool2d((2, 3)),
    "max, over all": lambda: Net(lambda s, x: x.amax((2, 3))),
    "max, by dimension": lambda: Net(lambda s, x: x.max(3).values.max(dim=2)[0]),
    "max, functional": lambda: Net(lambda s, x: F.max_pool2d(x, kernel_size=2, stride=(1, 2))),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    """k elements of weight 1/k are worth k^(1-p); a window's own divisor counts, not the kernel's size."""
    pool = seeded(POOLS[name])
    conv = seeded(lambda: nn.Conv2d(2, 3, 2))
    size = pool(conv(torch.zeros(1, 2, 6, 6).double())).flatten(1).shape[1]
    head = seeded(lambda: nn.Linear(size, 2))
    model = nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), head)
    stages = [conv, pool, lambda x: head(x.flatten(1))]
    found = network(model, 2, 6, 6)
    assert_norms(found, by_matrices(stages, (2, 6, 6), 1), by_matrices(stages, (2, 6, 6), 2))
    assert found.max_pooled == name.startswith("max")


def test_average_pooling_of_four_is_a_quarter() -> None:
    found = network(
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), _ones(nn.Linear(1, 1, bias=False))), 1, 2, 2, classes=1
    )
    assert_norms(found, 1.0, 0.25)


def _ones(layer: nn.Linear) -> nn.Linear:
    nn.init.ones_(layer.weight)
    return layer


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("kind", ["Avg", "Max", "AdaptiveAvg"])
def test_pooling_in_other_dimensions(kind: str, dims: int) -> None:
    pool = getattr(nn, f"{kind}Pool{dims}d")(2)
    shape = (2, 4) if dims == 1 else (2, 4, 2, 2)
    conv = seeded(lambda: getattr(nn, f"Conv{dims}d")(2, 3, 1))
    size = pool(torch.zeros(1, 3, *shape[1:])).flatten(1).shape[1]
    head = seeded(lambda: nn.Linear(size, 2))
    stages = [conv, pool, lambda x: head(x.flatten(1))]
    found = network(nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), head), *shape)
    assert_norms(found, by_matrices(stages, shape, 1), by_matrices(stages, shape, 2))


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": "same", "groups": 2}, {"padding": 2, "padding_mode": "circular"},
                {"stride": 2, "dilation": 2, "bias": False}],
)  # fmt: skip
def test_convolutions(options: dict[str, Any]) -> None:
    conv, head = seeded(lambda: nn.Conv2d(2, 4, 3, **options)), None
    size = conv(torch.zeros(1, 2, 5, 5).double()).flatten(1).shape[1]
    head = seeded(lambda: nn.Linear(size, 2))
    stages = [conv, lambda x: head(x.flatten(1))]
    found = network(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head), 2, 5, 5)
    assert_norms(found, by_matrices(stages, (2, 5, 5), 1), by_matrices(stages, (2, 5, 5), 2))
    assert torch.equal(found.layers[0].matrix, conv.weight.detach().flatten(1))


# -- BatchNorm -------------------------------------------------------------------------------------------------------


def test_batch_norm_is_folded_into_the_map_before_it() -> None:
    """One affine stage, also after Linear, and with or without a bias of its own."""
    for bias in (True, False):
        conv, norm = seeded(lambda b=bias: nn.Conv2d(2, 3, 2, bias=b)), seeded(lambda: nn.BatchNorm2d(3))
        first, last = seeded(lambda b=bias: nn.Linear(12, 4, b)), seeded(lambda: nn.BatchNorm1d(4, affine=False))
        head = seeded(lambda: nn.Linear(4, 2))
        model = nn.Sequential(conv, norm, nn.ReLU(inplace=True), nn.Flatten(), first, last, nn.ReLU(), head)
        stages = [lambda x: norm(conv(x)), lambda x: last(first(x.flatten(1))), head]  # noqa: B023 (used at once)
        found = network(model, 2, 3, 3)
        assert found.folded == 2 and len(found.layers) == 3
        assert_norms(found, by_matrices(stages, (2, 3, 3), 1), by_matrices(stages, (2, 3, 3), 2))


@pytest.mark.parametrize(
    "before",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.MaxPool2d(1), Net(lambda s, x: x.add_(x))],
    ids=["relu", "relu in place", "leaky", "pooling", "sum in place"],
)
def test_batch_norm_after_anything_else_is_a_layer_of_its_own(before: nn.Module) -> None:
    """In-place operations return the very tensor that the linear map made; folding there would be wrong."""
    conv, norm = seeded(lambda: nn.Conv2d(2, 3, 2)), seeded(lambda: nn.BatchNorm2d(3))
    head = seeded(lambda: nn.Linear(12, 2))
    found = network(nn.Sequential(conv, before, norm, nn.Flatten(), head), 2, 3, 3)
    assert found.folded == 0 and [layer.diagonal for layer in found.layers] == [False, True, False]
    factor = 2 if isinstance(before, Net) else 1
    stages = [lambda x: factor * conv(x), norm, lambda x: head(x.flatten(1))]
    one, two = (by_matrices(stages, (2, 3, 3), p) for p in (1, 2))
    if factor == 2:  # x + x are two paths of weight 1, not one of weight 2
        halves = [conv, lambda x: norm(x), lambda x: head(x.flatten(1))]
        two = _doubled(halves, (2, 3, 3))
    assert_norms(found, one, two)


def _doubled(stages: list[Callable[[Tensor], Tensor]], shape: tuple[int, ...]) -> float:
    paths = torch.ones(math.prod(shape)).double()
    for i, stage in enumerate(stages):
        matrix, offset, shape = unrolled(stage, shape)
        paths = (1 + (i == 0)) * (matrix.square() @ paths + offset.square())
    return float(paths.sum())


def test_batch_norm_first() -> None:
    norm, head = seeded(lambda: nn.BatchNorm1d(3)), seeded(lambda: nn.Linear(3, 2))
    found = network(nn.Sequential(norm, head), 3)
    assert_norms(found, by_matrices([norm, head], (3,), 1), by_matrices([norm, head], (3,), 2))
    assert found.layers[0].diagonal and found.layers[0].matrix.shape == (1, 3)


def test_batch_norm_over_the_steps_of_a_sequence_is_not_folded() -> None:
    """Linear acts on the last dimension, BatchNorm1d on the second: with equal sizes a fold would look fine."""
    linear, norm, head = (
        seeded(m) for m in (lambda: nn.Linear(4, 4), lambda: nn.BatchNorm1d(4), lambda: nn.Linear(16, 2))
    )
    found = network(nn.Sequential(linear, norm, nn.ReLU(), nn.Flatten(), head), 4, 4)
    stages = [linear, norm, lambda x: head(x.flatten(1))]
    assert_norms(found, by_matrices(stages, (4, 4), 1), by_matrices(stages, (4, 4), 2))


def test_folded_matrices_reproduce_the_logits() -> None:
    """Without offsets: the product of the layers' matrices with ReLU between is the network."""
    model = seeded(lambda: nn.Sequential(
        nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2, bias=False), nn.BatchNorm1d(2)
    ))  # fmt: skip
    for norm in (model[1], model[4]):
        norm.running_mean.zero_()
        norm.bias.data.zero_()
    first, second = network(model, 3).layers
    x = torch.randn(4, 3).double()
    torch.testing.assert_close((x @ first.matrix.T).relu() @ second.matrix.T, model(x))


# -- other shapes of networks ----------------------------------------------------------------------------------------


def test_residuals_and_concatenations() -> None:
    """Paths add up over branches."""
    a, b, c = (seeded(m) for m in (lambda: nn.Linear(3, 3), lambda: nn.Linear(3, 3), lambda: nn.Linear(9, 2)))

    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.a(x)) + x
        h = h + s.b(h).relu()
        return s.c(torch.cat([h, h, x], 1))

    found = network(Net(forward, a=a, b=b, c=c), 3)
    for p in (1, 2):
        (wa, oa, _), (wb, ob, _), (wc, oc, _) = (unrolled(m, (m.in_features,)) for m in (a, b, c))
        x = torch.ones(3).double()
        h = wa.abs() ** p @ x + oa.abs() ** p + x
        h = h + wb.abs() ** p @ h + ob.abs() ** p
        total = float((wc.abs() ** p @ torch.cat([h, h, x]) + oc.abs() ** p).sum())
        log_norm = found.log_path_norm_1 if p == 1 else found.log_path_norm_2
        assert log_norm == pytest.approx(math.log(total) / p, rel=1e-10)


def test_functional_networks_are_read_as_well() -> None:
    conv, head = seeded(lambda: nn.Conv2d(1, 2, 2)), seeded(lambda: nn.Linear(8, 2))

    def forward(s: Any, x: Tensor) -> Tensor:
        h = torch.relu(F.conv2d(x, s.conv.weight, s.conv.bias, stride=1))
        h = F.max_pool2d(F.relu_(h.clamp(min=0)), 2)
        return F.linear(h.view(h.size(0), -1), s.head.weight, s.head.bias)

    found = network(Net(forward, conv=conv, head=head), 1, 5, 5)
    stages = [conv, nn.MaxPool2d(2), lambda x: head(x.flatten(1))]
    assert_norms(found, by_matrices(stages, (1, 5, 5), 1), by_matrices(stages, (1, 5, 5), 2))
    assert [layer.name for layer in found.layers] == ["conv", "head"]


def test_padding_with_zeros_in_the_code() -> None:
    """A residual network's shortcut: pad channels, or concatenate zeros."""
    head = seeded(lambda: nn.Linear(5, 2))
    for forward in (
        lambda s, x: s.head(F.pad(x, (0, 2))),
        lambda s, x: s.head(torch.cat([x, x.new_zeros(len(x), 2)], 1)),
        lambda s, x: s.head(torch.cat([x, torch.zeros(x.shape[0], 2)], 1)),
    ):
        found = network(Net(forward, head=head), 3)
        used = torch.cat([head.weight.detach()[:, :3].reshape(-1), head.bias.detach()]).abs()
        assert_norms(found, float(used.sum()), float(used.square().sum()))


L = nn.Linear
FOREIGN: list[tuple[str, Callable[[], nn.Module]]] = [
    ("'sigmoid'", lambda: nn.Sequential(L(3, 3), nn.Sigmoid())),
    ("'tanh'", lambda: Net(lambda s, x: torch.tanh(s.a(x)), a=L(3, 3))),
    ("'gelu'", lambda: Net(lambda s, x: F.gelu(s.a(x)), a=L(3, 3))),
    ("'hardswish'", lambda: nn.Sequential(L(3, 3), nn.Hardswish())),
    ("'hardshrink'", lambda: nn.Sequential(L(3, 3), nn.Hardshrink())),
    ("'layer_norm'", lambda: nn.Sequential(L(3, 3), nn.LayerNorm(3))),
    ("'softmax'", lambda: Net(lambda s, x: s.a(x).softmax(1), a=L(3, 3))),
    ("'log_softmax'", lambda: nn.Sequential(L(3, 3), nn.LogSoftmax(1))),
    ("'group_norm'", lambda: nn.Sequential(L(3, 3), nn.GroupNorm(1, 3))),
    ("'normalize'", lambda: Net(lambda s, x: F.normalize(s.a(x)), a=L(3, 3))),
    ("'mul' of two activations", lambda: Net(lambda s, x: s.a(x) * x, a=L(3, 3))),
    ("'div' by an activation", lambda: Net(lambda s, x: s.a(x) / x, a=L(3, 3))),
    ("'matmul' of two activations", lambda: Net(lambda s, x: s.a(x) + (x[:, None] @ x[:, :, None])[:, 0], a=L(3, 3))),
    ("'einsum' of two activations", lambda: Net(lambda s, x: torch.einsum("bi,bi->bi", s.a(x), x), a=L(3, 3))),
    ("'einsum' of more than two", lambda: Net(lambda s, x: torch.einsum("bi,ij,jk->bk", x, s.a.weight, s.a.weight),
                                              a=L(3, 3))),
    ("'pow'", lambda: Net(lambda s, x: s.a(x) ** 2, a=L(3, 3))),
    ("'gt'", lambda: Net(lambda s, x: (h := s.a(x)) * (h > 0), a=L(3, 3))),
    ("threshold' that jumps from 20 to 0.1", lambda: nn.Sequential(L(3, 3), nn.Threshold(0.1, 20.0))),
    ("bounds made from the input", lambda: Net(lambda s, x: s.a(x).clamp(min=x), a=L(3, 3))),
    ("'to' of an activation to integers", lambda: Net(lambda s, x: s.a(x) + x.to(torch.int64), a=L(3, 3))),
    ("'instance_norm'", lambda: Net(lambda s, x: F.instance_norm(s.a(x)[:, None])[:, 0], a=L(3, 3))),
    ("output is not made from its input", lambda: Net(lambda s, x: s.a.weight[:1].expand(len(x), 3), a=L(3, 3))),
]  # fmt: skip


@pytest.mark.parametrize(("message", "make"), FOREIGN)
def test_what_is_no_relu_network_is_undefined_and_named(message: str, make: Callable[[], nn.Module]) -> None:
    with pytest.raises(Undefined, match=message):
        network(make(), 3, classes=3)


def test_attention_is_undefined() -> None:
    model = Net(lambda s, x: s.b(s.a(x).mean(1)), a=Attention(4), b=nn.Linear(4, 2))
    with pytest.raises(Undefined, match="scaled_dot_product_attention"):
        network(model, 3, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_made_out_of_sight_is_no_constant() -> None:
    """A scripted function's result would pass for a bias; a constant that no one saw being made may."""
    shift = torch.tensor([1.0, -2.0, 3.0])
    for hidden in (torch.jit.trace(torch.sigmoid, torch.zeros(2, 3).double()), torch.vmap(torch.sigmoid)):
        with pytest.raises(Undefined, match="out of sight"):
            network(Net(lambda s, x, f=hidden: s.a(x) + f(x), a=L(3, 3)), 3, classes=3)
    layer = seeded(lambda: L(3, 3))
    layer.register_parameter("bias", None)
    found = network(Net(lambda s, x: s.a(x) + shift, a=layer), 3, classes=3)
    w = layer.weight.detach()
    assert_norms(found, float(w.abs().sum()) + 6.0, float(w.square().sum()) + 14.0)


def test_tokens_have_no_paths() -> None:
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    minimum = Minimum(model, (torch.randint(0, 5, (4, 3)), torch.arange(4) % 2))
    with pytest.raises(Undefined, match="real numbers"):
        minimum[FeedForward()]


def test_an_overflow_is_undefined() -> None:
    model = seeded(lambda: nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(2))))
    for p in model.parameters():
        p.data *= 1e155
    x, y = torch.zeros(2, 3).double(), torch.arange(2)
    with pytest.raises(Undefined, match="overflows"):
        Minimum(model, (x, y))[FeedForward()]
