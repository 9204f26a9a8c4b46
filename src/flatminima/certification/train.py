"""The problem that a recipe certifies, and the training of its prior and posterior, which goes on where it was killed.

The prior's mean is trained on its part of the samples, the posterior on the bound's. State is written after every
epoch, and where a signal stops the run, after the step; the same command goes on from there and ends with the same bits
as one that was not stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flatminima import interrupts, progress
from flatminima.certification.division.reading import taken
from flatminima.certification.gibbs.outputs import (
    Head,
    Packing,
    check_labels,
    class_count,
    find_head,
    principal_basis,
    turned,
    two_class,
)
from flatminima.certification.gibbs.stochastic import Prior, StochasticNetwork
from flatminima.certification.recipe import Recipe, objective as objective_of
from flatminima.core.guard import evaluating, same_randomness
from flatminima.core.perturbation import generator, mix
from flatminima.core.samples import Samples
from flatminima.errors import DataError, ModelError, NumericalError, UsageError
from flatminima.io import write_whole
from flatminima.training import TrainConfig, Training
from flatminima.training.schedule import cosine
from flatminima.untrusted import refuse_other_files

_Augmentation = Callable[[Tensor, torch.Generator], Tensor]

_BATCH = 500
_ROUNDINGS = 20  # one or two are enough


@dataclass
class Problem:
    """The problem certified: a stochastic network over inputs that frozen layers have already seen.

    Attributes:
        base: the whole network at the prior's mean, in eval mode.
        head: the layer that is random, where not all are. network: the stochastic one.
        means: of the prior. x, y: of the bound, x its features where a head is random.
        basis: of a head's inputs, as it is kept.
    """

    base: nn.Module
    head: Head | None
    network: StochasticNetwork
    means: dict[str, Tensor]
    x: Tensor
    y: Tensor
    basis: Tensor | None = None


def make_problem(
    base: nn.Module, samples: Samples, rows: Tensor, recipe: Recipe, basis: Tensor | None = None
) -> Problem:
    """The stochastic network of a recipe at the prior's mean, Q = P.

    Args:
        base: in eval mode. rows: of the bound. basis: of the head's inputs; None to compute it.

    Raises:
        ModelError: what no certificate can be about. DataError: labels that are none of its classes.
    """
    x, y = tensors_at(samples, rows, base)
    with torch.no_grad():
        check_labels(y, class_count(base(x[:1]), 1))
    StochasticNetwork(base, recipe.sigma).probe(x)
    if recipe.layers == "all":
        network, head = StochasticNetwork(base, recipe.sigma), None
    else:
        plain = Head(find_head(base, x))
        x = plain.features(base, x)
        if basis is None:
            basis = principal_basis(x)
            basis = basis.half() if recipe.keep == "float16" else basis
        head = plain.turned((orthonormal(basis) if basis.dtype == torch.float16 else basis).to(x))
        x = turned(x, head.basis)
        network = StochasticNetwork(head.layer(base), recipe.sigma)
    means = {n: m.detach().clone() for n, m in zip(network.names, network.means, strict=True)}
    return Problem(base, head, network, means, x, y, basis)


def holdout_errors(problem: Problem) -> int:
    """0-1 mistakes of the deterministic network at the prior's mean, on the bound's samples."""
    means = {name: problem.means[name] for name in problem.network.names}
    return count_errors(lambda x: functional_call(problem.network.network, means, (x,)), problem.x, problem.y)


@torch.no_grad()
def count_errors(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> int:
    """0-1 mistakes of a deterministic network."""
    parts = zip(x.split(_BATCH), y.split(_BATCH), strict=True)
    return sum(int((two_class(predict(a)).argmax(1) != b).sum()) for a, b in parts)


def tensors_at(samples: Samples, rows: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs and labels at `rows` where the model lies, checked: floating point, or packed so, and class indices."""
    x, y = taken(samples, rows)
    packing = Packing.of(samples)
    x = x if packing is None else packing.pack(x)
    y = class_indices(y)
    device = next((p.device for p in model.parameters()), x.device)
    return x.to(device), y.to(device)


def class_indices(y: Tensor) -> Tensor:
    """Labels (n,) as int64.

    Raises:
        DataError: fractions, complex numbers, several a sample, or torch's mark for what a loss ignores.
    """
    if y.dim() != 1 or y.is_floating_point() or y.is_complex():
        raise DataError(
            f"got labels of dtype {y.dtype} and shape {tuple(y.shape)}; expected class indices (n,), one a sample, as "
            "classifiers have"
        )
    if bool((y.long() == -100).any()):
        check_labels(y.long(), 1 << 62)
    return y.long()


def check_task(base: nn.Module, x: Tensor, data: Iterable[Samples], recipe: Recipe, prior: int) -> None:
    """Refuse outputs and labels that no certificate can be made of, before anything is computed from them.

    Args:
        base: the network, which takes x, inputs of a few samples. data: whose labels are all looked at.
        prior: samples that the prior is trained on.

    Raises:
        ModelError: outputs that are no logits, or that no gradient reaches. DataError: a label that is no class.
    """
    with same_randomness(), evaluating(base), torch.enable_grad():
        output = base(x)
    classes = class_count(output, len(x))
    trained = prior > 0 or (recipe.epochs > 0 and recipe.layers == "all")
    if trained and not output.requires_grad:
        raise ModelError(
            "no gradient reaches the network's outputs from its weights (.detach(), .tolist(), no_grad or frozen "
            "weights in its forward?), so it cannot be trained here: compute the outputs from its parameters"
        )
    for samples in data:
        for indices, targets in samples.each_target():
            check_labels(class_indices(targets), classes, int(indices[0]))


def round_weights(model: nn.Module, keep: str) -> None:
    """Round floating-point weights and buffers to the precision that they are kept in, in place."""
    if keep == "float16":
        with torch.no_grad():
            for t in (*model.parameters(), *model.buffers()):
                if t.is_floating_point():
                    t.copy_(t.half())


def round_posterior(network: StochasticNetwork, prior: Prior) -> None:
    """Round Q to what half-precision offsets from P hold: means in weights, log sigma in ln s.

    Until nothing changes: a sum in single precision is rounded too, and what is read back must be the same to the bit.
    """
    for tensor, base, _ in zip(*offsets(network, prior), strict=True):
        for _ in range(_ROUNDINGS):
            rounded = base + (tensor - base).detach().half().to(tensor)
            if torch.equal(rounded, tensor):
                break
            with torch.no_grad():
                tensor.copy_(rounded)


def offsets(network: StochasticNetwork, prior: Prior) -> tuple[list[Tensor], list[Tensor | float], list[Tensor]]:
    """Q's means and log sigmas, where P has them, and the differences."""
    log_s = math.log(prior.sigma or 1.0)
    tensors: list[Tensor] = [*network.means, *network.log_sigmas]
    bases: list[Tensor | float] = [*(prior.means[name] for name in network.names), *(log_s for _ in network.names)]
    return tensors, bases, [(t - b).detach() for t, b in zip(tensors, bases, strict=True)]


def orthonormal(basis: Tensor) -> Tensor:
    """The orthogonal float32 matrix next to a nearly orthogonal one, by QR in float64 with positive signs."""
    q, r = torch.linalg.qr(basis.double())
    signed: Tensor = q * r.diagonal().sign()
    return signed.float()


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
            refuse_other_files(self.path)
            state = torch.load(self.path, weights_only=True)
        except Exception:  # a damaged file may raise anything; the work is then done again
            return None
        return state if isinstance(state, dict) and state.get("key") == self.key else None

    def save(self, **state: Any) -> None:
        """Write to a temporary name, then rename."""
        if self.path is None:
            return
        write_whole(self.path, lambda file: torch.save(state | {"key": self.key}, file))


@torch.enable_grad()
def train_prior(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
    augment: _Augmentation | None,
    checkpoint: Checkpoint,
) -> bool:
    """Minimise the cross-entropy of the prior's samples, in place, from the checkpoint, if there is one: True then."""
    training = Training(model.train(), x, y, config=config, augment=augment)
    state = checkpoint.load()
    if state is not None:
        training.load_state_dict(state["training"])
    with interrupts.deferred():
        training.run(
            on_step=lambda at: progress.report("prior", at.steps, at.total),
            on_epoch=lambda at: checkpoint.save(training=at.state_dict()),
            on_stop=lambda at: checkpoint.save(training=at.state_dict()),
        )
    checkpoint.save(training=training.state_dict())
    model.eval()
    return state is not None


@torch.enable_grad()
def train_posterior(
    network: StochasticNetwork,
    prior: Prior,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    delta: float,
    seed: int,
    checkpoint: Checkpoint,
) -> None:
    """Minimise a PAC-Bayes bound over mu and sigma by Adam with a cosine schedule, in place.

    The risk in the objective is cross-entropy / `nats`, of fresh weights for every example (a convolution's for every
    batch). Means step by lr times the prior's sigma, logarithms of sigma by lr, so the scale of the weights does not
    matter. The recipe's `objective`, `nats` and the rest only choose Q.

    Args:
        x, y: the n samples of the bound.

    Raises:
        NumericalError: the objective is not finite.
    """
    epochs, lr, batch_size = recipe.epochs, recipe.lr, recipe.batch_size
    nats = recipe.nats or math.log(1 / recipe.p_min)
    if not (nats > 0 and lr > 0 and epochs >= 0 and batch_size >= 1):
        raise UsageError(f"got {nats=}, {lr=}, {epochs=}, {batch_size=}; expected positive numbers, 0 epochs for Q = P")
    bound = objective_of(recipe.objective)
    n = len(y)
    scale = prior.sigma or network.best_sigma(prior)
    groups = [{"params": network.means, "lr": lr * scale}, {"params": list(network.log_sigmas), "lr": lr}]
    optimizer = torch.optim.Adam(groups)
    rates = [lr * scale, lr]
    first, done, drawn = _resumed(network, optimizer, checkpoint)
    batches = range(0, n, batch_size)
    for epoch in range(first, epochs):
        order = torch.randperm(n, generator=generator(seed, 2 * epoch)).to(y.device)
        noise = generator(seed, 2 * epoch + 1)
        if drawn is not None:  # in the middle of this epoch
            noise.set_state(drawn)
        for i, start in list(enumerate(batches))[done:]:
            step = epoch * len(batches) + i
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(step, epochs * len(batches))
            rows = order[start : start + batch_size]
            logits = two_class(network(x[rows], noise, kernels_by_batch=True))
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
            if interrupts.requested():
                _keep(network, optimizer, checkpoint, epoch, i + 1, noise)
                interrupts.stop()
        done, drawn = 0, None
        _keep(network, optimizer, checkpoint, epoch + 1, 0, None)


def _keep(
    network: StochasticNetwork,
    optimizer: torch.optim.Optimizer,
    checkpoint: Checkpoint,
    epoch: int,
    batch: int,
    noise: torch.Generator | None,
) -> None:
    """What `_resumed` reads."""
    checkpoint.save(
        means=[m.detach() for m in network.means],
        log_sigmas=[r.detach() for r in network.log_sigmas],
        optimizer=optimizer.state_dict(),
        epoch=epoch,
        batch=batch,
        noise=None if noise is None else noise.get_state(),
    )


def _resumed(
    network: StochasticNetwork, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint
) -> tuple[int, int, Tensor | None]:
    """Epochs done, batches done of the next, and where its noise had come."""
    state = checkpoint.load()
    if state is None:
        return 0, 0, None
    with torch.no_grad():
        for mine, kept in ((network.means, state["means"]), (network.log_sigmas, state["log_sigmas"])):
            for tensor, value in zip(mine, kept, strict=True):
                tensor.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"]), int(state.get("batch", 0)), state.get("noise")


def stage_seed(seed: int, stage: int) -> int:
    """Seeds of the stages of one run, unrelated to each other."""
    return mix(seed, stage) >> 1
