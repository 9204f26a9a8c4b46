"""The mean loss on a line or a plane through a minimum, with the ball that random noise reaches there.

Only the weights are moved: eval mode, BatchNorm with the statistics of the minimum, the same samples at every point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima import progress
from flatminima.catalog.choices import DIRECTIONS
from flatminima.core.ambient import in_neutral
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import Gaussian, Perturbation, Relative, describe
from flatminima.core.statistic_store import ABSENT, content_of, keeper, quietly
from flatminima.display import html
from flatminima.errors import UsageError
from flatminima.landscape.direction import Direction

EXPECTED_SHARPNESS = Gaussian(Relative(5e-4, 10.0, 1.0))  # Neyshabur et al. 2017: sigma_i = alpha (10 |w_i| + 1)
_LEAST = 1e-4  # of the weights: a step that the precision must tell from none
_FEWEST = 3


@dataclass(frozen=True, eq=False)
class Ball:
    """The set where ||sum_k a_k d_k|| is the root mean square norm of a perturbation.

    Attributes:
        radius: sqrt(E ||u||^2), in the norm of the weights.
        gram: inner products of the directions, (1, 1) or (2, 2).
        noise: the perturbation, in words and numbers.
    """

    radius: float
    gram: np.ndarray[Any, np.dtype[np.float64]]
    noise: dict[str, Any]

    def outline(self, points: int = 200) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Coordinates (points, 2) of the ellipse a^T gram a = radius^2; of a line its two ends, (2, 1)."""
        if len(self.gram) == 1:
            reach = self.radius / math.sqrt(float(self.gram[0, 0]))
            return np.array([[-reach], [reach]])
        turn = np.linspace(0, 2 * math.pi, points)
        circle = self.radius * np.stack([np.cos(turn), np.sin(turn)])
        return np.asarray(np.linalg.solve(np.linalg.cholesky(self.gram).T, circle).T, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Landscape:
    """Losses around a minimum.

    Attributes:
        positions: (steps,) float64, multiples of each direction, the same on all axes.
        losses: (steps,) or (steps, steps) float64, first axis the first direction; inf or NaN where they overflow.
        errors: 0-1 errors of the same shape; None for a loss without class labels.
        labels: of the axes. curvatures: eigenvalues along them, or None.
        lengths: norms of the directions.
        ball: of the noise.
        centre: loss at the minimum itself.
        samples: how many the losses are means of.
        loss: name of the loss.
    """

    positions: np.ndarray[Any, np.dtype[np.float64]]
    losses: np.ndarray[Any, np.dtype[np.float64]]
    errors: np.ndarray[Any, np.dtype[np.float64]] | None
    labels: tuple[str, ...]
    curvatures: tuple[float | None, ...]
    lengths: tuple[float, ...]
    ball: Ball
    centre: float
    samples: int
    loss: str

    def _repr_html_(self) -> str:
        return html("landscape", self)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; what overflowed is None."""
        return {
            "schema": 1,
            "kind": "landscape",
            "positions": self.positions.tolist(),
            "losses": _plain(self.losses),
            "errors": None if self.errors is None else self.errors.tolist(),
            "labels": list(self.labels),
            "curvatures": list(self.curvatures),
            "lengths": list(self.lengths),
            "ball": {"radius": self.ball.radius, "noise": self.ball.noise},
            "centre": self.centre,
            "samples": self.samples,
            "loss": self.loss,
        }


@in_neutral
def landscape(
    minimum: Minimum,
    along: Sequence[Direction],
    *,
    steps: int = 25,
    radius: float = 1.0,
    samples: int | None = 1000,
    noise: Perturbation = EXPECTED_SHARPNESS,
    seed: int = 0,
) -> Landscape:
    """Mean loss at w + sum_k a_k d_k for a_k in `steps` equal steps from -radius to radius.

    Args:
        minimum: model, data and per-sample loss.
        along: one direction or two, not parallel.
        steps: per axis, at least 3; an odd number has the minimum among its points.
        radius: in lengths of the directions, positive.
        samples: of the data, drawn by `seed`; None for all.
        noise: whose root mean square norm is drawn in as a ball.
        seed: of the samples.

    Raises:
        UsageError: something else than directions or another number of them, too few steps, a radius that is not
            positive, parallel directions.

    Source: Li et al. (2018), "Visualizing the Loss Landscape of Neural Nets", sec. 3.

    Examples:
        >>> from flatminima.landscape import directions
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> m = Minimum(torch.nn.Linear(2, 2), (x, y))
        >>> found = landscape(m, directions(m, "filter", 1), steps=3)
        >>> found.losses.shape, bool(found.losses[1] == found.centre)
        ((3,), True)
    """
    minimum = minimum.resolving(Gaussian(Relative(_LEAST, 1.0, 0.0)), seed)
    given: Any = along
    if not (isinstance(given, list | tuple) and all(isinstance(d, Direction) for d in given)):
        got = repr(given) if isinstance(given, str) else type(given).__name__
        raise UsageError(f"got {got} as `along`; pass directions(minimum, kind, count), kind {' or '.join(DIRECTIONS)}")
    count = len(along)
    if count not in (1, 2) or steps < _FEWEST or not (math.isfinite(radius) and radius > 0):
        raise UsageError(
            f"got {count} directions, steps={steps}, radius={radius}; expected 1 or 2, at least {_FEWEST} and a "
            "positive number"
        )
    vectors = torch.stack([d.vector for d in along]).double()
    gram = (vectors @ vectors.T).cpu().numpy()
    if np.linalg.matrix_rank(gram / gram.max()) < count:
        raise UsageError("got directions that are zero or parallel; a plane needs two that differ: take another seed")
    positions = np.linspace(-radius, radius, steps)
    indices = minimum.samples.order(seed)[:samples]
    grid = np.stack(np.meshgrid(*[positions] * count, indexing="ij"), -1).reshape(-1, count)
    values = np.empty((len(grid), 2))
    with minimum.open(), torch.no_grad():
        weights = minimum.parameters.flat()
        centre, _ = _means(minimum, indices)
        with _kept(
            minimum, values, len(indices), f"landscape {content_of({'': vectors})} {radius} {steps} {samples} {seed}"
        ) as begun:
            for i in range(begun.count, len(grid)):
                shift = torch.from_numpy(grid[i]).to(vectors) @ vectors
                with minimum.at(weights + shift.to(weights)):
                    values[i] = _means(minimum, indices)
                begun.count = i + 1
                progress.report("landscape", i + 1, len(grid))
        sigma = noise.scale.of(weights).double()
    rms = math.sqrt(noise.second_moment * float(sigma.square().sum()))
    shape = (steps,) * count
    return Landscape(
        positions,
        values[:, 0].reshape(shape),
        values[:, 1].reshape(shape) if minimum.loss.labels else None,
        tuple(d.label for d in along),
        tuple(d.curvature for d in along),
        tuple(float(x) for x in np.sqrt(gram.diagonal())),
        Ball(rms, gram, describe(noise)),
        centre,
        len(indices),
        minimum.loss.name,
    )


@dataclass
class _Begun:
    """How many points of a landscape are known."""

    count: int = 0


@contextmanager
def _kept(minimum: Minimum, values: np.ndarray[Any, np.dtype[np.float64]], samples: int, name: str) -> Iterator[_Begun]:
    """The points that an earlier run of the same command found; those of this one are kept where it is stopped."""
    kept, content, begun = keeper(), None, _Begun()
    if kept is not None:
        content = minimum.content()
        found = ABSENT if content is None else kept.get(f"{content} {name}")
        if isinstance(found, np.ndarray) and found.shape[1:] == values.shape[1:] and len(found) <= len(values):
            values[: len(found)], begun.count = found, len(found)
            minimum.passes.forward += len(found) * samples
    try:
        yield begun
    except BaseException:
        if kept is not None and content is not None and begun.count:
            quietly(lambda: kept.put(f"{content} {name}", values[: begun.count]))
        raise


def _means(minimum: Minimum, indices: Tensor) -> tuple[float, float]:
    """Mean loss and 0-1 error; far from the minimum a loss may overflow, which is no error."""
    loss = wrong = 0.0
    for part in indices.split(minimum.batch_size):
        batch = minimum.batch(part)
        output = minimum.forward(batch.inputs)
        loss += float(minimum.loss(output, batch.targets).double().sum())
        if minimum.loss.labels:
            wrong += float((output.argmax(1) != batch.targets).sum())
    return loss / len(indices), wrong / len(indices)


def _plain(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[Any]:
    flat = [float(v) if math.isfinite(v) else None for v in values.reshape(-1)]
    return flat if values.ndim == 1 else [flat[i : i + values.shape[1]] for i in range(0, len(flat), values.shape[1])]
