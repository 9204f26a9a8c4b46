"""One step on one batch, the optimizers of a configuration, and the streams of random numbers of a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from flatminima.errors import DataError, UsageError
from flatminima.optim.wrapper import Wrapper
from flatminima.training.config import TrainConfig
from flatminima.training.data_parallel import part, summed_over_processes
from flatminima.training.objective import Objective, logits_of

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks

BackwardFunction = Callable[[Callable[[Any, Tensor], Tensor], Any, Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]

BATCHES, AUGMENT, DROPOUT = range(3)  # independent streams of one seed


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: BackwardFunction | None,
    x: Any,
    y: Tensor,
    *,
    objective: Objective,
    half: bool = False,
    ranks: Ranks | None = None,
    numbers: tuple[float, ...] = (),
) -> tuple[float, float, list[float]]:
    """One optimizer step.

    Args:
        backward: in place of the loss's own. half: the forward pass in bfloat16.
        ranks: processes that share the batch; `numbers` are summed over them.

    Returns:
        The batch's mean loss at the weights before the step, its errors (0 with `backward`, or where there is no such
        thing), and the sums.
    """
    switch(optimizer, "train")
    seen: list[tuple[Tensor, float, list[float]]] = []  # SAM calls the closure twice; the first is at w itself

    def closure() -> Tensor:
        optimizer.zero_grad()
        if backward is not None:
            loss = backward(objective.mean, x, y)
            seen.append((loss.detach(), 0.0, list(numbers)))
            return loss
        own_x, own_y = part(ranks, x, y)
        loss, errors = _gradient(model, own_x, own_y, len(own_y) / len(y), objective=objective, half=half)
        sums = list(numbers)
        if ranks is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            total, errors, *sums = summed_over_processes(ranks, parameters, [float(loss.detach()), errors, *numbers])
            loss = loss.new_tensor(total)
        seen.append((loss.detach(), errors, sums))
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # typed for float; torch itself passes tensors on
    return float(seen[0][0]), seen[0][1], seen[0][2]


def switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """train() before a step and eval() before an evaluation, of an optimizer that has them, such as Schedule-Free's."""
    found = getattr(optimizer, mode, None)
    if callable(found):
        found()


def tell_epoch(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """The epoch, from 1, to PertOPT or SAM, unless they count steps."""
    if isinstance(optimizer, Wrapper) and optimizer.clock.steps_per_epoch is None:
        optimizer.clock.epoch = float(epoch)


def _gradient(
    model: nn.Module, x: Any, y: Tensor, share: float, *, objective: Objective, half: bool
) -> tuple[Tensor, float]:
    """Fill the gradients with those of `share` times the mean loss; the value of that, and the errors."""
    if not len(y):  # more processes than samples
        return torch.zeros((), device=y.device), 0.0
    with torch.autocast(y.device.type, torch.bfloat16, enabled=half):
        outputs = logits_of(model, x)
    loss = objective.mean(outputs.float() if half else outputs, y)
    if share != 1.0:
        loss = loss * share
    loss.backward()
    return loss, objective.wrong(outputs, y) or 0.0


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configuration's optimizer over the trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Learning rates of its groups; a schedule multiplies them."""
    found = [group.get("lr") for group in optimizer.param_groups]
    if any(rate is None for rate in found):
        raise UsageError(
            f"got {type(optimizer).__name__} with lr=None, which chooses its rate by itself: the schedule needs a "
            "number, so give lr= (Adafactor: with relative_step=False)"
        )
    return [float(rate) for rate in found if rate is not None]


def warn_of_eval_mode(model: nn.Module) -> None:
    """Warn of a network in eval mode where it matters; within one in training mode a layer is so on purpose."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm | _DropoutNd) and not m.training]
    if not model.training and any(isinstance(m, _BatchNorm) or m.p > 0 for m in layers):
        warnings.warn(
            "the network trains in eval() mode: BatchNorm keeps its statistics and dropout drops nothing; "
            "call model.train() first unless that is wanted",
            UserWarning,
            stacklevel=5,
        )


def state_copy(tree: Any) -> Any:
    """A state with tensors of its own."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: state_copy(value) for key, value in tree.items()}
    return [state_copy(value) for value in tree] if isinstance(tree, list | tuple) else tree


def check_images(inputs: Any, augment: Augment | None, *, channels_last: bool) -> None:
    """Refuse what only images can have, of other inputs."""
    got = f"inputs {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else "several inputs"
    if augment is not None and not isinstance(inputs, Tensor):
        raise DataError(f"augmentation is of images; got {got}")
    if channels_last and not (isinstance(inputs, Tensor) and inputs.ndim == 4):
        raise DataError(f"channels_last is of images (n, channels, height, width); got {got}")


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches; BatchNorm cannot train on one sample, so a last one joins its neighbour."""
    sizes = [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    if len(sizes) > 1 and sizes[-1] == 1 and batch_size > 1:
        sizes[-2:] = [batch_size + 1]
    return sizes


def stream_seed(seed: int, epoch: int, stream: int, rank: int = 0) -> int:
    """A seed of one stream in one epoch on one process."""
    # torch's CPU generator keeps only the low 32 bits of a seed, so the parts are hashed into them
    parts = (seed, epoch, stream, rank) if rank else (seed, epoch, stream)
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from; torch.manual_seed would reseed every accelerator, not only this one."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
