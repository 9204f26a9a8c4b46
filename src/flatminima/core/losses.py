"""Per-sample losses, their gradient with respect to the output, and the factor of their Gauss-Newton matrix.

The surprise: autograd's softmax gradient p_y - 1 cancels to garbage (or to exactly 0) once p_y -> 1, which is where
interpolating networks live; log-determinants built on it are off by percents or NaN. For cross-entropy the gradient is
therefore made as a unit vector plus the logarithm of its length, both computed stably in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatminima.errors import DataError, Undefined, UnknownName

PerSample = Callable[[Any, Tensor], Tensor]

_MAX_COLUMNS = 1_000  # a Gauss-Newton factor needs one backward pass a column
_IGNORED = -100  # torch's ignore_index
_ROUNDING = {torch.float64: 1e-8}  # of a Hessian's eigenvalues, relative to the largest
_ROUNDING_DEFAULT = 1e-4


@dataclass(frozen=True)
class Loss:
    """A per-sample loss.

    Attributes:
        name: of a built-in, or of the user's callable.
        per_sample: (output, target) -> losses (batch,).
        labels: targets are class indices (batch,) and outputs logits (batch, classes).
    """

    name: str
    per_sample: PerSample
    labels: bool = False

    @classmethod
    def of(cls, loss: str | PerSample | Loss) -> Loss:
        """A built-in by name, or a callable returning losses of shape (batch,)."""
        if isinstance(loss, Loss):
            return loss
        if isinstance(loss, str):
            if loss not in _BUILT_IN:
                raise UnknownName("loss", loss, _BUILT_IN, "or pass a callable(output, target) -> (batch,)")
            return _BUILT_IN[loss]
        return cls(getattr(loss, "__name__", type(loss).__name__), loss)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Losses (batch,). Raises DataError where the shape is another."""
        losses = self.per_sample(output, target)
        if not isinstance(losses, Tensor) or losses.shape != output.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise DataError(
                f"loss {self.name!r} returned {got} for {len(output)} samples; it must return one loss a sample, "
                f"shape ({len(output)},): use reduction='none' and average what is left"
            )
        return losses

    def seed(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each loss by the output, as direction and length.

        Returns:
            unit (batch, ...): unit-norm gradients in the output's dtype (zero where the gradient is zero).
            log_norm (batch,) float64: ln of their norms (-inf where zero).
        """
        if self.labels:
            return _cross_entropy_seed(output, target)
        leaf, losses = self._at(output, target)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(losses.sum(), leaf)
        flat = _rows(grad.double())
        norm = flat.norm(dim=1)
        unit = flat / norm.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
        return unit.view_as(grad).to(output.dtype), norm.log()

    def columns(self, output: Tensor, target: Tensor) -> Tensor:
        """Factor B of the Hessian of each loss by the output: sum_c B_c B_c^T = d2 loss / d output2.

        Returns:
            (columns, batch, ...) in the output's dtype.

        Raises:
            Undefined: the loss is not convex in the output, or the output is too large.
        """
        if self.labels:
            return _cross_entropy_columns(output).to(output.dtype)
        size = output[0].numel()
        if size > _MAX_COLUMNS:
            raise Undefined(f"a Gauss-Newton factor of {size} columns is too large (limit {_MAX_COLUMNS})")
        leaf, losses = self._at(output, target)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
            rows = [self._row(g, leaf) for g in _rows(grad).unbind(1)]
        hessian = torch.stack(rows, 1).double()  # (batch, size, size): a sample's loss depends on its output alone
        values, vectors = torch.linalg.eigh(hessian)
        rounding = _ROUNDING.get(leaf.dtype, _ROUNDING_DEFAULT)
        if bool((values < -rounding * values.abs().amax(1, keepdim=True).clamp_min(1e-300)).any()):
            raise Undefined(f"loss {self.name!r} is not convex in the output: it has no Gauss-Newton matrix")
        factor = vectors * values.clamp_min(0).sqrt().unsqueeze(1)  # (batch, size, columns)
        columns: Tensor = factor.permute(2, 0, 1).reshape(size, *output.shape).to(output.dtype)
        return columns

    def _at(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A leaf at the output, and the losses there: float64 for the built-in ones, whose constants have no dtype."""
        built_in = _BUILT_IN.get(self.name) is self
        leaf = (output.detach().double() if built_in else _accurate(output.detach())).requires_grad_()
        with torch.enable_grad():
            losses = self(leaf, target)
        if not losses.requires_grad:
            raise Undefined(f"loss {self.name!r} has no gradient with respect to the output")
        return leaf, losses

    @staticmethod
    def _row(gradient: Tensor, leaf: Tensor) -> Tensor:
        """d gradient_j / d output of each sample, (batch, size)."""
        if not gradient.requires_grad:  # the loss is linear in the output
            return torch.zeros_like(_rows(leaf))
        (row,) = torch.autograd.grad(gradient.sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True)
        return _rows(row)

    def check_targets(self, target: Tensor, output: Tensor, indices: Tensor) -> None:
        """Refuse targets that do not fit the output, before a kernel does it with an assertion.

        Args:
            target: of any number of samples, `indices` their places in the data.
            output: logits of at least one sample.

        Raises:
            DataError: naming the sample, its label and the class count.
        """
        if _BUILT_IN.get(self.name) is not self:
            return
        got, one = tuple(target.shape[1:]), tuple(output.shape[1:])
        if self.name in ("mse", "binary_cross_entropy"):
            if got != one:
                raise DataError(
                    f"got an output of shape {one} and a target of shape {got} a sample; {self.name} needs equal "
                    "shapes (they would broadcast in silence): reshape the targets"
                )
            return
        if self.labels and len(one) != 1:
            raise DataError(
                f"got an output of shape {one} a sample; cross_entropy needs logits (classes,): "
                "for sequences use loss='token_cross_entropy' or loss='causal_lm'"
            )
        if not self.labels and len(one) != 2:
            raise DataError(f"got an output of shape {one} a sample; {self.name} needs logits (tokens, classes)")
        if target.is_floating_point() or target.dtype == torch.bool or got != one[:-1]:
            kind = "(samples,)" if self.labels else f"(samples, {one[0]})"
            raise DataError(
                f"got labels of dtype {target.dtype} and shape {tuple(target.shape)}; {self.name} needs class "
                f"indices, int64 of shape {kind}: for soft labels pass a callable loss"
            )
        classes = output.shape[-1]
        bad = (target < 0) | (target >= classes)
        if not self.labels:
            bad &= target != _IGNORED
            counted = target[:, 1:] if self.name == "causal_lm" else target
            empty = (counted == _IGNORED).all(1).nonzero()
            if len(empty):
                raise DataError(
                    f"every target of sample {int(indices[int(empty[0])])} is ignored ({_IGNORED}); "
                    "its loss would be 0 / 0: leave it out"
                )
        found = bad.nonzero()
        if len(found):
            raise DataError(
                f"label {int(target[tuple(found[0])])} of sample {int(indices[int(found[0, 0])])} is out of range: "
                f"the network has {classes} classes, 0 to {classes - 1}"
            )


def _cross_entropy_seed(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    log_p = output.detach().double().log_softmax(1)
    others = log_p.scatter(1, target.unsqueeze(1), -torch.inf)
    log_rest = others.logsumexp(1)  # ln(1 - p_y) without cancellation
    error = (others - log_rest.unsqueeze(1)).exp().scatter(1, target.unsqueeze(1), -1.0)
    norm = error.norm(dim=1)
    return (error / norm.unsqueeze(1)).to(output.dtype), log_rest + norm.log()


def _cross_entropy_columns(output: Tensor) -> Tensor:
    """sqrt(p_c) (e_c - p), c = 1..C: their outer products sum to diag(p) - p p^T. (C, batch, C) float64."""
    log_p = output.detach().double().log_softmax(1)
    classes = output.shape[1]
    eye = torch.eye(classes, dtype=torch.bool, device=output.device)
    others = log_p.unsqueeze(0).expand(classes, -1, -1).masked_fill(eye.unsqueeze(1), -torch.inf)
    rest = others.logsumexp(2).exp()  # (C, batch): 1 - p_c without cancellation
    columns = -log_p.exp().unsqueeze(0).expand(classes, -1, -1)
    columns = torch.where(eye.unsqueeze(1), rest.unsqueeze(2), columns)
    return columns * (0.5 * log_p.T).exp().unsqueeze(2)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(_accurate(output), target, reduction="none")


def _mse(output: Tensor, target: Tensor) -> Tensor:
    return _rows((_accurate(output) - target).square()).mean(1)


def _binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    out = _accurate(output)
    return _rows(F.binary_cross_entropy_with_logits(out, target.to(out), reduction="none")).mean(1)


def _token_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(_accurate(output).transpose(1, 2), target, reduction="none", ignore_index=_IGNORED)
    return losses.sum(1) / (target != _IGNORED).sum(1)


def _causal_lm(output: Tensor, target: Tensor) -> Tensor:
    return _token_cross_entropy(output[:, :-1], target[:, 1:])


def _rows(t: Tensor) -> Tensor:
    return t.reshape(len(t), -1)  # outputs may be (batch,)


def _accurate(output: Tensor) -> Tensor:
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


_BUILT_IN = {
    "cross_entropy": Loss("cross_entropy", _cross_entropy, labels=True),
    "mse": Loss("mse", _mse),
    "binary_cross_entropy": Loss("binary_cross_entropy", _binary_cross_entropy),
    "token_cross_entropy": Loss("token_cross_entropy", _token_cross_entropy),
    "causal_lm": Loss("causal_lm", _causal_lm),
}
