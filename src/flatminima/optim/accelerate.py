"""accelerate: `accelerator.prepare(model, opt)` gives PertOPT and SAM back as they are; they do what it would do.

accelerate puts a wrapper without `perturbed()` around an optimizer, unless that says that it is prepared. Ours say so,
and do the wrapper's work themselves: in the middle of `accelerator.accumulate(model)` a step only runs its closure, and
`zero_grad()` waits; at its end SAM repeats all closures of the step at w + e. Under float16 accelerate keeps its
wrapper, for the sake of its scaler: there the block is `with opt.optimizer.perturbed():`, by hand.
"""

from __future__ import annotations

import sys
from typing import Any

_OURS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")  # kinds of distribution whose step is the optimizer's own


def adopt(opt: Any) -> bool:
    """Whether PertOPT or SAM can do without accelerate's wrapper; from then on it does the wrapper's work."""
    if "accelerate" not in sys.modules:
        return False
    from accelerate.state import AcceleratorState

    if not AcceleratorState._shared_state:
        return False  # no Accelerator was made, so someone else asks
    state = AcceleratorState()
    if getattr(state.distributed_type, "name", None) not in _OURS:
        return False
    if str(state.mixed_precision) == "fp16":
        opt._at.scaled_by = "accelerate's float16 scaler"
        return False
    opt._at.complete = _complete
    opt.__dict__.update(optimizer=opt, step_was_skipped=False)  # what accelerate asks its wrapper for
    if opt.state:
        opt.load_state_dict(opt.state_dict())  # to where the parameters are now
    return True


def _complete() -> bool:
    from accelerate.state import GradientState

    return bool(GradientState().sync_gradients)
