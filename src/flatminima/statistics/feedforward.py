"""A ReLU network's linear layers and path norms, by running its forward pass in another algebra (see `path_algebra`).

The same pass writes down the graph of the network: which activation each one is made from, and by how much each step
can stretch a change of its input. Lipschitz bounds follow it through shortcuts and concatenations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatminima.core.output import logits
from flatminima.core.samples import Inputs, call, leaves, map_tensors
from flatminima.core.statistic import Statistic
from flatminima.errors import FlatMinimaError, Undefined
from flatminima.statistics.network_graph import FeedForwardNetwork
from flatminima.statistics.path_activations import ACTIVATIONS
from flatminima.statistics.path_algebra import PathAlgebra
from flatminima.statistics.path_linear import LINEAR
from flatminima.statistics.path_pooling import POOLING
from flatminima.statistics.path_scaling import SCALING
from flatminima.statistics.path_shapes import SHAPES

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_RULES = LINEAR | SCALING | ACTIVATIONS | POOLING | SHAPES


@dataclass(frozen=True)
class FeedForward(Statistic[FeedForwardNetwork]):
    """Linear layers and path norms of a piecewise-linear network.

    Raises:
        Undefined: naming the operation that is not part of a ReLU network.
    """

    def compute(self, minimum: Minimum) -> FeedForwardNetwork:
        recurrent = next((type(m).__name__ for m in minimum.model.modules() if isinstance(m, nn.RNNBase)), None)
        if recurrent is not None:
            raise Undefined(f"{recurrent!r} is not a layer of a ReLU network")
        if any(isinstance(m, torch.jit.ScriptModule) for m in minimum.model.modules()):
            raise Undefined("TorchScript's operations cannot be followed: measure the module that it was made of")
        inputs = minimum.one_input()
        strange = next((t for t in leaves(inputs) if not t.is_floating_point()), None)
        if strange is not None:
            kind = str(strange.dtype).removeprefix("torch.")
            raise Undefined(f"an input is not a tensor of real numbers ({kind}: token ids, categories, a mask)")
        ones = map_tensors(lambda t: torch.ones_like(t, dtype=torch.float64, device=minimum.device), inputs)
        with minimum.open(), torch.no_grad():
            first, one = _run(minimum, ones, 1.0)
            _refuse_unseen(minimum, first, ones)
            _, two = _run(minimum, ones, 2.0)
        return FeedForwardNetwork(
            tuple(first.layers),
            _log(one),
            _log(two) / 2,
            first.folded,
            first.max_pooled,
            tuple(first.graph),
            sum(t[0].numel() for t in leaves(inputs)),
            tuple(first.factors),
            dict(first.uses),
            dict(first.nonlinear),
        )


def _run(minimum: Minimum, inputs: Inputs, p: float) -> tuple[PathAlgebra, float]:
    """The forward pass with weights |w|^p, and its output's sum."""
    algebra = PathAlgebra(p, {id(t): name for name, t in minimum.model.named_parameters()}, _RULES)
    inputs = map_tensors(torch.clone, inputs)
    for i, leaf in enumerate(leaves(inputs)):
        algebra.know(leaf, -1 - i)
    with algebra:
        try:
            output = logits(call(minimum.model, inputs), minimum.output)
        except (RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError) as error:
            if isinstance(error, FlatMinimaError):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise Undefined(f"the network does not run with weights |w|^p in float64: {reason}") from error
    algebra.end(output)
    total = float(output.sum())
    if not math.isfinite(total):
        raise Undefined("the path norm overflows float64")
    return algebra, total


def _refuse_unseen(minimum: Minimum, algebra: PathAlgebra, inputs: Inputs) -> None:
    """Tensors that no seen operation made must not depend on the input (scripted functions and custom kernels do)."""
    if not algebra.constants.foreign:
        return
    generator = torch.Generator(device="cpu").manual_seed(0)
    other = map_tensors(lambda t: t * (0.5 + torch.rand(t.shape, generator=generator).to(t)), inputs)
    again, _ = _run(minimum, other, 1.0)
    pairs = zip(algebra.constants.foreign, again.constants.foreign, strict=False)
    if len(algebra.constants.foreign) != len(again.constants.foreign) or not all(_equal(a, b) for a, b in pairs):
        raise Undefined("the network makes activations out of sight (a scripted function, a custom kernel)")


def _equal(a: Tensor, b: Tensor) -> bool:
    try:
        return torch.equal(a, b)
    except RuntimeError:  # a tensor of torch.vmap's, whose values are out of reach
        return False


def _log(total: float) -> float:
    return math.log(total) if total > 0 else -math.inf
