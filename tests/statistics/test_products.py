"""Products with both curvatures against explicit float64 matrices, and where float32 and autograd lose them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from case_networks import Case
from cases import BY_NAME, CASES
from flatminima import Minimum
from flatminima.core.losses import Loss
from flatminima.errors import NumericalError, Undefined, UsageError
from flatminima.statistics import Products
from truth import Truth, rows_of

TOLERANCE = 1e-8


def matrix(products: Products) -> Tensor:
    return torch.stack([products(row) for row in torch.eye(products.size, dtype=torch.float64)])


def minimum_of(case: Case, batch_size: int = 3) -> Minimum:
    model, data = case.make()
    return Minimum(model, data, case.loss, batch_size=batch_size)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("case", [c for c in CASES if c.twice and c.convex], ids=lambda case: case.name)
def test_gauss_newton_of_every_network(case: Case) -> None:
    """The Hessian's are in test_curvature.py. Catches a mean of the ragged batches' means."""
    truth = Truth(case).gauss_newton()
    v = torch.randn(3, len(truth), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = Products(minimum_of(case), curvature="gauss_newton")
    assert_close(torch.stack([products(row) for row in v]), v @ truth)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", ["mlp", "attention", "token_cross_entropy", "causal_lm"])
def test_some_samples_whatever_the_batches_and_what_is_kept(name: str, curvature: str) -> None:
    case, indices = BY_NAME[name], torch.tensor([6, 0, 3, 3, 1])
    model, (inputs, targets) = case.make()
    whole = Products(Minimum(model, (inputs[indices], targets[indices]), case.loss), curvature=curvature)
    vs = torch.randn(3, whole.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for batch_size, keep in ((2, None), (2, 0), (2, 40_000), (100, 0)):
        products = Products(minimum_of(case, batch_size), indices, curvature, keep)
        for v in vs:
            assert_close(products(v), whole(v))
        assert products.spent == 3


def test_graphs_are_kept_while_they_fit() -> None:
    """Forward passes: once a batch that is kept, once a product otherwise."""
    case = BY_NAME["mlp"]
    forwards = {}
    for keep in (None, 0):
        minimum = minimum_of(case)
        products = Products(minimum, keep=keep)
        for _ in range(4):
            products(torch.ones(products.size))
        forwards[keep] = minimum.passes.forward
    assert forwards == {None: 7, 0: 28}


def test_a_write_to_the_weights_spoils_what_was_kept() -> None:
    minimum = minimum_of(BY_NAME["mlp"])
    products, v = Products(minimum), torch.ones(len(minimum.parameters))
    before = products(v)
    with minimum.open(), torch.no_grad():
        minimum.parameters.tensors[0].mul_(2.0).mul_(0.5)
    torch.testing.assert_close(products(v), before)


# -- at an interpolating minimum -------------------------------------------------------------------------------------


def interpolating(dtype: torch.dtype, scale: float = 15.0) -> tuple[nn.Module, Tensor, Tensor]:
    """1 - p_y is 1e-12 to 1e-40, so that autograd's softmax minus label is noise or 0."""
    g = torch.Generator().manual_seed(0)
    x = F.one_hot(torch.arange(6) % 3, 3).double() + 0.1 * torch.randn(6, 3, generator=g, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model[0].weight[:3] += 3 * torch.eye(3)
        model[2].weight[:, :3] += scale * torch.eye(3)
    return model.to(dtype), x.to(dtype), torch.arange(6) % 3


def dense(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Hessian and Gauss-Newton matrix by hand from J and the output's second derivatives, exact in float64."""
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()], strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def output(w: Tensor, xi: Tensor) -> Tensor:
        parts = w.split([s.numel() for s in shapes])
        state = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(model, state, (xi.unsqueeze(0),))[0]

    hessian = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    gauss_newton = torch.zeros_like(hessian)
    for xi, yi in zip(x, y, strict=True):
        z = output(flat, xi)
        p = z.softmax(0)
        rest = sum(float(p[c]) for c in range(3) if c != int(yi))  # no cancellation
        error = torch.stack([-torch.tensor(rest) if c == int(yi) else p[c] for c in range(3)]).double()
        curvature = -torch.outer(p, p)
        for c in range(3):
            curvature[c, c] = p[c] * sum(float(p[b]) for b in range(3) if b != c)
        jacobian = torch.func.jacrev(output)(flat, xi)
        second = torch.func.jacrev(torch.func.jacrev(output))(flat, xi)
        gauss_newton += jacobian.T @ curvature @ jacobian / len(x)
        hessian += torch.einsum("c,cij->ij", error, second) / len(x)
    return hessian + gauss_newton, gauss_newton


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_at_an_interpolating_minimum(dtype: torch.dtype, curvature: str) -> None:
    """Where autograd's own Hessian of the cross-entropy is rounding noise: the last line says so."""
    model, x, y = interpolating(dtype)
    wide = interpolating(torch.float64)[0]
    wide.load_state_dict(model.state_dict())  # the same, rounded, weights
    truth = dense(wide.double(), x.double(), y)[curvature == "gauss_newton"]
    assert 0 < float(truth.abs().max()) < 1e-8
    minimum = Minimum(model, (x, y))
    assert_close(matrix(Products(minimum, curvature=curvature)), truth, 1e-9 if dtype == torch.float64 else 1e-4)
    if curvature == "hessian" and dtype == torch.float32:
        weights = list(model.parameters())
        plain = rows_of(rows_of(F.cross_entropy(model(x), y), weights, keep=True)[0], weights)
        assert float((plain - truth).abs().max()) > 0.1 * float(truth.abs().max())


@pytest.mark.parametrize("name", ["cross_entropy", "token_cross_entropy", "causal_lm", "mse", "binary_cross_entropy"])
def test_the_residual_is_the_gradient_of_the_loss(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    shape = (4, 5, 3) if name in ("token_cross_entropy", "causal_lm") else (4, 3)
    output = torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 3, shape[:-1], generator=g)
    if name in ("mse", "binary_cross_entropy"):
        targets = torch.rand(shape, generator=g, dtype=torch.float64)
    elif targets.dim() == 2:
        targets[0, 2], targets[3, 1:3] = -100, -100
    loss = Loss.of(name)
    (expected,) = torch.autograd.grad(loss(output, targets).sum(), output)
    torch.testing.assert_close(loss.residual(output, targets), expected)
    assert torch.autograd.gradcheck(lambda o: loss.residual(o, targets), output)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_curvature() -> None:
    with pytest.raises(UsageError, match="got curvature='fisher'; expected one of hessian, gauss_newton"):
        Products(minimum_of(BY_NAME["mlp"]), curvature="fisher")


def test_a_loss_that_is_not_convex_has_no_gauss_newton_products() -> None:
    with pytest.raises(Undefined, match="not convex"):
        Products(minimum_of(BY_NAME["not convex"]), curvature="gauss_newton")(torch.ones(1))


def test_a_product_that_overflows() -> None:
    products = Products(minimum_of(BY_NAME["mlp"]))
    with pytest.raises(NumericalError, match="a hessian product is not finite"):
        products(torch.full((products.size,), 1e308, dtype=torch.float64))


def test_the_model_comes_back_bit_for_bit() -> None:
    model, data = BY_NAME["batch_norm2d"].make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for curvature in ("hessian", "gauss_newton"):
        Products(Minimum(model, data), curvature=curvature)(torch.ones(sum(p.numel() for p in model.parameters())))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Filter(nn.Module):
    """Weights in pairs that are complex numbers, behind a parameter of three entries."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.w = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4, 4, 2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.rfft(x, dim=1) @ torch.view_as_complex(self.w)
        return self.head(torch.fft.irfft(z, n=6, dim=1).square().mean(1)) + self.shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_part_of_a_vector_begins_anywhere(curvature: str, dtype: torch.dtype) -> None:
    """A view of the vector at an odd place is no complex number for torch; at an even one nobody notices."""
    torch.manual_seed(0)
    model, x, y = Filter().to(dtype), torch.randn(9, 6, 4).to(dtype), torch.arange(9) % 3
    vector = torch.randn(sum(p.numel() for p in model.parameters())).to(dtype)
    found = Products(Minimum(model, (x, y)), curvature=curvature)(vector)
    exact = Products(Minimum(model.double(), (x.double(), y)), curvature=curvature)(vector.double())
    assert_close(found, exact, 1e-5 if dtype == torch.float32 else 1e-12)
