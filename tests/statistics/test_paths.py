"""Path norms of networks with factors, differences, raw parameters, parametrizations and other layers.

The truth of each network is its paths, by explicit matrices of each linear map's weights to the power p (`paths`) or
edge by edge; a wrong rule that leaves the number of paths alone is caught by p = 2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from path_cases import (
    CASES,
    L,
    Raw,
    dense,
    found,
    ones,
    ready,
    through,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from case_networks import Net
from flatminima import Minimum
from flatminima.errors import Undefined
from flatminima.statistics import FeedForward, OperatorNorms
from flatminima.statistics.feedforward import _RULES
from flatminima.statistics.path_algebra import PathAlgebra
from simulated_device import SimulatedDevice


@pytest.mark.parametrize("name", CASES)
def test_paths(name: str) -> None:
    make, shape, paths = CASES[name]
    model = ready(make)
    network = found(model, torch.randn(3, *shape).double())
    assert network.log_path_norm_1 == pytest.approx(math.log(float(paths(model, 1).sum())), rel=1e-10)
    assert network.log_path_norm_2 == pytest.approx(0.5 * math.log(float(paths(model, 2).sum())), rel=1e-10, abs=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_no_jacobian_exceeds_the_lipschitz_bound(name: str) -> None:
    """Catches a factor, a branch or a layer that the graph forgets."""
    make, shape, _ = CASES[name]
    model = ready(make)
    norms = Minimum(model, (torch.randn(3, *shape).double(), torch.arange(3) % 2))[OperatorNorms()]
    for seed in range(4):
        x = 2 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel())
        rounding = 1 + 1e-7  # torch's own slope of the hard sigmoid is 1/6 in float32
        assert float(torch.linalg.svdvals(jacobian)[0]) <= math.exp(norms.log_lipschitz_2) * rounding
        assert float(jacobian.abs().sum(1).max()) <= math.exp(norms.log_lipschitz_inf) * rounding


@pytest.mark.parametrize("name", CASES)
def test_float32_networks_have_the_same_paths(name: str) -> None:
    """Catches weights that are made in another dtype than the activations, and path sums rounded to float32."""
    make, shape, _ = CASES[name]
    double = found(ready(make).float().double(), torch.randn(3, *shape).double())
    single = found(ready(make).float(), torch.randn(3, *shape))
    assert single.log_path_norm_2 == pytest.approx(double.log_path_norm_2, rel=1e-5, abs=1e-5)


def test_the_old_weight_norm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ready(lambda: nn.Sequential(nn.utils.weight_norm(L(4, 3))))
    network = found(model, torch.randn(3, 4).double())
    assert network.log_path_norm_1 == pytest.approx(math.log(float(through(model[0], ones(4), 1).sum())), rel=1e-10)
    assert network.layers[0].name == "0" and network.layers[0].parameter == "0.weight"


# -- several inputs --------------------------------------------------------------------------------------------------


def joined(m: Any, image: Tensor, table: Tensor) -> Tensor:
    return m.head(torch.cat([m.conv(image).relu().mean((2, 3)), m.table(table)], 1))


def added(m: Any, image: Tensor, table: Tensor) -> Tensor:
    return m.conv(image).mean((2, 3)) - m.table(table)


@pytest.mark.parametrize("form", ["tuple", "dict"])
@pytest.mark.parametrize("use", [joined, added])
def test_an_image_and_a_table(use: Any, form: str) -> None:
    model = ready(
        lambda: Net(use, conv=nn.Conv2d(1, 2, 2), table=L(4, 2), **({"head": L(4, 2)} if use is joined else {}))
    )
    image, table = torch.randn(3, 1, 3, 3).double(), torch.randn(3, 4).double()
    data = (image, table) if form == "tuple" else {"image": image, "table": table}
    minimum = Minimum(model, (data, torch.arange(3) % 2))
    network = minimum[FeedForward()]
    assert network.inputs == 9 + 4
    for p in (1, 2):
        a = through(model.conv, ones(1, 3, 3), p).view(2, 4).sum(1) / 4**p
        b = through(model.table, ones(4), p)
        total = float((through(model.head, torch.cat([a, b]), p) if use is joined else a + b).sum())
        log = network.log_path_norm_1 if p == 1 else network.log_path_norm_2
        assert log == pytest.approx(math.log(total) / p, rel=1e-10, abs=1e-12)
    jacobian = torch.cat([j.reshape(2, -1) for j in
                          torch.autograd.functional.jacobian(model, (image[:1], table[:1]))], 1)  # fmt: skip
    norms = minimum[OperatorNorms()]
    assert float(torch.linalg.svdvals(jacobian)[0]) <= math.exp(norms.log_lipschitz_2)
    assert float(jacobian.abs().sum(1).max()) <= math.exp(norms.log_lipschitz_inf)


def test_branches_of_different_inputs_do_not_add_up() -> None:
    """||A dx + B dz|| <= sqrt(||A||^2 + ||B||^2) ||(dx, dz)||, attained; side by side the larger of the two."""
    a, b = L(3, 3, bias=False), L(3, 3, bias=False)
    a.weight.data, b.weight.data = 3 * torch.eye(3), 4 * torch.eye(3)
    x = torch.randn(3, 3).double()
    for use, expected in ((lambda s, x, z: s.a(x) + s.b(z), 5.0), (lambda s, x, z: torch.cat([s.a(x), s.b(z)], 1), 4.0),
                          (lambda s, x, z: s.a(x) + s.b(x + z), 3 + 4 * math.sqrt(2))):  # fmt: skip
        norms = Minimum(Net(use, a=a, b=b).double(), ((x, x), torch.arange(3) % 2))[OperatorNorms()]
        assert math.exp(norms.log_lipschitz_2) == pytest.approx(expected, rel=1e-12)


def test_categories_beside_an_image_are_named() -> None:
    """A table of embeddings looked up for one sample would pass for a bias."""
    model = Net(lambda s, x, ids: s.a(x) + s.e(ids), a=L(3, 2), e=nn.Embedding(5, 2)).double()
    data = ((torch.randn(3, 3).double(), torch.tensor([0, 1, 2])), torch.arange(3) % 2)
    with pytest.raises(Undefined, match=r"not a tensor of real numbers \(int64"):
        Minimum(model, data)[FeedForward()]


# -- layers ----------------------------------------------------------------------------------------------------------


def test_layers_have_the_effective_weights_of_what_follows() -> None:
    """Factor, BatchNorm, offset: one layer, and its matrix is that of the affine map."""
    model = ready(lambda: Net(
        lambda s, x: s.r.c * s.n(0.5 * (x @ s.r.w)) + s.r.b, r=Raw(lambda s, x: x), n=nn.BatchNorm1d(3)
    ))  # fmt: skip
    network = found(model, torch.randn(3, 4).double())
    matrix, _ = dense(model, 4)
    (layer,) = network.layers
    torch.testing.assert_close(layer.matrix, matrix)
    assert layer.name == "r.w" and not network.factors and network.folded == 1


@pytest.mark.parametrize("name", ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "einsum in blocks"])
def test_operator_norms_are_those_of_dense_matrices(name: str) -> None:
    make, shape, _ = CASES[name]
    model = ready(make)
    first = model[:2] if name == "ConvTranspose2d" else model if isinstance(model, Raw) else model[:1]
    matrix, _ = dense(first, *shape)
    found = Minimum(model, (torch.randn(3, *shape).double(), torch.arange(3) % 2))[OperatorNorms()].layers[0]
    if name == "einsum in blocks":  # the slice that follows leaves a row out
        matrix = 2 * torch.block_diag(*model.w.detach().unsqueeze(1))
    assert found.two == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-9)
    assert found.infinity == pytest.approx(float(matrix.abs().sum(1).max()), rel=1e-12)


def test_a_large_transposed_convolution_by_lanczos() -> None:
    layer = ready(lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1))
    matrix, _ = dense(layer, 3, 6, 5)
    norms = Minimum(nn.Sequential(layer, nn.Flatten()), (torch.randn(3, 3, 6, 5).double(), torch.arange(3) % 2))
    assert norms[OperatorNorms()].layers[0].two == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-9)


@pytest.mark.parametrize("write", [
    lambda h: F.relu(h, inplace=True), lambda h: F.leaky_relu(h, 0.5, True), lambda h: nn.ReLU6(True)(h),
    lambda h: h.relu_(), lambda h: torch.relu_(h), lambda h: h.clamp_(0),
])  # fmt: skip
def test_an_activation_in_place_closes_the_layer_before_it(write: Callable[[Tensor], Tensor]) -> None:
    """Also where its result is thrown away: the BatchNorm that follows is behind it."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        write(h)
        return s.n(h)

    model = ready(lambda: Net(forward, a=L(4, 3), n=nn.BatchNorm1d(3)))
    network = found(model, torch.randn(3, 4).double())
    total = float(through(model.n, through(model.a, ones(4), 1), 1).sum())
    assert network.folded == 0 and network.log_path_norm_1 == pytest.approx(math.log(total), rel=1e-10)


def test_what_is_written_by_out_is_not_read() -> None:
    """The tensor that is written to would stay a constant."""
    model = Net(lambda s, x: torch.add(s.a(x), 1.0, out=torch.empty(len(x), 3).double()), a=L(4, 3)).double()
    algebra = PathAlgebra(1.0, {}, _RULES)
    with torch.no_grad(), algebra, pytest.raises(Undefined, match="out="):
        model(algebra.know(ones(1, 4), -1))


def test_a_view_of_what_is_no_zeros_is_refused() -> None:
    """Its base would stay a constant, and the path through it would be lost."""

    def forward(s: Any, x: Tensor) -> Tensor:
        out = 2 * torch.ones(len(x), 3, dtype=x.dtype)
        out[:, 0].copy_(s.a(x)[:, 0])
        return out

    with pytest.raises(Undefined, match="view of a tensor"):
        found(Net(forward, a=L(4, 3)).double(), torch.randn(3, 4).double())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_seen(reentrant: bool) -> None:
    model = ready(lambda: Net(
        lambda s, x: s.b(checkpoint(lambda h: F.relu(s.a(h)), x, use_reentrant=reentrant)), a=L(4, 3), b=L(3, 2)
    ))  # fmt: skip
    network = found(model, torch.randn(3, 4).double())
    total = float(through(model.b, through(model.a, ones(4), 1), 1).sum())
    assert network.log_path_norm_1 == pytest.approx(math.log(total), rel=1e-10)


def test_what_shares_storage_changes_with_it() -> None:
    """A view written to changes the tensor under it: its graph, and what may still be folded into its layer."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        h[:, :2].add_(x[:, :2])
        return s.n(h)

    model = ready(lambda: Net(forward, a=L(4, 3), n=nn.BatchNorm1d(3)))
    network = found(model, torch.randn(3, 4).double())
    for p in (1, 2):
        h = through(model.a, ones(4), p) + torch.tensor([1, 1, 0]).double()
        total = float(through(model.n, h, p).sum())
        log = network.log_path_norm_1 if p == 1 else network.log_path_norm_2
        assert log == pytest.approx(math.log(total) / p, rel=1e-10, abs=1e-12)
    assert network.folded == 0


@pytest.mark.parametrize("name", CASES)
def test_paths_on_another_device(name: str) -> None:
    """Constants are made where the activations lie."""
    make, shape, _ = CASES[name]
    data = (torch.randn(3, *shape).double(), torch.arange(3) % 2)
    here = Minimum(ready(make), data)[FeedForward()]
    with SimulatedDevice():
        there = Minimum(ready(make).to("mps"), data)[FeedForward()]
    assert there.log_path_norm_1 == pytest.approx(here.log_path_norm_1, rel=1e-12)
    assert there.log_path_norm_2 == pytest.approx(here.log_path_norm_2, rel=1e-12, abs=1e-12)
    assert all(layer.matrix.device.type == "cpu" for layer in there.layers)
