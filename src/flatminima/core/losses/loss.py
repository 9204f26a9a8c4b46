"""`Loss`: per-sample losses, with derivatives by the output that keep their digits where networks interpolate.

Autograd's softmax gradient p_y - 1 cancels to rounding noise (or to exactly 0) once p_y -> 1, and so does the second
derivative sigma(z) (1 - sigma(z)) of the binary cross-entropy; log-determinants made of them are off by percents or
NaN. The finals compute both without a difference of nearly equal numbers; `recognise` gives them to torch's own losses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from flatminima.errors import DataError, Undefined

PerSample = Callable[[Any, Tensor], Tensor]

MAX_COLUMNS = 1_000  # a Gauss-Newton factor needs one backward pass a column


class Loss(ABC):
    """A loss of each sample, by its output and target.

    Attributes:
        name: of a built-in, of torch's loss, or of the user's callable.
        labels: targets are class indices (batch,) and outputs logits (batch, classes).
    """

    name: str
    labels: bool

    @staticmethod
    def of(loss: str | PerSample | Loss) -> Loss:
        """A built-in by name, one of torch's own losses, or a callable that returns losses of shape (batch,).

        Raises:
            UnknownName: no built-in of this name.
            DataError: a loss of torch whose reduction mixes the samples.
        """
        from flatminima.core.losses.recognise import recognise  # the finals import this module

        return recognise(loss)

    @final
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Losses (batch,). Raises DataError where the shape is another."""
        losses = self.values(output, target)
        if not isinstance(losses, Tensor) or losses.shape != output.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise DataError(
                f"loss {self.name!r} returned {got} for {len(output)} samples; it must return one loss a sample, "
                f"shape ({len(output)},): use reduction='none' and average what is left"
            )
        return losses

    @abstractmethod
    def values(self, output: Tensor, target: Tensor) -> Tensor:
        """Losses, of shape (batch,) where nothing is wrong; twice differentiable by the output."""

    @abstractmethod
    def seed(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each loss by the output, as direction and length.

        Returns:
            unit (batch, ...): unit-norm gradients in the output's dtype (zero where the gradient is zero).
            log_norm (batch,) float64: ln of their norms (-inf where zero).
        """

    @abstractmethod
    def columns(self, output: Tensor, target: Tensor) -> Tensor:
        """Factor B of the Hessian of each loss by the output: sum_c B_c B_c^T = d2 loss / d output2.

        Returns:
            (columns, batch, ...) in the output's dtype.

        Raises:
            Undefined: the loss is not convex in the output, or the output is too large.
        """

    @abstractmethod
    def drawn_column(self, output: Tensor, target: Tensor, signs: Tensor) -> Tensor:
        """B s of the factor B of `columns`, for independent signs s: the mean of (B s)(B s)^T is d2 loss / d output2.

        Args:
            output, target: of a batch. signs: +1 and -1, in the output's shape.

        Returns:
            (batch, ...) in the output's dtype.

        Raises:
            Undefined: the loss is not convex in the output, or its factor is too large.
        """

    @abstractmethod
    def refuse_concave(self, output: Tensor, target: Tensor) -> None:
        """Raise Undefined where the loss is not convex in the output."""

    @abstractmethod
    def check_targets(self, target: Tensor, output: Tensor, indices: Tensor) -> None:
        """Refuse targets that do not fit the output, before a kernel does it with an assertion.

        Args:
            target: of any number of samples, `indices` their places in the data.
            output: logits of at least one sample.

        Raises:
            DataError: naming the sample, its label and the class count.
        """

    @abstractmethod
    def fitted(self, output: Tensor, target: Tensor) -> Loss:
        """This loss for outputs and targets of these shapes: whether the targets are labels is then known."""

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """Notes on this loss for a reader of the numbers, as far as was seen."""

    @abstractmethod
    def inspect(self, output: Tensor, target: Tensor, gradient: Tensor) -> None:
        """Look at a gradient of the losses by the output, for `notes`."""

    @final
    def residual(self, output: Tensor, target: Tensor, losses: Tensor | None = None) -> Tensor:
        """Gradient of the summed losses by the output, in its shape and dtype; differentiable once more.

        Args:
            losses: of these, with their graph; None: made here.

        Raises:
            Undefined: the loss has no gradient.
        """
        total = (self(output, target) if losses is None else losses).sum()
        if not total.requires_grad:
            raise Undefined(f"loss {self.name!r} has no gradient with respect to the parameters")
        (gradient,) = torch.autograd.grad(total, output, create_graph=True, allow_unused=True, materialize_grads=True)
        self.inspect(output.detach(), target, gradient.detach())
        return gradient


class ExactLoss(Loss):
    """A loss whose derivatives keep their digits: there is nothing to note."""

    @property
    @final
    def notes(self) -> tuple[str, ...]:
        return ()

    @final
    def inspect(self, output: Tensor, target: Tensor, gradient: Tensor) -> None:
        """Nothing to look for."""


def as_rows(t: Tensor) -> Tensor:
    """(batch, everything else); outputs may be (batch,)."""
    return t.reshape(len(t), -1)


def accurate(output: Tensor) -> Tensor:
    """Convert to float32 at least."""
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def unit_and_log_norm(scaled: Tensor, log_scale: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The direction of `scaled` (batch, size) float64 in the dtype of `like`, and ln of its norm times the scale."""
    norm = scaled.norm(dim=1)
    unit = scaled / norm.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
    return unit.view_as(like).to(like.dtype), log_scale + norm.log()


def refuse_too_many_columns(output: Tensor) -> int:
    """Entries of one sample's output, as many as its Gauss-Newton factor has columns. Raises Undefined above 1,000."""
    size = output[0].numel()
    if size > MAX_COLUMNS:
        raise Undefined(f"a Gauss-Newton factor of {size} columns is too large (limit {MAX_COLUMNS})")
    return size


def as_output(target: Tensor, output: Tensor) -> Tensor:
    """A column of targets as the outputs of one number a sample."""
    return target.squeeze(1) if _is_column(target, output) else target


def _is_column(target: Tensor, output: Tensor) -> bool:
    return output.dim() == 1 and target.dim() == 2 and target.shape[1] == 1


def refuse_broadcast(name: str, target: Tensor, output: Tensor) -> None:
    got, one = tuple(target.shape[1:]), tuple(output.shape[1:])
    if got != one and not _is_column(target, output):
        raise DataError(
            f"got an output of shape {one} and a target of shape {got} a sample; {name} needs equal "
            "shapes (they would broadcast in silence): reshape the targets"
        )
