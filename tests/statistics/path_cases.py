"""Networks with factors, raw parameters, parametrizations and other layers, and the paths that they have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from case_networks import Net, _scatter
from flatminima import Minimum
from flatminima.statistics import FeedForward, FeedForwardNetwork

L = nn.Linear
Paths = Callable[[nn.Module, int], Tensor]  # network, p -> sums over the paths to each output


def found(model: nn.Module, *inputs: Tensor) -> FeedForwardNetwork:
    return Minimum(model, (inputs if len(inputs) > 1 else inputs[0], torch.arange(3) % 2))[FeedForward()]


def ready(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = make().double().eval()
        _scatter(model)
        for p in model.parameters():
            p.data += 0.2 * torch.randn_like(p)
    return model


def dense(layer: Callable[[Tensor], Tensor], *shape: int) -> tuple[Tensor, Tensor]:
    """Matrix and offset of an affine map, basis vector by basis vector."""
    size = math.prod(shape)
    with torch.no_grad():
        offset = layer(torch.zeros(1, *shape).double())
        columns = layer(torch.eye(size).double().view(size, *shape)) - offset
    return columns.reshape(size, -1).T, offset.reshape(-1)


def through(layer: Callable[[Tensor], Tensor], paths: Tensor, p: int) -> Tensor:
    """Paths of an affine map no entry of which sums two weights."""
    matrix, offset = dense(layer, *paths.shape)
    return matrix.abs() ** p @ paths.reshape(-1) + offset.abs() ** p


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape).double()


class Raw(nn.Module):
    """Parameters of its own, and what it does with them."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.w, self.v = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 3))
        self.b, self.c, self.g = (
            nn.Parameter(torch.randn(3)),
            nn.Parameter(torch.randn(3)),
            nn.Parameter(torch.ones(())),
        )
        self.register_buffer("shift", torch.tensor([0.5, -2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def pw(t: Tensor, p: int) -> Tensor:
    return t.detach().abs() ** p


def _lora(s: Any, x: Tensor) -> Tensor:
    return s.base(x) + 0.5 * s.up(s.down(x))


def _deq(s: Any, x: Tensor) -> Tensor:
    z = torch.zeros(len(x), 3, dtype=x.dtype, device=x.device)
    for _ in range(3):
        z = F.relu(0.5 * s.inner(z) + s.outer(x))
    return z


def _deq_paths(s: Any, p: int) -> Tensor:
    w, b, x = pw(s.inner.weight, p), s.inner.bias.detach(), through(s.outer, ones(4), p)
    first = pw(s.outer.weight, p) @ ones(4) + pw(0.5 * b + s.outer.bias.detach(), p)  # of zeros, one offset
    z = first
    for _ in range(2):
        z = 0.5**p * (w @ z + pw(b, p)) + x
    return z


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Paths]] = {
    "scalar factor": (
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x) * 0.5)) / 3, a=L(4, 3), b=L(3, 3)), (4,),
        lambda m, p: through(m.b, 0.5**p * through(m.a, ones(4), p), p) / 3**p),
    "factor after ReLU": (
        lambda: Net(lambda s, x: s.b(0.5 * F.relu(s.a(x))), a=L(4, 3), b=L(3, 3)), (4,),
        lambda m, p: through(m.b, 0.5**p * through(m.a, ones(4), p), p)),
    "LoRA": (
        lambda: Net(_lora, base=L(4, 3), down=L(4, 2, bias=False), up=L(2, 3, bias=False)), (4,),
        lambda m, p: through(m.base, ones(4), p)
        + 0.5**p * through(m.up, through(m.down, ones(4), p), p)),
    "LoRA merged": (
        lambda: Raw(lambda s, x: F.linear(x, s.w.T + 0.5 * s.v @ s.w.T)), (4,),
        lambda m, p: pw(m.w.T + 0.5 * m.v @ m.w.T, p) @ ones(4)),
    "LayerScale": (
        lambda: Raw(lambda s, x: x[:, :3] + s.c * F.linear(F.relu(x @ s.w), s.v, s.b)), (4,),
        lambda m, p: 1 + pw(m.c, p) * (pw(m.v, p) @ (pw(m.w, p).T @ ones(4)) + pw(m.b, p))),
    "LayerScale after ReLU": (
        lambda: Raw(lambda s, x: F.linear(s.c * F.relu(x @ s.w), s.v)), (4,),
        lambda m, p: pw(m.v, p) @ (pw(m.c, p) * (pw(m.w, p).T @ ones(4)))),
    "0-dimensional scale": (
        lambda: Raw(lambda s, x: x[:, :3] + s.g * F.linear(F.relu(x @ s.w), s.v, s.b)), (4,),
        lambda m, p: 1 + pw(m.g, p) * (pw(m.v, p) @ (pw(m.w, p).T @ ones(4)) + pw(m.b, p))),
    "DEQ": (lambda: Net(_deq, inner=L(3, 3), outer=L(4, 3)), (4,), _deq_paths),
    "difference of two layers": (
        lambda: Net(lambda s, x: s.a(x) - s.b(x), a=L(4, 3), b=L(4, 3)), (4,),
        lambda m, p: through(m.a, ones(4), p) + through(m.b, ones(4), p)),
    "constant minus": (
        lambda: Net(lambda s, x: F.relu(1 - s.a(x)) - 2, a=L(4, 3, bias=False)), (4,),
        lambda m, p: 1 + through(m.a, ones(4), p) + 2**p),
    "add with alpha": (
        lambda: Net(lambda s, x: torch.add(s.a(x), s.b(x), alpha=-3), a=L(4, 3), b=L(4, 3)), (4,),
        lambda m, p: through(m.a, ones(4), p) + 3**p * through(m.b, ones(4), p)),
    "x @ W + b": (
        lambda: Raw(lambda s, x: F.relu(x @ s.w + s.b) @ s.v), (4,),
        lambda m, p: pw(m.v, p).T @ (pw(m.w, p).T @ ones(4) + pw(m.b, p))),
    "two offsets are one": (
        lambda: Raw(lambda s, x: x @ s.w + s.b + s.shift), (4,),
        lambda m, p: pw(m.w, p).T @ ones(4) + pw(m.b + m.shift, p)),
    "addmm": (
        lambda: Raw(lambda s, x: torch.addmm(s.b, x, s.w)), (4,),
        lambda m, p: pw(m.w, p).T @ ones(4) + pw(m.b, p)),
    "einsum": (
        lambda: Raw(lambda s, x: torch.einsum("bi,io->bo", x, s.w).sub_(s.b)), (4,),
        lambda m, p: pw(m.w, p).T @ ones(4) + pw(m.b, p)),
    "einsum over tokens": (
        lambda: Raw(lambda s, x: torch.einsum("t o, ...tc -> ...oc", s.w, x).sum(2)), (4, 5),
        lambda m, p: 5 * pw(m.w, p).T @ ones(4)),
    "einsum in blocks": (
        lambda: Raw(lambda s, x: torch.einsum("bhi,hi->bh", x, s.w).mul(2)[:, :3]), (4, 3),
        lambda m, p: (2**p * pw(m.w, p).sum(1))[:3]),
    "W @ x": (
        lambda: Raw(lambda s, x: (s.w.T @ x.unsqueeze(-1)).squeeze(-1)), (4,),
        lambda m, p: pw(m.w, p).T @ ones(4)),
    "tensordot": (
        lambda: Raw(lambda s, x: torch.tensordot(x, s.w, dims=([2], [0])).sum(1)), (2, 4),
        lambda m, p: 2 * pw(m.w, p).T @ ones(4)),
    "weight_norm": (
        lambda: nn.Sequential(weight_norm(L(4, 5)), nn.ReLU(), weight_norm(L(5, 3))), (4,),
        lambda m, p: through(m[2], through(m[0], ones(4), p), p)),
    "spectral_norm": (
        lambda: nn.Sequential(spectral_norm(L(4, 5)), nn.ReLU(), L(5, 3)), (4,),
        lambda m, p: through(m[2], through(m[0], ones(4), p), p)),
    "orthogonal": (lambda: orthogonal(L(4, 3)), (4,), lambda m, p: through(m, ones(4), p)),
    "ConvTranspose1d": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 4, 2, 1, output_padding=1), nn.ReLU(), nn.Flatten()), (2, 3),
        lambda m, p: through(m[0], ones(2, 3), p)),
    "ConvTranspose2d": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2, dilation=2), nn.BatchNorm2d(4),
                              nn.ReLU(), nn.Flatten()), (2, 3, 2),
        lambda m, p: through(lambda x: m[1](m[0](x)), ones(2, 3, 2), p)),
    "ConvTranspose3d": (
        lambda: nn.Sequential(nn.ConvTranspose3d(1, 2, 2), nn.Flatten()), (1, 2, 2, 2),
        lambda m, p: through(m[0], ones(1, 2, 2, 2), p)),
    "nearest upsampling": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Upsample(scale_factor=2), nn.Flatten()), (1, 3, 4),
        lambda m, p: 4 * through(m[0], ones(1, 3, 4), p)),
    "nearest upsampling to a size": (
        lambda: Net(lambda s, x: F.interpolate(s.c(x), size=(5, 3), mode="nearest").flatten(1), c=nn.Conv2d(1, 2, 1)),
        (1, 3, 4),
        lambda m, p: through(lambda h: F.interpolate(h, size=(5, 3)),
                             through(m.c, ones(1, 3, 4), p).view(2, 3, 4), p)),
    "bilinear upsampling": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Upsample(size=(5, 4), mode="bilinear"), nn.Flatten()), (1, 4, 3),
        lambda m, p: through(lambda h: F.interpolate(h, size=(5, 4), mode="bilinear"),
                             through(m[0], ones(1, 4, 3), p).view(2, 3, 2), p)),
    "bicubic upsampling": (
        lambda: nn.Sequential(nn.Upsample(size=(5, 7), mode="bicubic"), nn.Conv2d(1, 2, 1), nn.Flatten()), (1, 4, 3),
        lambda m, p: through(m[1], through(m[0], ones(1, 4, 3), p).view(1, 5, 7), p)),
    "PReLU": (
        lambda: nn.Sequential(L(4, 3), nn.PReLU(), L(3, 2)), (4,),
        lambda m, p: through(m[2], float(pw(m[1].weight, p).clamp_min(1)) * through(m[0], ones(4), p), p)),
    "PReLU by channel": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.PReLU(3, 1.0), nn.Flatten()), (2, 4),
        lambda m, p: (pw(m[1].weight, p).clamp_min(1)[:, None] * through(m[0], ones(2, 4), p).view(3, 3)).view(-1)),
    "steep leaky ReLU": (
        lambda: nn.Sequential(L(4, 3), nn.LeakyReLU(1.5), L(3, 2)), (4,),
        lambda m, p: through(m[2], 1.5**p * through(m[0], ones(4), p), p)),
    "leaky ReLU, RReLU": (
        lambda: nn.Sequential(L(4, 3), nn.LeakyReLU(-0.5), L(3, 2), nn.RReLU()), (4,),
        lambda m, p: through(m[2], through(m[0], ones(4), p), p)),
    "ReLU6": (
        lambda: nn.Sequential(L(4, 3), nn.ReLU6(), L(3, 2)), (4,),
        lambda m, p: through(m[2], through(m[0], ones(4), p), p)),
    "hard tanh, soft shrinkage, |x|": (
        lambda: nn.Sequential(L(4, 3), nn.Hardtanh(-2, 1), nn.Softshrink(), Net(lambda s, x: x.abs()), L(3, 2)), (4,),
        lambda m, p: through(m[4], through(m[0], ones(4), p), p)),
    "clamps with a value at 0": (
        lambda: Net(lambda s, x: s.b(s.a(x).clamp(0.5, 3.0)).clamp(max=-0.25), a=L(4, 3), b=L(3, 2)), (4,),
        lambda m, p: through(m.b, through(m.a, ones(4), p) + 0.5**p, p) + 0.25**p),
    "a threshold without a jump": (
        lambda: nn.Sequential(L(4, 3), nn.Threshold(0.5, 0.5)), (4,), lambda m, p: through(m[0], ones(4), p) + 0.5**p),
    "hard sigmoid": (
        lambda: nn.Sequential(L(4, 3), nn.Hardsigmoid()), (4,),
        lambda m, p: through(m[0], ones(4), p) / 6**p + 0.5**p),
    "maxout": (
        lambda: Net(lambda s, x: torch.maximum(s.a(x), s.b(x)), a=L(4, 3), b=L(4, 3)), (4,),
        lambda m, p: through(m.a, ones(4), p) + through(m.b, ones(4), p)),
    "a constant joined": (
        lambda: Raw(lambda s, x: F.linear(torch.cat([x[:, :1], s.shift[:2].expand(len(x), 2)], 1), s.v)), (4,),
        lambda m, p: pw(m.v, p) @ torch.cat([ones(1), pw(m.shift[:2], p)])),
    "position embeddings": (
        lambda: Raw(lambda s, x: F.relu(x + s.w).sum(1)), (4, 3), lambda m, p: (1 + pw(m.w, p)).sum(0)),
    "normalised inputs": (
        lambda: Net(lambda s, x: s.a((x - 0.5) / 0.25), a=L(4, 3)), (4,),
        lambda m, p: through(m.a, (ones(4) + 0.5**p) * 4**p, p)),
    "in place": (
        lambda: Net(lambda s, x: s.b(s.a(x).mul_(0.5).add_(x[:, :3]).relu_()), a=L(4, 3), b=L(3, 2)), (4,),
        lambda m, p: through(m.b, 0.5**p * through(m.a, ones(4), p) + 1, p)),
    "written into zeros": (
        lambda: Net(lambda s, x: _written(s, x), a=L(4, 3)), (4,),
        lambda m, p: torch.cat([through(m.a, ones(4), p), ones(1)])),
    "written into views of zeros": (
        lambda: Net(_views, a=L(4, 3)), (4,), lambda m, p: torch.cat([through(m.a, ones(4), p), ones(1)])),
    "masked": (
        lambda: _masked(), (4,),
        lambda m, p: through(m.a, torch.tensor([2.0**p, 1, 1, 1]).double(), p)),
    "patches": (
        lambda: Net(lambda s, x: s.a(F.unfold(x, 2, stride=2).transpose(1, 2)).mean(1), a=L(4, 3)), (1, 4, 4),
        lambda m, p: 4 ** (1 - p) * through(m.a, ones(4), p)),
    "nothing in eval mode": (
        lambda: nn.Sequential(L(4, 3), nn.Dropout(), nn.Identity(), nn.AlphaDropout(), nn.BatchNorm1d(3)), (4,),
        lambda m, p: through(lambda x: m[4](m[0](x)), ones(4), p)),
}  # fmt: skip


def _views(s: Any, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 4)
    out[:, :3].copy_(s.a(x))
    out[:, 3:] += x[:, :1]
    return out


def _masked() -> nn.Module:
    model = Net(lambda s, x: s.a(x.masked_fill(s.mask, 2.0)), a=L(4, 3))
    model.register_buffer("mask", torch.tensor([True, False, False, False]))
    return model


def _written(s: Any, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 4, dtype=x.dtype, device=x.device)
    out[:, :3] = s.a(x)
    out[:, 3] = x[:, 0]
    return out
