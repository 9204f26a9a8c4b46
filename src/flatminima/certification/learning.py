"""Training of the prior's mean on its part of the samples, and of the posterior on the bound's; both can go on.

State is written after every epoch, whole or not at all; a run that was killed goes on from there and ends with the same
bits as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import progress
from flatminima.certification.objective import objective as objective_of
from flatminima.certification.stochastic import Prior, StochasticNetwork
from flatminima.core.perturbation import generator, mix
from flatminima.errors import NumericalError, UsageError
from flatminima.io import write_whole
from flatminima.training import TrainConfig, Training
from flatminima.training.schedule import cosine

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Checkpoint:
    """One file of training state; `None` keeps nothing.

    Args:
        path: of the file.
        key: what the state belongs to; the state of another key is ignored.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key

    def load(self) -> dict[str, Any] | None:
        """The state, if there is one of this key that is whole."""
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception:  # a damaged file may raise anything; the work is then done again
            return None
        return state if isinstance(state, dict) and state.get("key") == self.key else None

    def save(self, **state: Any) -> None:
        """Write to a temporary name, then rename."""
        if self.path is None:
            return
        write_whole(self.path, lambda file: torch.save(state | {"key": self.key}, file))


def train_prior(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
    augment: Augmentation | None,
    checkpoint: Checkpoint,
) -> None:
    """Minimise the cross-entropy of the prior's samples, in place, from where the checkpoint is."""
    training = Training(model.train(), x, y, config=config, augment=augment)
    state = checkpoint.load()
    if state is not None:
        training.load_state_dict(state["training"])
    training.run(
        on_step=lambda at: progress.report("prior", at.steps, at.total),
        on_epoch=lambda at: checkpoint.save(training=at.state_dict()),
    )
    checkpoint.save(training=training.state_dict())
    model.eval()


def train_posterior(
    network: StochasticNetwork,
    prior: Prior,
    x: Tensor,
    y: Tensor,
    *,
    objective: str,
    delta: float,
    nats: float,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    checkpoint: Checkpoint,
) -> None:
    """Minimise a PAC-Bayes bound over mu and sigma by Adam with a cosine schedule, in place.

    The risk in the objective is cross-entropy / `nats`, of fresh weights for every example (a convolution's for every
    batch). Means step by lr times the prior's sigma, logarithms of sigma by lr, so the scale of the weights does not
    matter. `objective`, `nats` and the rest only choose Q.

    Args:
        x, y: the n samples of the bound.
        nats: of cross-entropy that count as one error, positive.

    Raises:
        NumericalError: the objective is not finite.
    """
    if not (nats > 0 and lr > 0 and epochs >= 0 and batch_size >= 1):
        raise UsageError(f"got {nats=}, {lr=}, {epochs=}, {batch_size=}; expected positive numbers, 0 epochs for Q = P")
    bound = objective_of(objective)
    n = len(y)
    scale = prior.sigma or network.best_sigma(prior)
    groups = [{"params": network.means, "lr": lr * scale}, {"params": list(network.log_sigmas), "lr": lr}]
    optimizer = torch.optim.Adam(groups)
    rates = [lr * scale, lr]
    first = _resumed(network, optimizer, checkpoint)
    batches = range(0, n, batch_size)
    for epoch in range(first, epochs):
        order = torch.randperm(n, generator=generator(seed, 2 * epoch)).to(y.device)
        noise = generator(seed, 2 * epoch + 1)
        for i, start in enumerate(batches):
            step = epoch * len(batches) + i
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(step, epochs * len(batches))
            rows = order[start : start + batch_size]
            logits = network(x[rows], noise, kernels_by_batch=True)
            risk = nn.functional.cross_entropy(logits, y[rows]) / nats
            value = bound(risk, network.kl(prior), n, delta)
            if not bool(torch.isfinite(value)):
                raise NumericalError(
                    f"the objective is {value.item()} in epoch {epoch + 1}; lower the learning rate {lr}"
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            progress.report("posterior", step + 1, epochs * len(batches))
        checkpoint.save(
            means=[m.detach() for m in network.means],
            log_sigmas=[r.detach() for r in network.log_sigmas],
            optimizer=optimizer.state_dict(),
            epoch=epoch + 1,
        )


def _resumed(network: StochasticNetwork, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> int:
    state = checkpoint.load()
    if state is None:
        return 0
    with torch.no_grad():
        for mine, kept in ((network.means, state["means"]), (network.log_sigmas, state["log_sigmas"])):
            for tensor, value in zip(mine, kept, strict=True):
                tensor.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def stage_seed(seed: int, stage: int) -> int:
    """Seeds of the stages of one run, unrelated to each other."""
    return mix(seed, stage) >> 1
