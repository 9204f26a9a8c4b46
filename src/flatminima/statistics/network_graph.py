"""The parts of a forward pass: linear layers, and which activation each step stretches by how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SampleOperator:
    """Action of a layer's weights on one sample, where that is no plain product with its matrix.

    Attributes:
        act: (matrix, x (n, *shape[1:])) -> the layer without its bias at x: a convolution, or a product in blocks.
        shape: of the sample that comes in, (1, ...).
    """

    act: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LinearLayer:
    """One linear map of the network; the BatchNorm and the factors that follow it at once are folded in.

    Attributes:
        name: of the module or parameter, or of the kind of layer where it has none.
        matrix (out, in) float64; convolutions as (channels, channels * kernel), each output's weights in one row; a
            map of its own that multiplies entry by entry is its diagonal (1, entries), flagged by `diagonal`.
        diagonal: the matrix is the diagonal of a map of its own.
        operator: how the matrix acts where weights are used at several places; None: as a matrix.
        scale: what multiplies each row of the weights (column of a diagonal) to give the matrix; None: nothing.
        units: values that the layer makes of one sample's, for a convolution channels times positions; None: rows.
        parameter: name of the parameter, or of the parametrized weight, that holds the weights; None: several do;
            "": none, they are constants.
        arrange: weight -> matrix, before `scale`.
        view: parameter -> weight, where the network transposes or reshapes it first.
    """

    name: str
    matrix: Tensor
    diagonal: bool = False
    operator: SampleOperator | None = None
    scale: Tensor | None = None
    units: int | None = None
    parameter: str | None = None
    arrange: Callable[[Tensor], Tensor] | None = None
    view: Callable[[Tensor], Tensor] | None = None

    @property
    def width(self) -> int:
        """h_i of a capacity: the layer's units. A diagonal has those of the layer that it multiplies, and so 1."""
        if self.diagonal:
            return 1
        return self.matrix.shape[0] if self.units is None else self.units


@dataclass(frozen=True)
class Node:
    """One step of the network.

    Attributes:
        kind: "same" (its one source, transformed), "add" or "cat" (of its sources); without sources a constant.
        sources: earlier nodes, by position; -1, -2, ... are the inputs.
        layer: the linear map applied to the source, if it is one.
        stretch_2, stretch_inf: the most that the step lengthens a change of its source, where it is no linear layer.
    """

    kind: Literal["same", "add", "cat"]
    sources: tuple[int, ...]
    layer: LinearLayer | None = None
    stretch_2: float = 1.0
    stretch_inf: float = 1.0


@dataclass(frozen=True)
class FeedForwardNetwork:
    """The linear layers in the order of execution, and the logarithms of the l1 and l2 path norms.

    Attributes:
        graph: ends with the output.
        inputs: values in one sample, of all its inputs.
        factors: numbers that multiply activations and are folded into no layer, by the name of the operation.
        uses: how often each parameter enters the computation.
        nonlinear: parameters from which weights are made by an operation that is not linear, with its name.
    """

    layers: tuple[LinearLayer, ...]
    log_path_norm_1: float
    log_path_norm_2: float
    folded: int
    max_pooled: bool
    graph: tuple[Node, ...] = ()
    inputs: int = 1
    factors: tuple[tuple[str, float], ...] = ()
    uses: Mapping[str, int] = field(default_factory=dict)
    nonlinear: Mapping[str, str] = field(default_factory=dict)

    @property
    def branches(self) -> bool:
        """Whether activations are added or concatenated: products over layers are then no bound of the network."""
        return any(len(node.sources) > 1 for node in self.graph)

    @property
    def diagonals(self) -> list[str]:
        """Maps of their own that multiply entry by entry: BatchNorms and scales that follow no linear map."""
        return [layer.name for layer in self.layers if layer.diagonal]
