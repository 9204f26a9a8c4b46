"""Per-sample gradients of one layer from its input a and its output's gradient e, without a backward pass per sample.

One rule a layer kind; each returns, for the layer's own parameters, a tensor (batch, *parameter.shape). Note:
for convolutions `unfold` is the trap; one grouped convolution over all samples costs about one ordinary weight gradient
(0.47 s against 1.14 s for a Gram of 100 samples on ResNet-20, benchmarks/bench_gram.py).
Layers without a rule go through vmapped gradients of their own forward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PerSample = dict[str, Tensor]  # parameter name within the layer -> (batch, *shape)
Rule = Callable[[Any, Tensor, Tensor], _PerSample]

_LANES = 16  # channels that vector units take at once; other block sizes are up to five times slower
_BLOCK_BYTES = 4 << 20  # of per-sample gradients at a time: allocated anew without page faults, and near the cache


def linear_rule(layer: nn.Linear, a: Tensor, e: Tensor) -> _PerSample:
    """y = a W^T + b, any number of dimensions between batch and features summed over."""
    batch = len(a)
    a, e = a.reshape(batch, -1, a.shape[-1]), e.reshape(batch, -1, e.shape[-1])
    return {"weight": torch.bmm(e.transpose(1, 2), a), "bias": e.sum(1)}


def transposed_linear(layer: Any, a: Tensor, e: Tensor) -> _PerSample:
    """y = a W + b, W (in, out): GPT-2's layers, which transformers call Conv1D."""
    batch = len(a)
    a, e = a.reshape(batch, -1, a.shape[-1]), e.reshape(batch, -1, e.shape[-1])
    return {"weight": torch.bmm(a.transpose(1, 2), e), "bias": e.sum(1)}


def convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, a: Tensor, e: Tensor) -> _PerSample:
    """One convolution with batch x groups groups gives every sample's weight gradient."""
    a, padding = _padded(layer, a)
    weight = _convolve(layer, a, e, padding, layer.groups)
    return {"weight": weight.view(len(a), *layer.weight.shape), "bias": e.flatten(2).sum(2)}


def convolution_rows(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, a: Tensor, e: Tensor, wanted: Collection[str]
) -> Iterator[Tensor]:
    """The same gradients as rows (batch, part), a block of output channels at a time: less memory, kinder to caches."""
    if "bias" in wanted:
        yield e.flatten(2).sum(2)
    if "weight" not in wanted:
        return
    a, padding = _padded(layer, a)
    row = a.element_size() * len(a) * layer.weight[0].numel()  # bytes of one output channel's gradients
    step = e.shape[1] if layer.groups > 1 else max(_LANES, _BLOCK_BYTES // row // _LANES * _LANES)
    for block in e.split(step, 1):
        yield _convolve(layer, a, block, padding, layer.groups).view(len(a), -1)


def _padded(layer: Any, a: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return a, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(a, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(layer.kernel_size)


def _convolve(layer: Any, a: Tensor, e: Tensor, padding: tuple[int, ...], groups: int) -> Tensor:
    """(batch * channels of e, *kernel)."""
    shape = (len(a) * e.shape[1], *layer.weight.shape[1:])
    grads = torch.ops.aten.convolution_backward(
        e.reshape(1, -1, *e.shape[2:]),
        a.reshape(1, -1, *a.shape[2:]),
        a.new_empty(1).expand(shape),
        None,
        layer.stride,
        padding,
        layer.dilation,
        False,
        (0,) * len(layer.kernel_size),
        len(a) * groups,
        (False, True, False),
    )
    out: Tensor = grads[1]
    return out


def summed_convolution(layer: Any, a: Tensor, e: Tensor) -> _PerSample:
    """The weight's gradient summed over the batch, (*weight.shape): one ordinary backward pass of the layer."""
    a, padding = _padded(layer, a)
    grads = torch.ops.aten.convolution_backward(
        e,
        a,
        layer.weight.detach(),
        None,
        layer.stride,
        padding,
        layer.dilation,
        False,
        (0,) * len(layer.kernel_size),
        layer.groups,
        (False, True, False),
    )
    return {"weight": grads[1]}


def batch_norm(layer: Any, a: Tensor, e: Tensor) -> _PerSample:
    """Eval mode: a fixed affine map of each channel."""
    total = _per_channel(e)
    product = torch.linalg.vecdot(a.flatten(2), e.flatten(2)) if a.dim() > 2 else a * e
    centred = product - layer.running_mean * total  # three passes over the activations fewer than centring first
    return {"weight": centred * (layer.running_var + layer.eps).rsqrt(), "bias": total}


def group_norm_rule(layer: nn.GroupNorm, a: Tensor, e: Tensor) -> _PerSample:
    normal = F.group_norm(a, layer.num_groups, eps=layer.eps)
    return {"weight": _per_channel(normal * e), "bias": _per_channel(e)}


def layer_norm(layer: nn.LayerNorm, a: Tensor, e: Tensor) -> _PerSample:
    normal = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    return {"weight": _last(normal * e, layer.normalized_shape), "bias": _last(e, layer.normalized_shape)}


def rms_norm(layer: nn.RMSNorm, a: Tensor, e: Tensor) -> _PerSample:
    normal = F.rms_norm(a, layer.normalized_shape, eps=layer.eps)
    return {"weight": _last(normal * e, layer.normalized_shape)}


def embedding(layer: nn.Embedding, a: Tensor, e: Tensor) -> _PerSample:
    """Dense (batch, vocabulary, dim); `embedding_rows` is the compact form with the same Gram matrix."""
    return {"weight": _scatter(layer, a, a, e, layer.num_embeddings)}


def embedding_rows(layer: nn.Embedding, a: Tensor, e: Tensor) -> Tensor:
    """Only the tokens that occur: (batch, tokens * dim)."""
    tokens, place = a.unique(return_inverse=True)
    return _scatter(layer, a, place, e, len(tokens)).flatten(1)


def summed_embedding(layer: nn.Embedding, a: Tensor, e: Tensor) -> _PerSample:
    """The weight's gradient summed over the batch, (vocabulary, dim)."""
    rows, tokens = e.reshape(-1, e.shape[-1]), a.reshape(-1)
    if layer.padding_idx is not None:
        rows = rows.masked_fill((tokens == layer.padding_idx).unsqueeze(1), 0.0)
    return {"weight": rows.new_zeros(layer.num_embeddings, rows.shape[1]).index_add_(0, tokens, rows)}


def weight_rows(rule: Rule, layer: Any, a: Tensor, e: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of a linear layer's or an embedding's weight gradients, (batch, stop - start, dim)."""
    batch = len(a)
    if rule is linear_rule:
        a, e = a.reshape(batch, -1, a.shape[-1]), e[..., start:stop].reshape(batch, -1, stop - start)
        return torch.bmm(e.transpose(1, 2), a)
    inside = (a >= start) & (a < stop)
    e = e.masked_fill(~inside.unsqueeze(-1), 0.0)
    return _scatter(layer, a, (a - start).clamp(0, stop - start - 1), e, stop - start)


def _scatter(layer: nn.Embedding, tokens: Tensor, place: Tensor, e: Tensor, rows: int) -> Tensor:
    batch, dim = len(tokens), e.shape[-1]
    e = e.reshape(batch, -1, dim)
    if layer.padding_idx is not None:
        e = e.masked_fill((tokens.reshape(batch, -1) == layer.padding_idx).unsqueeze(2), 0.0)
    index = place.reshape(batch, -1, 1).expand_as(e)
    return e.new_zeros(batch, rows, dim).scatter_add_(1, index, e)


def _per_channel(t: Tensor) -> Tensor:
    return t.flatten(2).sum(2) if t.dim() > 2 else t


def _last(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    return t.reshape(len(t), -1, *shape).sum(1)


def vmapped(
    layer: nn.Module, names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], e: Tensor
) -> _PerSample:
    """Any layer: the vector-Jacobian product of its own forward, vmapped over the samples."""
    parameters = {n: p.detach() for n, p in layer.named_parameters() if n in names}
    batched = [isinstance(x, Tensor) for x in [*args, *kwargs.values()]]
    keys = list(kwargs)

    def one(gradient: Tensor, *sample: Any) -> _PerSample:
        sample = tuple(x.unsqueeze(0) if is_batched else x for x, is_batched in zip(sample, batched, strict=True))
        positional, named = sample[: len(args)], dict(zip(keys, sample[len(args) :], strict=True))

        def forward(p: _PerSample) -> Tensor:
            out: Tensor = torch.func.functional_call(layer, p, positional, named)
            return out.squeeze(0)

        pull = torch.func.vjp(forward, parameters)[1]
        out: _PerSample = pull(gradient)[0]
        return out

    in_dims = (0, *(0 if b else None for b in batched))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # an operation looped over
        mapped: _PerSample = torch.func.vmap(one, in_dims=in_dims)(e, *args, *kwargs.values())
    return mapped


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear_rule,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.GroupNorm: group_norm_rule,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.Embedding: embedding,
}


# classes of libraries that need not be installed, by module and name
NAMED_RULES: dict[str, Rule] = {"transformers.pytorch_utils.Conv1D": transposed_linear}


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule of a layer, or None where vmapped gradients must do."""
    kind = type(layer)
    rule = RULES.get(kind) or NAMED_RULES.get(f"{kind.__module__}.{kind.__qualname__}")
    own = {name for name, p in layer._parameters.items() if p is not None}
    if rule is None or not own <= {"weight", "bias"}:
        return None  # weight_norm and its like rename the parameters
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
        return None
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return None
    return rule
