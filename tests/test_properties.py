"""Properties over random architectures: the Gram matrix is that of explicit gradients, nothing depends on how the data
is cut, and the model comes back bit for bit."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from flatminima import Minimum, measure, measures
from flatminima.statistics import Gram

pytestmark = pytest.mark.slow

SUBSET = 4
ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "leaky": partial(nn.LeakyReLU, 0.2),
    "none": nn.Identity,
}
CASES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def dense(draw: st.DrawFn) -> nn.Module:
    """Linear layers with and without bias, norms, dropout and residual connections."""
    width = draw(st.integers(2, 7))
    layers: list[nn.Module] = [nn.Linear(5, width, bias=draw(st.booleans()))]
    for _ in range(draw(st.integers(0, 3))):
        layers.append(ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]())
        norm = draw(st.sampled_from(["none", "batch", "layer", "dropout"]))
        if norm == "batch":
            layers.append(nn.BatchNorm1d(width, affine=draw(st.booleans())))
        elif norm == "layer":
            layers.append(nn.LayerNorm(width))
        elif norm == "dropout":
            layers.append(nn.Dropout(0.5))
        block = nn.Linear(width, width, bias=draw(st.booleans()))
        layers.append(Residual(block) if draw(st.booleans()) else block)
    return nn.Sequential(*layers, nn.Linear(width, 3))


@st.composite
def convolutional(draw: st.DrawFn) -> nn.Module:
    """Convolutions with any stride, padding, dilation and groups; pooling; a head."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 5)), nn.Unflatten(2, (5, 1)), Widen(6)]
    channels = 1
    for _ in range(draw(st.integers(1, 2))):
        groups = draw(st.sampled_from([g for g in (1, channels) if channels % g == 0]))
        out = groups * draw(st.integers(1, 3))
        kernel = draw(st.integers(1, 3))
        layers.append(
            nn.Conv2d(
                channels,
                out,
                kernel,
                stride=draw(st.integers(1, 2)),
                padding=kernel - 1,
                dilation=draw(st.integers(1, 2)) if kernel < 3 else 1,
                groups=groups,
                bias=draw(st.booleans()),
            )
        )
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(out))
        layers.append(ACTIVATIONS[draw(st.sampled_from(["relu", "tanh"]))]())
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 3))


class Residual(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


class Widen(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, -1, -1, self.width) * torch.linspace(-1, 1, self.width, dtype=x.dtype)


def prepared(model: nn.Module, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Float64, eval mode, weights and running statistics of a seed; and data."""
    g = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        for name, b in model.named_buffers():
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=g, dtype=torch.float64))
    return model, torch.randn(11, 5, generator=g, dtype=torch.float64), torch.arange(11) % 3


@pytest.mark.filterwarnings("ignore:.*is not supported with padding.*")
@CASES
@given(model=st.one_of(dense(), convolutional()), seed=st.integers(0, 2**16), batch_size=st.integers(1, 12))
def test_the_gram_matrix_is_that_of_explicit_gradients(model: nn.Module, seed: int, batch_size: int) -> None:
    model, x, y = prepared(model, seed)
    before = copy.deepcopy(model.state_dict())
    minimum = Minimum(model, (x, y), batch_size=batch_size)
    found = minimum[Gram(SUBSET, 2, seed)].matrices()
    order = minimum.samples.order(seed)[: 2 * SUBSET]
    rows = []
    for i in order.tolist():
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    jacobian = torch.stack(rows).view(2, SUBSET, -1)
    expected = jacobian @ jacobian.transpose(1, 2)
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12 * float(expected.abs().max()))
    assert minimum.follows_layers, "the slow path would be right as well, and hide a broken rule"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


@CASES
@given(
    model=st.one_of(dense(), convolutional()),
    seed=st.integers(0, 2**16),
    batches=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    shuffle=st.permutations(range(11)),
)
def test_nothing_depends_on_how_the_data_is_cut(
    model: nn.Module, seed: int, batches: tuple[int, int], shuffle: list[int]
) -> None:
    model, x, y = prepared(model, seed)
    wanted = [
        partial(measures.fisher_trace, subset=SUBSET),
        partial(measures.pacgen, epsilon=1.0),
        partial(measures.expected_sharpness, draws=3, samples=5),
        "robustness",
        "margin",
    ]
    one = measure(Minimum(model, (x, y), batch_size=batches[0]), wanted)
    index = torch.tensor(shuffle)
    other = measure(Minimum(model, (x[index], y[index]), batch_size=batches[1]), wanted)
    for name in one:
        if one[name].value is None:
            assert other[name].undefined == one[name].undefined
        else:
            assert other[name].value == pytest.approx(one[name].value, rel=1e-8, abs=1e-12), name
