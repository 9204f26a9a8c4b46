"""Where the Gauss-Newton matrix has the Hessian's diagonal: networks piecewise linear in each single weight.

There the second derivative of the output by one weight is 0 almost everywhere, so that C backward passes give the
Hessian's diagonal exactly. ReLU networks with BatchNorm in eval mode are such. One smooth activation is enough for
errors of 47%, and so is a weight that is used twice.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from flatminima.errors import Undefined
from flatminima.statistics.feedforward import FeedForward

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


def refuse_unless_piecewise_linear(minimum: Minimum) -> None:
    """Check every operation of the forward pass, and that no weight is used more than once.

    Raises:
        Undefined: naming what is not piecewise linear, or the weight.
    """
    try:
        minimum[FeedForward()]  # once a network
    except Undefined as reason:
        raise Undefined(
            f"the Hessian's exact diagonal needs a piecewise-linear network: {reason.reason}; "
            "use 'gauss_newton', 'hutchinson' or 'xdiag'"
        ) from None
    for name, count in _uses(minimum).items():
        if count > 1:
            raise Undefined(
                f"the Hessian's exact diagonal needs each weight used once, and {name!r} is used {count} times: "
                "use 'gauss_newton', 'hutchinson' or 'xdiag'"
            )


def _uses(minimum: Minimum) -> Counter[str]:
    """How often each parameter's layers run in one forward pass."""
    names = {id(p): name for name, p in minimum.parameters}
    uses: Counter[str] = Counter()

    def count(module: Any, _args: Any) -> None:
        uses.update(names[id(p)] for p in module._parameters.values() if id(p) in names)

    batch = minimum.batch(torch.arange(1))
    with minimum.open(), torch.no_grad():
        handles = [module.register_forward_pre_hook(count) for module in minimum.model.modules()]
        try:
            minimum.model(batch.inputs)
        finally:
            for handle in handles:
                handle.remove()
    return uses
