"""Fresh weights for every example of a batch, by intercepting the layers of one forward pass.

A linear layer's outputs under W ~ N(mu, sigma^2) are independent Gaussians of mean x mu^T and variance
x^2 (sigma^2)^T, so noise on the outputs, an own one for each example, is exactly a draw of W for each example (local
re-parameterisation, Kingma et al. 2015). A convolution's positions share their weights, so noise on its outputs is
not: its kernels are drawn themselves, one set an example, and applied as groups of a single convolution. Whatever
else touches a random weight, or touches it twice, cannot be drawn by the example; `SharedWeights` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MOST = 1 << 24  # weights drawn at a time: 64 MB
_TINY = 1e-30  # a variance of 0 has an infinite slope under the root


class SharedWeights(Exception):
    """A random weight is used in a way that no draw by the example exists for; the text names it."""


class PerExample(TorchFunctionMode):
    """Within the block, layers use weights mu + sigma z with a z of its own for each example.

    Args:
        sigmas: id of a weight tensor mu -> sigma, of mu's shape.
        standing_in: id of the tensor that the network holds in mu's place -> mu. It should be NaN, so that a use of it
            that is not seen here (in compiled or scripted code) does not pass for a draw.
        examples: size of the batch, the leading dimension of every layer's input.
        generator: of the noise.
        kernels_by_batch: one draw of a convolution's kernels for the whole batch, to train with; unbiased, but its
            examples are then one draw.
    """

    def __init__(
        self,
        sigmas: Mapping[int, Tensor],
        standing_in: Mapping[int, Tensor],
        examples: int,
        generator: torch.Generator | None = None,
        *,
        kernels_by_batch: bool = False,
    ) -> None:
        super().__init__()
        self.sigmas, self.standing_in = sigmas, standing_in
        self.examples, self.generator = examples, generator
        self.kernels_by_batch = kernels_by_batch
        self.used: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if not any(id(t) in self.standing_in for t in _tensors((args, kwargs))):
            return func(*args, **kwargs)
        if rule is not None:
            args, kwargs = (self._means(values) for values in (args, kwargs))
            return rule(self, func, *args, **kwargs)
        result = func(*args, **kwargs)
        if any(True for _ in _tensors(result)):
            raise SharedWeights(f"{getattr(func, '__name__', func)} reads a random weight outside of its layer")
        return result  # a shape, a dtype

    def _means(self, values: Any) -> Any:
        """Arguments of a layer, with means in place of those that are left out."""
        if isinstance(values, dict):
            return {key: self._mean(value) for key, value in values.items()}
        return tuple(self._mean(value) for value in values)

    def _mean(self, value: Any) -> Any:
        return self.standing_in.get(id(value), value)

    def sigma(self, weight: Tensor | None) -> Tensor | None:
        """sigma of a weight that is random; each may be asked for once."""
        if weight is None or id(weight) not in self.sigmas:
            return None
        if id(weight) in self.used:
            raise SharedWeights(f"a random weight of shape {tuple(weight.shape)} is used twice")
        self.used.add(id(weight))
        return self.sigmas[id(weight)]

    def check(self, x: Tensor, dim: int) -> None:
        if x.dim() < dim or len(x) != self.examples:
            raise SharedWeights(f"a layer's input has shape {tuple(x.shape)}: its rows are not the examples")

    def noise(self, shape: Iterable[int], like: Tensor) -> Tensor:
        device = like.device if self.generator is None else self.generator.device
        return torch.randn(tuple(shape), generator=self.generator, device=device, dtype=like.dtype).to(like.device)

    def each(self, weight: Tensor, sigma: Tensor | None, count: int) -> Tensor:
        """`count` draws of a weight, (count, *shape)."""
        if sigma is None:
            return weight.expand(count, *weight.shape)
        return weight + sigma * self.noise((count, *weight.shape), weight)

    def scaled(self, normal: Tensor, weight: Tensor | None, bias: Tensor | None, axis: int) -> Tensor:
        """weight * normal + bias, both drawn an example, their first axis at `axis` of the normalised input."""
        for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
            if parameter is not None:
                drawn = self.each(parameter, self.sigma(parameter), len(normal))
                after = normal.dim() - axis - parameter.dim()
                normal = apply(normal, drawn.reshape(len(normal), *[1] * (axis - 1), *parameter.shape, *[1] * after))
        return normal


def _linear(
    self: PerExample, func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    self.check(input, 2)
    sigma, sigma_bias = self.sigma(weight), self.sigma(bias)
    if input.dim() == 2:
        variance = _TINY if sigma is None else func(input.square(), sigma.square()).clamp_min(_TINY)
        if sigma_bias is not None:
            variance = variance + sigma_bias.square()
        mean: Tensor = func(input, weight, bias)
        return mean + torch.as_tensor(variance).sqrt() * self.noise(mean.shape, mean)

    def some(x: Tensor) -> Tensor:  # positions of one example share its weights
        w = self.each(weight, sigma, len(x))
        flat = x.reshape(len(x), -1, x.shape[-1]) @ w.transpose(1, 2)
        if bias is not None:
            flat = flat + self.each(bias, sigma_bias, len(x)).unsqueeze(1)
        return flat.reshape(*x.shape[:-1], len(weight))

    return torch.cat([some(x) for x in input.split(_chunk(weight))])


def _conv(
    self: PerExample,
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    self.check(input, weight.dim())
    sigma, sigma_bias = self.sigma(weight), self.sigma(bias)
    if self.kernels_by_batch:
        w = self.each(weight, sigma, 1)[0]
        b = None if bias is None else self.each(bias, sigma_bias, 1)[0]
        out: Tensor = func(input, w, b, stride, padding, dilation, groups)
        return out

    def some(x: Tensor) -> Tensor:
        k = len(x)
        w = self.each(weight, sigma, k).reshape(k * len(weight), *weight.shape[1:])
        b = None if bias is None else self.each(bias, sigma_bias, k).reshape(-1)
        y = func(x.reshape(1, -1, *x.shape[2:]), w, b, stride, padding, dilation, k * groups)
        return y.reshape(k, len(weight), *y.shape[2:])  # type: ignore[no-any-return]

    return torch.cat([some(x) for x in input.split(_chunk(weight))])


def _batch_norm(
    self: PerExample,
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    self.check(input, 2)
    return self.scaled(func(input, running_mean, running_var, None, None, training, momentum, eps), weight, bias, 1)


def _layer_norm(
    self: PerExample,
    func: Callable[..., Any],
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    self.check(input, 2)
    return self.scaled(
        func(input, normalized_shape, None, None, eps), weight, bias, input.dim() - len(normalized_shape)
    )


def _group_norm(
    self: PerExample,
    func: Callable[..., Any],
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    self.check(input, 2)
    return self.scaled(func(input, num_groups, None, None, eps), weight, bias, 1)


def _chunk(weight: Tensor) -> int:
    return max(1, _MOST // weight.numel())


def _tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


_RULES: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv3d: _conv,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
