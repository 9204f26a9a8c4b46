"""`Network`: a model, its data and its loss, at weights w or others; all statistics compute with it.

Two classes are one: `Minimum`, whose weights lie in this process, and `ShardedMinimum`, whose weights lie in shards.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from flatminima.core.batch import Batch
from flatminima.core.chance import Chance, refusing_chance
from flatminima.core.distributed import Ranks
from flatminima.core.gradient_check import Following, out_of_memory
from flatminima.core.losses import Loss
from flatminima.core.mapping import StatisticMapping
from flatminima.core.output import logits
from flatminima.core.parameters import Parameters
from flatminima.core.perturbation import Perturbation, generator, resolved
from flatminima.core.samples import Inputs, Samples, call
from flatminima.core.spent import Lesson, Passes
from flatminima.core.statistic import Needs, Statistic
from flatminima.errors import Absent, NumericalError, UsageError

T = TypeVar("T")


class Network(StatisticMapping):
    """A model with its data and per-sample loss.

    Attributes:
        model, parameters, samples, loss: what is measured.
        batch_size, halvings: samples at a time, and how often memory forced it to be halved.
        device, seed: where to compute; of statistics that draw and have no seed of their own.
        passes: samples that went forward and backward; a copy made by `replace` counts here too.
        ranks: processes that share the passes, or None.
        following: how per-sample gradients are made.
        chance: what is known of the random numbers that it draws.
        remarks: what a reader of the numbers must know, in order.
        examined: what was checked once for the network, by name, and what is wrong with it.
        output: which entry of what the model returns is the logits; None: the only tensor.
        output_size: entries of one sample's output.
        eps: of the coarsest dtype that is computed in, as far as it was seen.
    """

    offers: ClassVar[Needs]
    model: nn.Module
    parameters: Parameters
    samples: Samples
    device: torch.device
    output_size: int
    eps: float

    def __init__(self, loss: str | Callable[[Any, Tensor], Tensor], batch_size: int, seed: int, output: Any) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"got batch_size={batch_size!r}; it must be at least 1")
        super().__init__()
        self.loss = Loss.of(loss)
        self.batch_size, self.seed, self.output = batch_size, seed, output
        self.halvings = 0
        self.ranks: Ranks | None = None
        self.passes = Passes()
        self.following = Following()
        self.chance = Chance()
        self.remarks: dict[str, None] = {}
        self.examined: dict[str, Absent | None] = {}
        self._depth = 0

    @property
    def generation(self) -> int:
        return self.following.generation

    def learnt(self) -> Lesson:
        """Observations of the network that are not repeated."""
        following = self.following
        return Lesson(tuple(self.remarks), dict(self.examined), following.tried, following.level, following.reason)

    def learn(self, lesson: Lesson) -> None:
        """Take what an earlier run of the same command saw of the same network."""
        for remark in lesson.remarks:
            self.remarks.setdefault(remark, None)
        for name, absent in lesson.examined.items():
            self.examined.setdefault(name, absent)
        if lesson.tried and not self.following.tried:
            self.following.tried, self.following.level = True, lesson.level
            self.following.reason = lesson.reason

    @abstractmethod
    def forward(self, inputs: Inputs) -> Tensor:
        """Logits of a batch already on the device; counted."""

    @abstractmethod
    def mean_gradient(self, indices: Tensor) -> tuple[float, Tensor]:
        """Mean loss over the samples at `indices` and its gradient, float64, of the weights held here.

        Raises:
            Undefined: a loss that is not finite.
        """

    @abstractmethod
    def own_products(self, indices: Tensor, curvature: str) -> Any:
        """Products with the curvature in a way of the network's own; None: by double backward, as `Products` does."""

    def lacking(self, statistic: Statistic[Any]) -> Absent | None:
        needs = statistic.needs & ~self.offers
        if not needs:
            return None
        return Absent(
            "sharded",
            f"{type(statistic).__name__} needs {needs.words()}; from FSDP's shards there are losses, gradients of the "
            "mean loss and differences of these",
        )

    def within_memory(self, work: Callable[[], T]) -> T:
        """The value of `work`, begun anew with batches half as large as often as memory runs out.

        Raises:
            NumericalError: one sample at a time is still too large.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # outside of the handler, whose traceback keeps the tensors alive
            if self.batch_size == 1:
                raise NumericalError(
                    f"out of memory with one sample at a time ({reason}); measure fewer things at once"
                )
            self.batch_size //= 2
            self.halvings += 1
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def run(self, inputs: Inputs) -> Tensor:
        """Logits of a batch, by the model as it is; not counted."""
        return logits(call(self.model, inputs), self.output)

    def one_input(self) -> Inputs:
        """Inputs of the first sample, for what depends on their shape alone."""
        return self.samples.take(torch.arange(1))[0]

    def batch(self, indices: Tensor, start: int = 0) -> Batch:
        """The samples at `indices`, on the device."""
        return Batch(self, indices, start)  # type: ignore[arg-type]

    def losses(self, indices: Tensor) -> Tensor:
        """Per-sample losses (n,) float64 of the samples at `indices` (n,), at the weights as they are now, no graph."""
        parts, batches = [], indices.split(self.batch_size)
        with self.open(), torch.no_grad(), refusing_chance(self, lambda: batches):
            for rows in batches:
                batch = self.batch(rows)
                parts.append(self.loss(self.forward(batch.inputs), batch.targets).double())
        return torch.cat(parts)

    def mean_loss(self, indices: Tensor) -> float:
        """Mean of `losses`."""
        return float(self.losses(indices).sum()) / len(indices)

    @abstractmethod
    def in_precision(self, dtype: torch.dtype) -> Self:
        """The same network with weights of another precision.

        Raises:
            Undefined: there is none.
        """

    def resolving(self, perturbation: Perturbation, seed: int = 0) -> Self:
        """This network, or a copy in a precision that tells w + u from w: a step below the weights' spacing is none.

        Args:
            perturbation: distribution of u, whose first draw is looked at. seed: of it.
        """
        network = self
        for finer in (torch.float32, torch.float64):
            weights = network.parameters.flat()
            draw = network.parameters.part(perturbation.standard(len(network.parameters), generator(seed, 0)))
            if self.parameters.agree(resolved(weights, perturbation.scaled(draw, weights))):
                return network
            if torch.finfo(weights.dtype).eps > torch.finfo(finer).eps:
                network = self.in_precision(finer)
        return network

    @contextmanager
    def at(self, weights: Tensor) -> Iterator[None]:
        """The network at other weights within the block, flat as the parameters; afterwards at w, bit for bit.

        What is computed inside is not remembered as of w.
        """
        with self.open(), self.displaced():
            before = self.parameters.flat()
            try:
                self.parameters.assign(weights)
                yield
            finally:
                self.parameters.assign(before)

    @contextmanager
    def moved(self, perturbation: Perturbation, seed: int, index: int, sign: float = 1.0) -> Iterator[None]:
        """Weights w + sign u within the block, u draw `index` of `seed`."""
        with self.open(), self.displaced(), perturbation.applied(self.parameters, seed, index, sign):
            yield
