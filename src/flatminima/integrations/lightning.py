"""Lightning: a module returns PertOPT or SAM from `configure_optimizers`; `FlatMinima` sees to the rest.

Lightning hands its optimizers a closure, which is all that PertOPT and SAM need. The callback counts PertOPT's epochs,
perturbs the micro-batches that Lightning runs outside of the optimizer, and refuses what would be silently wrong.
FisherTrace goes into manual optimization: `self.fisher.backward(...)` in place of `self.manual_backward(...)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from flatminima.errors import MissingExtra, UsageError
from flatminima.optim import SAM, PertOPT

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        raise MissingExtra("lightning", "lightning", "flatminima.integrations.lightning") from None

__all__ = ["FlatMinima"]


class FlatMinima(Callback):
    """Give it to `Trainer(callbacks=[FlatMinima()])` whenever `configure_optimizers` returns PertOPT or SAM.

    - PertOPT's `epoch` follows the Trainer's, from 1, unless it has `steps_per_epoch`.
    - Under `accumulate_grad_batches` every micro-batch of a step gets PertOPT's one perturbation; without the callback
      only the last one would.
    - With `log=True` (the default) PertOPT's diagnostics are logged at the end of an epoch, as "pertopt/...".

    Raises:
        UsageError: when training begins, for SAM with accumulated batches, whose second pass would see only the last
            one, and for float16 with a gradient scaler, which Lightning steps without a closure.
    """

    def __init__(self, *, log: bool = True) -> None:
        self.log = log
        self._stack = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        wrapped = list(_wrappers(trainer))
        if wrapped and getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise UsageError("PertOPT and SAM under Lightning take no gradient scaler: use bf16-mixed or 32-true")
        if any(isinstance(opt, SAM) for opt in wrapped) and trainer.accumulate_grad_batches > 1:
            raise UsageError(
                f"SAM under Lightning would displace along {trainer.accumulate_grad_batches} batches and step along "
                "one: set accumulate_grad_batches=1, or use PertOPT"
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        for opt in _pertopt(trainer):
            if opt.clock.steps_per_epoch is None:
                opt.epoch = float(trainer.current_epoch + 1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.automatic_optimization and trainer.fit_loop._should_accumulate():
            for opt in _pertopt(trainer):
                self._stack.enter_context(opt.perturbed())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stack.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stack.close()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.log:
            for opt in _pertopt(trainer):
                found = opt.diagnostics()
                for name in ("kappa_bound", "curvature_bound", "gated", "relative_noise"):
                    pl_module.log(f"pertopt/{name}", getattr(found, name))


def _wrappers(trainer: Any) -> Iterator[PertOPT | SAM]:
    return (opt for opt in trainer.optimizers if isinstance(opt, PertOPT | SAM))


def _pertopt(trainer: Any) -> Iterator[PertOPT]:
    return (opt for opt in _wrappers(trainer) if isinstance(opt, PertOPT))
