"""Networks whose Gauss-Newton matrix has the Hessian's diagonal: those piecewise linear in each single weight.

There the second derivative of the output by one weight is 0 almost everywhere, so that C backward passes give the
Hessian's diagonal exactly. ReLU networks with BatchNorm in eval mode are such. One smooth activation is enough for
errors of 47%, and so is a weight that is used twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        network = minimum[FeedForward()]
    except Undefined as reason:
        raise Undefined(
            f"the Hessian's exact diagonal needs a piecewise-linear network: {reason.reason}; "
            "use 'gauss_newton', 'hutchinson' or 'xdiag'"
        ) from None
    for name in minimum.parameters.names:
        if name in network.nonlinear:
            raise Undefined(
                f"the Hessian's exact diagonal needs a network linear in each weight, and {network.nonlinear[name]!r} "
                f"makes weights from {name!r}: use 'gauss_newton', 'hutchinson' or 'xdiag'"
            )
        if network.uses.get(name, 0) > 1:
            raise Undefined(
                f"the Hessian's exact diagonal needs each weight used once, and {name!r} is used {network.uses[name]} "
                "times: use 'gauss_newton', 'hutchinson' or 'xdiag'"
            )
