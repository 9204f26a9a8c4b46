"""What is certified: a stochastic network, its prior's mean, and inputs that frozen layers have already seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flatminima.certification.head import Head, find_head, principal_basis, turned
from flatminima.certification.recipe import Recipe
from flatminima.certification.stochastic import StochasticNetwork
from flatminima.core.samples import Samples
from flatminima.errors import DataError

_BATCH = 500


@dataclass
class Problem:
    """What is certified: a stochastic network over inputs that frozen layers have already seen."""

    base: nn.Module  # the whole network at the prior's mean, eval mode
    head: Head | None
    network: StochasticNetwork
    means: dict[str, Tensor]  # of the prior
    x: Tensor  # of the bound, or its features
    y: Tensor


def pose(base: nn.Module, samples: Samples, rows: Tensor, recipe: Recipe) -> Problem:
    x, y = tensors_at(samples, rows, base)
    StochasticNetwork(base, recipe.sigma).probe(x)  # refuses what no certificate can be about
    if recipe.layers == "all":
        network = StochasticNetwork(base, recipe.sigma)
        head = None
    else:
        plain = Head(find_head(base, x))
        x = plain.features(base, x)
        head = plain.turned(principal_basis(x))
        x = turned(x, head.basis)
        network = StochasticNetwork(head.layer(base), recipe.sigma)
    means = {n: m.detach().clone() for n, m in zip(network.names, network.means, strict=True)}
    classes = base(tensors_at(samples, rows[:1], base)[0]).shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise DataError(f"labels run from {int(y.min())} to {int(y.max())}; the network has {classes} classes")
    return Problem(base, head, network, means, x, y)


def mistakes(problem: Problem) -> int:
    """0-1 mistakes of the deterministic network at the prior's mean, on the bound's samples."""
    means = {name: problem.means[name] for name in problem.network.names}
    return wrong(lambda x: functional_call(problem.network.network, means, (x,)), problem.x, problem.y)


@torch.no_grad()
def wrong(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> int:
    """0-1 mistakes of a deterministic network."""
    return sum(int((predict(a).argmax(1) != b).sum()) for a, b in zip(x.split(_BATCH), y.split(_BATCH), strict=True))


def tensors_at(samples: Samples, rows: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs and labels at `rows` where the model lies, checked: floating point, class indices."""
    x, y = samples.take(rows)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DataError("got inputs that are no floating-point tensor; certify needs (inputs, labels) of a classifier")
    if y.dim() != 1 or y.is_floating_point():
        raise DataError(f"got labels of dtype {y.dtype} and shape {tuple(y.shape)}; expected class indices (n,)")
    device = next((p.device for p in model.parameters()), x.device)
    return x.to(device), y.to(device, torch.int64)
