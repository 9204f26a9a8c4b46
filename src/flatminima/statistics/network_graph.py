"""What a forward pass is made of: linear layers, and which activation each step stretches by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Convolution:
    """How a kernel is applied to one sample: F.convN(x, kernel, None, *arguments, **options)."""

    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    kernel: tuple[int, ...]  # (out, in / groups, *size)
    shape: tuple[int, ...]  # of the sample that comes in, (1, in, *size)

    def apply(self, matrix: Tensor, x: Tensor) -> Tensor:
        """The linear operator at x (n, in, *size), for the kernel as a matrix (out, in / groups * size)."""
        return self.function(x, matrix.view(self.kernel), None, *self.arguments, **self.options)


@dataclass(frozen=True)
class LinearLayer:
    """One linear map of the network, BatchNorm folded in.

    Attributes:
        name: of the parameter, or of the kind of layer where it has none.
        matrix (out, in) float64; convolutions as (channels, channels * kernel); a BatchNorm that follows no linear
            map is its diagonal (1, channels), flagged by `diagonal`.
        diagonal: the matrix is the diagonal of a map of its own.
        convolution: its geometry, where the layer is one.
        scale: what multiplies each row of the parameter (column of a diagonal) to give the matrix; None: nothing.
    """

    name: str
    matrix: Tensor
    diagonal: bool = False
    convolution: Convolution | None = None
    scale: Tensor | None = None


@dataclass(frozen=True)
class Node:
    """One step of the network.

    Attributes:
        kind: "same" (its one source, transformed), "add" or "cat" (of its sources); without sources a constant.
        sources: earlier nodes, by position; -1 is the input.
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

    `graph` ends with the output; `inputs` is the number of values in one sample.
    """

    layers: tuple[LinearLayer, ...]
    log_path_norm_1: float
    log_path_norm_2: float
    folded: int
    max_pooled: bool
    graph: tuple[Node, ...] = ()
    inputs: int = 1

    @property
    def branches(self) -> bool:
        """Whether activations are added or concatenated: products over layers are then no bound of the network."""
        return any(len(node.sources) > 1 for node in self.graph)

    @property
    def diagonals(self) -> list[str]:
        """BatchNorms that follow no linear map and so are layers of their own."""
        return [layer.name for layer in self.layers if layer.diagonal]
