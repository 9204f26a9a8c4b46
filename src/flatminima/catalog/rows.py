"""Rows of the catalogue: of a measure, a statistic, a bound, an optimizer, a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args

from flatminima.catalog.papers import Paper

BetterDirection = Literal["lower", "higher"]
Budget = Literal["fast", "default", "thorough"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)

# Of a ReLU network; the function stays the same. Repeating the first gives every layer a factor, product 1.
LAYERWISE = "layer rescaling"  # one layer's weights and biases times a, the next layer's weights divided by a
UNITWISE = "unit rescaling"  # the same for each hidden unit with a factor of its own

LAYERS = frozenset({LAYERWISE})  # of products of whole layers' norms
UNITS = frozenset({LAYERWISE, UNITWISE})


@dataclass(frozen=True)
class Measure:
    """A measure: what `flatminima list`, the tables, the figures and the contract tests know of it.

    Attributes:
        name: of the function in `flatminima.measures`.
        module: file in `flatminima/measures`.
        summary: one line.
        paper, equation: where it is defined.
        direction: which way goes with better generalization.
        needs: passes over the data and what else.
        undefined: networks and data without a value, in words; empty where every network has one.
        invariant: transformations that leave the function, and this measure at its defaults, unchanged. A test
            applies them all to every measure: what is not listed changes it.
        budget: the smallest whose table includes it.
        fast, thorough: counts that those budgets give it in place of its defaults.
        unit: of the value; empty where it has none or that of the loss and the weights.
        small: options that make it cheap enough for the contract tests' 21 samples.
    """

    name: str
    module: str
    summary: str
    paper: Paper
    equation: str
    direction: BetterDirection
    needs: str
    undefined: str = ""
    invariant: frozenset[str] = frozenset()
    budget: Budget = "default"
    fast: Mapping[str, Any] = field(default_factory=dict)
    thorough: Mapping[str, Any] = field(default_factory=dict)
    unit: str = ""
    small: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The function."""
        return getattr(import_module(f"flatminima.measures.{self.module}"), self.name)

    def counts(self, budget: Budget) -> Mapping[str, Any]:
        """Options that a budget changes of the function's defaults."""
        return {"fast": self.fast, "default": {}, "thorough": self.thorough}[budget]

    @property
    def label(self) -> str:
        """The name with its unit, where it has one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def invariance(self) -> str:
        """Effect on the measure of rescaling the layers of a ReLU network, which changes no output."""
        if UNITWISE in self.invariant:
            return "rescaling-invariant, by layers and by units"
        if LAYERWISE in self.invariant:
            return "invariant where whole layers are rescaled, not where units are"
        return "not rescaling-invariant: compare networks of one parameterisation"


@dataclass(frozen=True)
class StatisticRow:
    """A statistic as `flatminima list --statistics` shows it.

    Attributes:
        name: of the class in `flatminima.statistics`.
        module: file in `flatminima/statistics`.
        summary: one line.
        cost: passes over all the data at its defaults, C outputs and W weights; a test compares them with its `cost`.
        paper, equation: where it is defined; None where it is common property.
    """

    name: str
    module: str
    summary: str
    cost: str
    paper: Paper | None = None
    equation: str = ""

    def load(self) -> Any:
        """The class."""
        return getattr(import_module(f"flatminima.statistics.{self.module}"), self.name)

    @property
    def source(self) -> str:
        """The paper and its equation; empty where there is none."""
        return f"{self.paper}, {self.equation}" if self.paper else ""


@dataclass(frozen=True)
class Bound:
    """A bound on the risk as `flatminima list` shows it.

    Attributes:
        name: of the function in `flatminima.bounds`.
        module: file in `flatminima/bounds`.
        summary: one line.
        paper, equation: where it is defined; the equation is empty where the paper is only named.
        label: "CERT": holds with probability 1 - delta under its conditions. "SCORE": ranks networks, proves nothing
            with the inputs that one has in practice.
        needs: what makes it a certificate, or what keeps it from being one.
    """

    name: str
    module: str
    summary: str
    paper: Paper
    equation: str
    label: Literal["CERT", "SCORE"]
    needs: str


@dataclass(frozen=True)
class Optimizer:
    """An optimizer as `flatminima list` shows it and `flatminima train --method` takes it.

    Attributes:
        name: on the command line.
        attribute: of the class in `flatminima.optim`.
        module: file in `flatminima/optim`.
        summary: one line.
        paper, equation: where it is defined.
        kind: "wrapper": a `torch.optim.Optimizer` around a base one. "backward": it fills the gradients in place of the
            loss's own backward pass, and the base optimizer steps.
        small: options with which the contract of the wrappers sees an effect within a few steps.
        off: options with which it is its base, to the bit.
    """

    name: str
    attribute: str
    module: str
    summary: str
    paper: Paper
    equation: str
    kind: Literal["wrapper", "backward"]
    small: Mapping[str, Any] = field(default_factory=dict)
    off: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The class."""
        return getattr(import_module(f"flatminima.optim.{self.module}"), self.attribute)


@dataclass(frozen=True)
class Model:
    """A network of the papers.

    Attributes:
        name: of the factory in `flatminima.models`.
        module: file in `flatminima/models`.
        summary: one line.
        paper: whose experiments use it; None where it is common property.
    """

    name: str
    module: str
    summary: str
    paper: Paper | None

    def load(self) -> Any:
        """The factory."""
        return getattr(import_module(f"flatminima.models.{self.module}"), self.name)
