"""Operator norms against dense matrices, Fourier transforms, hand-made networks; Lipschitz bounds against Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from case_networks import Net, _scatter
from flatminima import Minimum
from flatminima.errors import Undefined
from flatminima.models import resnet20
from flatminima.statistics import LinearLayer, OperatorNorms, operator_norms as module
from flatminima.statistics.operator_norms import NetworkNorms, operator_norm

L = nn.Linear


def norms(model: nn.Module, *shape: int) -> NetworkNorms:
    model = model.double().eval()
    with torch.no_grad():
        classes = model(torch.zeros(1, *shape).double()).shape[1]
    return Minimum(model, (torch.randn(3, *shape).double(), torch.arange(3) % classes))[OperatorNorms()]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().double().eval()
        _scatter(model)
    return model


def dense(layer: nn.Module, *shape: int) -> Tensor:
    """The matrix of a layer, basis vector by basis vector."""
    size = math.prod(shape)
    with torch.no_grad():
        offset = layer(torch.zeros(1, *shape).double())
        return (layer(torch.eye(size).double().view(size, *shape)) - offset).flatten(1).T


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "padded": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 7, 6)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 6, 6)),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding="same"), (2, 8, 8)),
    "pointwise": (lambda: nn.Conv2d(3, 5, 1), (3, 6, 6)),
    "one dimension": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 40)),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "few inputs": (lambda: nn.Conv2d(1, 2, 3), (1, 5, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_its_dense_matrix(name: str) -> None:
    """Catches the norm of the reshaped kernel, and strides, groups or padding that are lost."""
    make, shape = CONVOLUTIONS[name]
    conv = seeded(make)
    matrix = dense(conv, *shape)
    (found,) = norms(nn.Sequential(conv, nn.Flatten()), *shape).layers
    assert found.two == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-9)
    assert found.infinity == pytest.approx(float(matrix.abs().sum(1).max()), rel=1e-12)
    assert found.residual < 1e-4


def test_a_circular_convolution_by_fourier_transform() -> None:
    """Sedghi, Gupta & Long (2019): the singular values of the kernel's transform, frequency by frequency."""
    conv = seeded(lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False))
    transform = torch.fft.fft2(conv.weight.detach(), (8, 8)).permute(2, 3, 0, 1)
    found = norms(nn.Sequential(conv, nn.Flatten()), 3, 8, 8)
    # the padding is a step of its own, which copies a corner four times, and the layer acts on the padded image
    assert math.exp(found.log_lipschitz_2) >= float(torch.linalg.svdvals(transform).max())
    matrix = dense(lambda x: F.conv2d(x, conv.weight.detach()), 3, 10, 10)  # type: ignore[arg-type]
    assert math.exp(found.log_lipschitz_2) == pytest.approx(2 * float(torch.linalg.svdvals(matrix)[0]), rel=1e-9)


def test_the_kernels_matrix_is_another_one() -> None:
    """Ones, 3 x 3, one channel: the kernel's norm is 3, the operator's nearly 9."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    (found,) = norms(nn.Sequential(layer, nn.Flatten()), 1, 12, 12).layers
    # the second difference's eigenvectors: each dimension has 1 + 2 cos(pi / 13)
    assert found.two == pytest.approx((1 + 2 * math.cos(math.pi / 13)) ** 2, rel=1e-9)
    assert found.infinity == 9.0


def test_what_does_not_converge_is_undefined(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = seeded(lambda: nn.Conv2d(3, 4, 3, padding=1))
    monkeypatch.setattr(module, "_RESIDUAL", 1e-30)
    with pytest.raises(Undefined, match=r"residual|converge"):
        norms(nn.Sequential(conv, nn.Flatten()), 3, 7, 6)


def test_zeros_and_diagonals() -> None:
    conv = nn.Conv2d(2, 3, 3)
    nn.init.zeros_(conv.weight)
    assert norms(nn.Sequential(conv, nn.Flatten()), 2, 8, 8).layers[0].two == 0.0
    diagonal = operator_norm(LinearLayer("bn", torch.tensor([[0.5, -3.0]]).double(), diagonal=True))
    assert (diagonal.two, diagonal.infinity) == (3.0, 3.0)


# -- bounds along the graph ------------------------------------------------------------------------------------------


def scaled(factor: float) -> nn.Linear:
    layer = L(4, 4, bias=False)
    layer.weight.data = factor * torch.eye(4)
    return layer


HAND_MADE: dict[str, tuple[Callable[[], nn.Module], float, float]] = {
    "chain": (lambda: nn.Sequential(scaled(2), nn.ReLU(), scaled(-3)), 6.0, 6.0),
    "shortcut": (lambda: Net(lambda s, x: x + s.a(x), a=scaled(2)), 3.0, 3.0),
    "two shortcuts": (lambda: Net(lambda s, x: (h := x + s.a(x)) + s.b(h), a=scaled(2), b=scaled(4)), 15.0, 15.0),
    "in place": (lambda: Net(lambda s, x: s.a(x).add_(x).relu_(), a=scaled(2)), 3.0, 3.0),
    "concatenation": (lambda: Net(lambda s, x: torch.cat([s.a(x), s.b(x)], 1), a=scaled(3), b=scaled(4)), 5.0, 4.0),
    "stack": (lambda: Net(lambda s, x: torch.stack([s.a(x), s.b(x)], 1).sum(1), a=scaled(3), b=scaled(4)),
              5.0 * math.sqrt(2), 8.0),
    "parts": (lambda: Net(lambda s, x: torch.cat(s.a(x).chunk(2, 1), 1), a=scaled(2)), 2.0 * math.sqrt(2), 2.0),
    "mean": (lambda: Net(lambda s, x: s.a(x).mean(1, keepdim=True), a=scaled(2)), 1.0, 2.0),
    "spread": (lambda: Net(lambda s, x: s.a(x)[:, :1].expand(-1, 9), a=scaled(2)), 6.0, 2.0),
    "zeros beside": (lambda: Net(lambda s, x: torch.cat([s.a(x), torch.zeros_like(x)], 1), a=scaled(2)), 2.0, 2.0),
    "a branch to nowhere": (lambda: Net(lambda s, x: (s.a(x), s.b(x))[1], a=scaled(7), b=scaled(2)), 2.0, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_network_by_hand(name: str) -> None:
    """Catches products over layers where branches are added: 2 for x + 2 x, whose constant is 3."""
    make, two, infinity = HAND_MADE[name]
    found = norms(make(), 4)
    assert math.exp(found.log_lipschitz_2) == pytest.approx(two, rel=1e-12)
    assert math.exp(found.log_lipschitz_inf) == pytest.approx(infinity, rel=1e-12)


POOLS: dict[str, tuple[Callable[[], nn.Module], float, float]] = {
    "average": (lambda: nn.AvgPool2d(2), 0.5, 1.0),
    "average of all": (lambda: nn.AdaptiveAvgPool2d(1), 1 / 6, 1.0),
    "max": (lambda: nn.MaxPool2d(2), 1.0, 1.0),
    "max, overlapping": (lambda: nn.MaxPool2d(2, 1), 2.0, 1.0),
    "max, overlapping unevenly": (lambda: nn.MaxPool2d(3, 2, padding=1), 2.0, 1.0),
    "reflected": (lambda: nn.ReflectionPad2d(2), 2.0, 1.0),  # a corner's neighbour is copied in both directions
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    make, two, infinity = POOLS[name]
    identity = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(identity.weight)
    found = norms(nn.Sequential(identity, make(), nn.Flatten()), 1, 6, 6)
    assert math.exp(found.log_lipschitz_2) == pytest.approx(two, rel=1e-12)
    assert math.exp(found.log_lipschitz_inf) == pytest.approx(infinity, rel=1e-12)


class Dense(nn.Module):
    """Concatenation, BatchNorm before and after a convolution, a used and folded result, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.before, self.second = nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3, stride=2, padding=1)
        self.head = L(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.first(x)
        x = torch.cat([x, F.relu(self.norm(raw)) + raw], 1)
        x = F.max_pool2d(self.second(F.relu(self.before(x))), 3, 1, padding=1)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


REAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (Dense, (2, 6, 6)),
    "residual": (lambda: resnet20(classes=3, channels=1, depth=8), (1, 8, 8)),
    "mlp": (lambda: nn.Sequential(L(5, 9), nn.ReLU(), L(9, 4), nn.LeakyReLU(0.3), L(4, 3)), (5,)),
}


@pytest.mark.parametrize("name", REAL)
def test_no_jacobian_exceeds_the_bound(name: str) -> None:
    """The product over layers alone is exceeded by a network with shortcuts."""
    make, shape = REAL[name]
    model = seeded(make)
    found = norms(model, *shape)
    for seed in range(5):
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        jacobian = torch.func.jacrev(model)(x).detach().reshape(3, -1)
        assert float(torch.linalg.svdvals(jacobian)[0]) <= math.exp(found.log_lipschitz_2)
        assert float(jacobian.abs().sum(1).max()) <= math.exp(found.log_lipschitz_inf)


def test_a_linear_network_of_shortcuts_reaches_its_bound() -> None:
    """Positive multiples of the identity: the bound is attained, so nothing is counted twice."""
    model = Net(
        lambda s, x: torch.cat([(h := x + s.a(x)) + s.b(h), s.c(h)], 1), a=scaled(0.5), b=scaled(2), c=scaled(3)
    ).double()
    jacobian = torch.func.jacrev(model)(torch.ones(1, 4).double()).detach().reshape(8, 4)
    assert math.exp(norms(model, 4).log_lipschitz_2) == pytest.approx(float(torch.linalg.svdvals(jacobian)[0]))
