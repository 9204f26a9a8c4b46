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

from flatminima.core.statistic import Statistic
from flatminima.errors import Undefined
from flatminima.statistics.network_graph import FeedForwardNetwork
from flatminima.statistics.path_algebra import PathAlgebra

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class FeedForward(Statistic[FeedForwardNetwork]):
    """Linear layers and path norms of a piecewise-linear network.

    Raises:
        Undefined: naming the operation that is not part of a ReLU network.
    """

    def compute(self, minimum: Minimum) -> FeedForwardNetwork:
        inputs, _ = minimum.samples.take(torch.arange(1))
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise Undefined("the network's input is not one tensor of real numbers")
        recurrent = next((type(m).__name__ for m in minimum.model.modules() if isinstance(m, nn.RNNBase)), None)
        if recurrent is not None:
            raise Undefined(f"{recurrent!r} is not a layer of a ReLU network")
        names = {id(p): name for name, p in minimum.model.named_parameters()}
        runs = []
        with minimum.open(), torch.no_grad():
            for p in (1.0, 2.0):
                algebra = PathAlgebra(p, names)
                ones = torch.ones_like(inputs, dtype=torch.float64, device=minimum.device)
                algebra.know(ones, node=-1)
                with algebra:
                    try:
                        out = minimum.model(ones)
                    except (RuntimeError, TypeError, ValueError) as error:  # it checks what the algebra replaces
                        reason = (str(error) or type(error).__name__).splitlines()[0]
                        raise Undefined(f"the network does not run with weights |w|^p in float64: {reason}") from error
                algebra.end(out)
                runs.append((algebra, algebra.total(out)))
        algebra = runs[0][0]
        one, two = (math.log(total) / p if total > 0 else -math.inf for p, (_, total) in zip((1, 2), runs, strict=True))
        return FeedForwardNetwork(
            tuple(algebra.layers), one, two, algebra.folded, algebra.max_pooled, tuple(algebra.graph), inputs[0].numel()
        )
