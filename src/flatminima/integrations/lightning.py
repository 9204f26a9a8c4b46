"""Lightning: a module returns PertOPT or SAM from `configure_optimizers`; `FlatMinima` sees to the rest.

Lightning hands its optimizers a closure, which is enough for PertOPT and SAM alone. Accumulated batches and float16 go
past the optimizer, and everything that a second pass logs would be counted twice: so the callback perturbs the
micro-batches that Lightning runs itself, and makes SAM's second pass, in silence. Manual optimization needs no
callback: `with opt.perturbed():` as in a plain loop. FisherTrace goes there too: `self.fisher.backward(...)` in place
of `self.manual_backward(...)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import MissingExtra, UsageError
from flatminima.optim import SAM, PertOPT

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
except ImportError:
    try:
        from pytorch_lightning import Callback
        from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
    except ImportError:
        raise MissingExtra("lightning", "lightning", "flatminima.integrations.lightning") from None

__all__ = ["FlatMinima"]


class FlatMinima(Callback):
    """Give it to `Trainer(callbacks=[FlatMinima()])` whenever `configure_optimizers` returns PertOPT or SAM.

    - `epoch` follows the Trainer's, from 1, unless the optimizer has `steps_per_epoch`.
    - Under `accumulate_grad_batches` every micro-batch of a step gets PertOPT's one perturbation; SAM displaces along
      all of them and repeats them there. float16 with its scaler works for both.
    - In SAM's second pass `self.log` does nothing and metrics count nothing: what is logged is the loss at w.
    - With `log=True` (the default) PertOPT's diagnostics ("pertopt/...") and the loss's rise at w + e ("sam/rise") are
      logged at the end of an epoch.

    Raises:
        UsageError: for SAM, when training begins, if `training_step` takes the data loader's iterator, whose batches
            cannot be repeated.
    """

    def __init__(self, *, log: bool = True) -> None:
        self.log = log
        self._stack = ExitStack()
        self._batch: tuple[Any, ...] = ()  # arguments of the training step that runs
        self._repeated: list[tuple[Any, ...]] = []  # of the micro-batches of this step
        self._losses: list[Tensor] = []  # and their losses
        self._repeating = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._forget()
        for opt in _wrappers(trainer):
            if opt.model is None:
                opt.model = pl_module
            takes_iterator = is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True)
            if takes_iterator and pl_module.automatic_optimization and isinstance(opt, SAM):
                raise UsageError(
                    "got a training_step(dataloader_iter), whose batches SAM's second pass cannot see again: "
                    "take (batch, batch_idx), or use manual optimization"
                )
        self._open_in_training_step(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._forget()  # micro-batches of a step that the last epoch's end cut off: Lightning clears their gradients
        for opt in _wrappers(trainer):
            if opt.clock.steps_per_epoch is None:
                opt.epoch = float(trainer.current_epoch + 1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.automatic_optimization:
            return
        takes_index = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)  # as Lightning asks
        self._batch = (batch, batch_idx) if takes_index else (batch,)
        for opt in _wrappers(trainer):
            opt._at.idle = _measures_only(trainer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if pl_module.automatic_optimization and not self._repeating:
            scaler = _scaler(trainer)
            scale = trainer.accumulate_grad_batches / (1.0 if scaler is None else scaler.get_scale())
            self._losses.append(loss.detach() * scale)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._stack.close()
        if pl_module.automatic_optimization and not self._repeating:
            self._repeated.append(self._batch)
            if not trainer.fit_loop._should_accumulate():
                self._ascend(trainer, pl_module, _scaler(trainer))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._stack.close()
        if pl_module.automatic_optimization and self._repeated:  # the last micro-batch was skipped
            self._ascend(trainer, pl_module, None)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stack.close()
        if not trainer.fit_loop._should_accumulate():
            self._forget()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._leave(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._stack.close()
        for opt in _wrappers(trainer) if self.log else ():
            if isinstance(opt, PertOPT):
                if opt.drawn:  # the epoch's last step was skipped
                    continue
                found = opt.diagnostics()
                for name in ("kappa_bound", "curvature_bound", "gated", "relative_noise"):
                    pl_module.log(f"pertopt/{name}", getattr(found, name))
            elif opt.last is not None:
                pl_module.log("sam/rise", opt.last.rise)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._leave(trainer)
        for opt in _wrappers(trainer):
            if opt.model is pl_module:
                opt.model = None

    def _open_in_training_step(self, trainer: Any, pl_module: Any) -> None:
        """PertOPT's block opens there: a hook before it may skip the batch, and meets the true weights."""
        trainer.strategy.__dict__.pop("training_step", None)  # of a fit that nobody ended
        step = trainer.strategy.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            try:
                self._open(trainer, pl_module)
                output = step(*args, **kwargs)
            except BaseException:  # StopIteration ends an epoch, and nobody is told
                self._stack.close()
                raise
            if output is None:  # no backward pass follows
                self._stack.close()
            return output

        trainer.strategy.training_step = training_step

    def _open(self, trainer: Any, pl_module: Any) -> None:
        if self._repeating or not pl_module.automatic_optimization or _measures_only(trainer):
            return
        if trainer.fit_loop._should_accumulate() or _scaler(trainer) is not None:
            for opt in _wrappers(trainer):
                if isinstance(opt, PertOPT):
                    self._stack.enter_context(opt.perturbed())

    def _leave(self, trainer: Any) -> None:
        """The training is over."""
        self._stack.close()
        self._forget()
        trainer.strategy.__dict__.pop("training_step", None)
        for opt in _wrappers(trainer):
            opt._at.idle = False

    def _forget(self) -> None:
        self._repeated, self._losses = [], []

    def _ascend(self, trainer: Any, pl_module: Any, scaler: Any) -> None:
        """SAM's second pass: the step's micro-batches again, at w + e."""
        repeated, losses = self._repeated, self._losses
        self._forget()
        for opt in _wrappers(trainer):
            if isinstance(opt, SAM) and opt.due:
                there: list[Tensor] = []
                self._repeating = True
                try:
                    with opt.perturbed(), _in_silence(pl_module), torch.enable_grad():
                        for i, batch in enumerate(repeated):
                            with _unsynchronised(trainer, i + 1 < len(repeated)):
                                there.append(_pass(trainer, pl_module, batch, scaler))
                finally:
                    self._repeating = False
                if len(losses) == len(there):
                    opt.note(torch.stack(losses).mean(), torch.stack(there).mean())


def _pass(trainer: Any, pl_module: Any, batch: tuple[Any, ...], scaler: Any) -> Tensor:
    """One micro-batch as Lightning runs it, without its hooks; returns the loss."""
    output = trainer.strategy.training_step(*batch)
    loss: Tensor = output["loss"] if isinstance(output, dict) else output
    share = loss / trainer.accumulate_grad_batches
    pl_module.backward(share if scaler is None else scaler.scale(share))
    return loss.detach()


def _unsynchronised(trainer: Any, wanted: bool) -> Any:
    block = getattr(trainer.strategy, "block_backward_sync", None)
    return block() if wanted and block is not None else nullcontext()


@contextmanager
def _in_silence(pl_module: Any) -> Iterator[None]:
    """`log` does nothing, and metrics come back as they were."""
    from torchmetrics import Metric

    metrics = [m for m in pl_module.modules() if isinstance(m, Metric)]
    names = [[*m.metric_state, "_update_count", "_computed"] for m in metrics]
    saved = [{name: _copy(getattr(m, name)) for name in held} for m, held in zip(metrics, names, strict=True)]
    pl_module.__dict__["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        del pl_module.__dict__["log"]
        for metric, state in zip(metrics, saved, strict=True):
            for name, value in state.items():
                setattr(metric, name, value)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value


def _measures_only(trainer: Any) -> bool:
    """Whether the passes are forward only, as when StochasticWeightAveraging measures running statistics anew."""
    return bool(trainer.fit_loop._skip_backward)


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _wrappers(trainer: Any) -> Iterator[PertOPT | SAM]:
    return (opt for opt in trainer.optimizers if isinstance(opt, PertOPT | SAM))
