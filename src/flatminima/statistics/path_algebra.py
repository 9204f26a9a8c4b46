"""Torch's calls in another algebra, as a mode: weights become |w|^p and every path through the network is added up.

ReLU is the identity on what is not negative, BatchNorm is folded into the linear map before it, average pooling of k
elements gets weight (1/k)^p and max-pooling adds up the paths through its window. An operation that has no such meaning
(sigmoid, attention, LayerNorm, ...) is `Undefined`, named, wherever it stands in the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flatminima.errors import Undefined
from flatminima.statistics.network_graph import Convolution, LinearLayer, Node

# linear with weight 1, or the identity on what is not negative
_PLAIN = frozenset(
    [
        "relu",
        "relu_",
        "flatten",
        "reshape",
        "view",
        "permute",
        "transpose",
        "contiguous",
        "squeeze",
        "unsqueeze",
        "cat",
        "concat",
        "stack",
        "sum",
        "clone",
        "detach",
        "expand",
        "chunk",
        "split",
        "t",
        "movedim",
        "swapaxes",
        "select",
        "narrow",
        "__getitem__",
        "unflatten",
        "pixel_shuffle",
        "channel_shuffle",
        "ravel",
    ]
)
_IDENTITY = frozenset(  # in eval mode; of leaky ReLU the larger slope counts
    ["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "leaky_relu", "leaky_relu_"]
)
_ADDS = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__"])
_JOINS = frozenset(["cat", "concat", "stack"])
_CLAMPS = frozenset(["clamp", "clamp_", "clamp_min", "clamp_min_", "_threshold", "threshold", "threshold_"])
_ZEROS = frozenset(["zeros", "zeros_like", "new_zeros"])
_INSPECT = frozenset(
    [
        "size",
        "dim",
        "numel",
        "__get__",
        "shape",
        "stride",
        "is_floating_point",
        "__len__",
        "ndimension",
        "is_contiguous",
        "element_size",
        "get_device",
        "nelement",
        "__set__",
        "requires_grad_",
        "has_torch_function",
    ]
)
_CASTS = frozenset(["to", "type", "float", "double", "half", "bfloat16", "type_as", "cuda", "cpu"])


@dataclass
class _Linear:
    """A linear map's result before its bias, so that a BatchNorm can still be folded in."""

    without_bias: Tensor
    bias: Tensor | None
    layer: int
    channel: int
    source: int
    output: Tensor = field(repr=False)  # held, so that its id stays its own


class PathAlgebra(TorchFunctionMode):
    def __init__(self, p: float, names: dict[int, str]) -> None:
        super().__init__()
        self.p, self.names = p, names
        self.layers: list[LinearLayer] = []
        self.folded, self.max_pooled = 0, False
        self._open: dict[int, _Linear] = {}
        self._known: dict[int, Tensor] = {}  # activations, held so that their ids stay their own
        self._nodes: dict[int, int] = {}  # by the id of the activation
        self.graph: list[Node] = []
        self._step: Node | None = None  # what the operation at work is, where it says so itself

    def know(self, value: Any, node: int) -> Any:
        """Remember a result as an activation, that is, a sum over paths from the input."""
        if isinstance(value, Tensor):
            self._known[id(value)], self._nodes[id(value)] = value, node
        elif isinstance(value, tuple | list):
            for part in value:
                self.know(part, node)
        return value

    def _noted(self, node: Node) -> int:
        self.graph.append(node)
        return len(self.graph) - 1

    def end(self, output: Any) -> None:
        """Let the graph end with the output."""
        from flatminima.core.batch import logits

        self._noted(Node("same", (self._nodes[id(logits(output))],)))

    def total(self, output: Any) -> float:
        from flatminima.core.batch import logits

        value = float(logits(output).sum())
        if not math.isfinite(value):
            raise Undefined("the path norm overflows float64")
        return value

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in _ZEROS:
            return self.know(func(*args, **kwargs), self._noted(Node("add", ())))
        subject = args[0] if args else kwargs.get("input", kwargs.get("tensors"))
        if name in _INSPECT:
            value = func(*args, **kwargs)
            return self.know(value, self._nodes[id(subject)]) if self._is_known(subject) else value
        if not self._is_known(subject):
            raise Undefined(f"{name!r} of a constant or a parameter is not an operation of a ReLU network")
        if name.startswith("leaky_relu"):
            self._open.pop(id(subject), None)
            if not -1 <= (args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)) <= 1:
                raise Undefined("a leaky ReLU that is steeper below 0 than above")
        if name in _CASTS or name in _IDENTITY:
            return subject
        handler: Callable[..., Any] | None = getattr(self, f"_{name}", None)
        if handler is not None:
            self._step = None
            out = handler(*args, **kwargs)
            return self.know(out, self._noted(self._step or self._stretched(func, args, kwargs)))
        if name in _ADDS:
            if not self._is_known(args[1]) or kwargs.get("alpha", 1) != 1:
                raise Undefined(f"{name!r} of a constant or a parameter is not an operation of a ReLU network")
        elif name in _CLAMPS:
            levels = [v for v in [*args[1:], *kwargs.values()] if v is not None and not isinstance(v, bool)]
            if levels not in ([0], [0, 0]) or kwargs.get("max") is not None or (len(args) > 2 and "clamp" in name):
                raise Undefined(f"{name!r} at another value than 0 is not a ReLU")
        elif name not in _PLAIN:
            raise Undefined(
                f"{name!r} is not an operation of a ReLU network (piecewise linear, no normalisation by the input)"
            )
        if name in _ADDS:
            node = Node("add", self._sources(args[:2]))
        elif name in _JOINS:
            node = Node("cat", self._sources(subject))
        else:
            node = self._stretched(func, args, kwargs)
        out = func(*args, **kwargs)
        if out is subject:  # written in place: no longer the bare result of a linear map
            self._open.pop(id(out), None)
        return self.know(out, self._noted(node))

    def _sources(self, values: Any) -> tuple[int, ...]:
        return tuple(self._nodes[id(value)] for value in values)

    def _stretched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """A linear operation without weights (or ReLU): its matrix A >= 0 has ||A||_2^2 <= ||A||_1 ||A||_inf."""
        key = next((k for k in ("input", "tensors") if not args and k in kwargs), None)
        subject = args[0] if key is None else kwargs[key]
        if self.p != 1:  # the graph of the first run is the one that is read
            return Node("same", (self._nodes[id(subject)],))
        with torch.enable_grad():
            ones = torch.ones_like(subject).requires_grad_()
            if key is None:
                out = func(ones.clone(), *args[1:], **kwargs)
            else:
                out = func(**{**kwargs, key: ones.clone()})
            parts = out if isinstance(out, tuple | list) else (out,)
            (columns,) = torch.autograd.grad([part.sum() for part in parts], ones)
        rows = max(float(part.max()) for part in parts if part.numel())
        return Node("same", (self._nodes[id(subject)],), None, math.sqrt(rows * float(columns.max())), rows)

    def _is_known(self, value: Any) -> bool:
        if isinstance(value, tuple | list):
            return all(self._is_known(v) for v in value)
        return isinstance(value, Tensor) and id(value) in self._known

    # -- linear maps -------------------------------------------------------------------------------------------------

    def _power(self, t: Tensor) -> Tensor:
        return t.detach().double().abs().pow(self.p)

    def _map(
        self, apply: Callable[[Tensor], Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, channel: int,
        kind: str, geometry: Convolution | None = None,
    ) -> Tensor:  # fmt: skip
        if self._is_known(weight):
            raise Undefined(f"{kind!r} with weights made from the input is not an operation of a ReLU network")
        out = apply(self._power(weight))
        shape = [1] * out.dim()
        shape[channel] = -1
        full = out if bias is None else out + self._power(bias).view(shape)
        matrix = weight.detach().double().flatten(1).cpu()
        name = self.names.get(id(weight), kind).removesuffix(".weight")
        self.layers.append(LinearLayer(name, matrix, convolution=geometry))
        source = self._nodes[id(input)]
        self._step = Node("same", (source,), self.layers[-1])
        self._open[id(full)] = _Linear(out, bias, len(self.layers) - 1, channel % out.dim(), source, full)
        return full

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._map(lambda w: F.linear(input, w), input, weight, bias, -1, "linear")

    def _convolve(self, function: Any, input: Tensor, weight: Tensor, bias: Any, rest: Any, kw: Any) -> Tensor:
        geometry = Convolution(function, rest, kw, tuple(weight.shape), (1, *input.shape[1:]))
        return self._map(
            lambda w: function(input, w, None, *rest, **kw), input, weight, bias, 1, "convolution", geometry
        )

    def _conv1d(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kw: Any) -> Tensor:
        return self._convolve(F.conv1d, input, weight, bias, rest, kw)

    def _conv2d(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kw: Any) -> Tensor:
        return self._convolve(F.conv2d, input, weight, bias, rest, kw)

    def _conv3d(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kw: Any) -> Tensor:
        return self._convolve(F.conv3d, input, weight, bias, rest, kw)

    def _pad(self, input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        if mode == "constant" and value:
            raise Undefined("padding with a constant other than 0 is not linear")
        return F.pad(input, pad, mode, value)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or running_mean is None or running_var is None:
            raise Undefined("BatchNorm without running statistics depends on the batch")
        mean, var = running_mean.double(), running_var.double()
        scale = (var + eps).rsqrt() * (1.0 if weight is None else weight.detach().double())
        shift = -scale * mean + (0.0 if bias is None else bias.detach().double())
        shape = (1, -1) + (1,) * (input.dim() - 2)
        before = self._open.pop(id(input), None)
        if before is None or before.channel != 1:
            name = self.names.get(id(weight), "batch_norm").removesuffix(".weight")
            deviation = (var + eps).rsqrt().cpu()
            self.layers.append(LinearLayer(name, scale.cpu().unsqueeze(0), True, scale=deviation))
            self._step = Node("same", (self._nodes[id(input)],), self.layers[-1])
            return input * self._power(scale).view(shape) + self._power(shift).view(shape)
        if before.bias is not None:
            shift = shift + scale * before.bias.detach().double()
        self.folded += 1
        layer = self.layers[before.layer]
        folded = replace(layer, matrix=layer.matrix * scale.cpu().unsqueeze(1), scale=scale.cpu())
        self.layers[before.layer] = folded
        self._step = Node("same", (before.source,), folded)
        return before.without_bias * self._power(scale).view(shape) + self._power(shift).view(shape)

    # -- pooling -----------------------------------------------------------------------------------------------------

    def _averaged(self, out: Tensor, elements: float | Tensor) -> Tensor:
        return out * elements ** (1.0 - self.p)  # k paths of weight 1/k each: k (1/k)^p times their mean

    def _avg_pool(self, function: Any, dims: int, input: Tensor, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
        """Each window with its own divisor: padding and overhang may or may not count."""
        ones = torch.ones_like(input[:1, :1])
        names = ("kernel_size", "stride", "padding", "ceil_mode")
        given = dict(zip(names, args, strict=False)) | {k: v for k, v in kw.items() if k in names}
        inside = _summed(dims, ones, **given)
        return self._averaged(function(input, *args, **kw), inside / function(ones, *args, **kw))

    def _avg_pool1d(self, input: Tensor, *args: Any, **kw: Any) -> Tensor:
        return self._avg_pool(F.avg_pool1d, 1, input, args, kw)

    def _avg_pool2d(self, input: Tensor, *args: Any, **kw: Any) -> Tensor:
        return self._avg_pool(F.avg_pool2d, 2, input, args, kw)

    def _avg_pool3d(self, input: Tensor, *args: Any, **kw: Any) -> Tensor:
        return self._avg_pool(F.avg_pool3d, 3, input, args, kw)

    def _adaptive(self, function: Any, input: Tensor, output_size: Any) -> Tensor:
        out: Tensor = function(input, output_size)
        if any(i % o for i, o in zip(input.shape[2:], out.shape[2:], strict=True)):
            raise Undefined("adaptive pooling with windows of different sizes")
        return self._averaged(out, math.prod(input.shape[2:]) / math.prod(out.shape[2:]))

    def _adaptive_avg_pool1d(self, input: Tensor, output_size: Any) -> Tensor:
        return self._adaptive(F.adaptive_avg_pool1d, input, output_size)

    def _adaptive_avg_pool2d(self, input: Tensor, output_size: Any) -> Tensor:
        return self._adaptive(F.adaptive_avg_pool2d, input, output_size)

    def _adaptive_avg_pool3d(self, input: Tensor, output_size: Any) -> Tensor:
        return self._adaptive(F.adaptive_avg_pool3d, input, output_size)

    def _mean(self, input: Tensor, *args: Any, **kw: Any) -> Tensor:
        out = input.mean(*args, **kw)
        return self._averaged(out, input.numel() / out.numel())

    def _max_pool(
        self, dims: int, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Tensor:  # fmt: skip
        if return_indices or math.prod(_sizes(dilation, dims)) != 1:
            raise Undefined("max-pooling with dilation or indices")
        self.max_pooled = True

        def sums(x: Tensor) -> Tensor:
            return _summed(dims, x, kernel_size, stride, padding, ceil_mode)

        # a value stretches a change as often as there are windows around it, each window by at most 1
        windows = self._stretched(sums, (input,), {})
        self._step = replace(windows, stretch_2=windows.stretch_2 / math.sqrt(windows.stretch_inf), stretch_inf=1.0)
        return sums(input)

    def _max_pool1d(self, *args: Any, **kw: Any) -> Tensor:
        return self._max_pool(1, *args, **kw)

    def _max_pool2d(self, *args: Any, **kw: Any) -> Tensor:
        return self._max_pool(2, *args, **kw)

    def _max_pool3d(self, *args: Any, **kw: Any) -> Tensor:
        return self._max_pool(3, *args, **kw)


def _summed(
    dims: int, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False
) -> Tensor:
    """Sums over windows."""
    window, margin = _sizes(kernel_size, dims), _sizes(padding, dims)
    step = _sizes(stride, dims) if stride not in (None, (), []) else window
    if dims == 1:  # only 2-d and 3-d pooling can be told to divide by 1
        return _summed(2, input.unsqueeze(2), (1, *window), (1, *step), (0, *margin), ceil_mode).squeeze(2)
    pool: Any = F.avg_pool2d if dims == 2 else F.avg_pool3d
    out: Tensor = pool(input, window, step, margin, ceil_mode, True, divisor_override=1)
    return out


def _sizes(size: Any, dims: int) -> tuple[int, ...]:
    sizes = tuple(size) if isinstance(size, tuple | list) else (int(size),)
    return sizes * dims if len(sizes) == 1 else sizes
