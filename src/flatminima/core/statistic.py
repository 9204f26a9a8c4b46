"""`Statistic`: something that costs passes over the data, identified by its whole configuration.

A statistic is a frozen dataclass; equality of its fields is the key under which a `Minimum` keeps its value, so two
requests are one computation exactly when they would give the same number. A `Fold` (init, update, merge, finish:
sums and counts, never means) shares one sweep over the data with any number of other folds.

Measures ask for statistics with ``statistics[Gram(100)]``, or for several at once with a tuple,
``statistics[Gram(100), Outputs()]``: then one sweep serves them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, overload

from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.batch import Batch
    from flatminima.core.layer_gradient import LayerGradient
    from flatminima.core.minimum import Minimum

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
S = TypeVar("S")


@dataclass(frozen=True)
class Cost:
    """Passes over all the data (1.0 = every sample once) and bytes kept meanwhile."""

    forward: float = 0.0
    backward: float = 0.0
    memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward, max(self.memory, other.memory))


class Needs(Flag):
    """Needs of a statistic; shards of a network cannot give everything."""

    LOSSES = auto()  # outputs and losses, at w or at other weights
    GRADIENTS = auto()  # of the mean loss
    PRODUCTS = auto()  # of the Hessian with a vector
    GAUSS_NEWTON = auto()  # products with the Gauss-Newton matrix
    EVERYTHING = auto()  # each sample's own gradient, or every weight in one process

    def words(self) -> str:
        """The needs in words, for a message."""
        if self & Needs.EVERYTHING:
            return "every weight, or a sample's own gradient, in one process"
        return "products with the Gauss-Newton matrix" if self & Needs.GAUSS_NEWTON else "what shards do not give"


class Statistic(ABC, Generic[T]):
    """Something that costs passes. Subclasses are frozen dataclasses.

    Attributes:
        needs: of the network.
    """

    @property
    def needs(self) -> Needs:
        return Needs.EVERYTHING

    @abstractmethod
    def compute(self, minimum: Minimum) -> T:
        """The value at this minimum. Raises `Undefined` where it has no meaning."""

    def cost(self, minimum: Minimum) -> Cost:
        """An estimate before the work; the default is nothing."""
        return Cost()


class Reads(Flag):
    """Parts of a batch that a fold reads; the sweep prepares the union once."""

    OUTPUTS = auto()  # logits, per-sample losses
    LAYERS = auto()  # per-layer gradients of the loss (one backward pass, no weight gradient formed)
    COLUMNS = auto()  # the same for each column of the loss's Gauss-Newton factor (C backward passes)
    DRAWN = auto()  # the same for a few random combinations of those columns (`Fold.drawn`)
    INPUTS = auto()  # gradients with respect to the input under those columns
    GRAPH = auto()  # losses with a graph to the parameters


class Fold(Statistic[T], Generic[S, T]):
    """A statistic that is a sum over batches and can share its sweep.

    Fields that shape the sweep (all part of the configuration):
        order_seed: samples are visited in the random order of this seed; None: any order will do.
        multiple: batches hold whole groups of so many samples.
    """

    reads: ClassVar[Reads] = Reads.OUTPUTS

    def reads_at(self, minimum: Minimum) -> Reads:
        """Parts of a batch that the fold reads there; `reads` unless the network's size decides."""
        return self.reads

    @property
    def order_seed(self) -> int | None:
        return None

    @property
    def multiple(self) -> int:
        return 1

    @property
    def drawn(self) -> tuple[int, int] | None:
        """Number of random combinations of the Gauss-Newton columns that the fold reads, and their seed."""
        return None

    def limit(self, minimum: Minimum) -> int:
        """Number of samples, from the front of the order, that the fold reads."""
        return len(minimum.samples)

    @abstractmethod
    def init(self, minimum: Minimum) -> S:
        """The empty sum."""

    @abstractmethod
    def update(self, state: S, batch: Batch) -> S:
        """The sum with one more batch (after the gradients of all layers have arrived)."""

    @abstractmethod
    def merge(self, left: S, right: S) -> S:
        """The sum of two disjoint parts of the data."""

    @abstractmethod
    def finish(self, state: S) -> T:
        """The value; the only place that divides."""

    def receive(self, state: S, layer: LayerGradient, batch: Batch) -> None:
        """One layer's gradients of this batch, during the backward pass; nothing of it may be kept."""

    def compute(self, minimum: Minimum) -> T:
        return minimum.sweep([self])[self]  # type: ignore[no-any-return]

    def without_sweep(self, minimum: Minimum) -> T:
        """The value at a network that cannot hand out what the fold reads, from its products or losses.

        Raises:
            Undefined: there is no such way.
        """
        raise Undefined(f"{type(self).__name__} needs what the network's shards do not give")

    def cost(self, minimum: Minimum) -> Cost:
        share = self.limit(minimum) / len(minimum.samples)
        reads = self.reads_at(minimum)
        backward = share * bool(reads & Reads.LAYERS)
        if reads & (Reads.COLUMNS | Reads.INPUTS):
            backward += share * minimum.output_size
        if reads & Reads.DRAWN and self.drawn is not None:
            backward += share * self.drawn[0]
        return Cost(forward=share, backward=backward)


class Statistics(Protocol):
    """The view of a measure: a mapping from statistic to value. A `Minimum` is one, `Fixed` another."""

    @overload
    def __getitem__(self, key: Statistic[T]) -> T: ...
    @overload
    def __getitem__(self, key: tuple[Statistic[T1], Statistic[T2]]) -> tuple[T1, T2]: ...
    @overload
    def __getitem__(self, key: tuple[Statistic[T1], Statistic[T2], Statistic[T3]]) -> tuple[T1, T2, T3]: ...


class Fixed:
    """Statistics with given values, so that a measure can be tested by handing it numbers.

    Examples:
        >>> from flatminima.statistics import ParameterCount
        >>> Fixed({ParameterCount(): 3})[ParameterCount()]
        3
    """

    def __init__(self, values: Mapping[Statistic[Any], Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return tuple(self._values[k] for k in key)
        return self._values[key]
