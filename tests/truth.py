"""What the statistics must be, from the definition: one sample at a time, one backward pass a row, float64.

Losses are written out again here, and nothing of the library's layer rules, batching or seeds is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

from case_networks import Case


def pick(inputs: Any, i: int) -> Any:
    """Sample i alone, as a batch of one; a copy, since the network may write into it."""
    if isinstance(inputs, dict):
        return {k: pick(v, i) for k, v in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(pick(v, i) for v in inputs)
    return inputs[i : i + 1].clone()


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Logits."""
    if isinstance(inputs, dict):
        out = model(**inputs)
    elif isinstance(inputs, tuple):
        out = model(*inputs)
    else:
        out = model(inputs)
    if isinstance(out, dict):
        out = out["logits"]
    logits: Tensor = getattr(out, "logits", out)
    return logits


def one_loss(loss: str | Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
    """The loss of a batch of one, a scalar."""
    if callable(loss):
        return loss(output, target).sum()
    if loss == "cross_entropy":
        return output[0].logsumexp(0) - output[0, target[0]]
    if loss == "mse":
        return ((output - target) ** 2).mean()
    if loss == "binary_cross_entropy":
        p = output.sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    if loss == "causal_lm":
        output, target = output[:, :-1], target[:, 1:]
    rows = [output[0, t].logsumexp(0) - output[0, t, y] for t, y in enumerate(target[0].tolist()) if y != -100]
    return torch.stack(rows).mean()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def flat(grads: Any, parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(grads, parameters, strict=True)]
    )


def rows_of(vector: Tensor, parameters: list[nn.Parameter], keep: bool = False) -> Tensor:
    """d vector / d w, one backward pass a row."""
    rows = []
    for v in vector.reshape(-1):
        if not v.requires_grad:
            rows.append(torch.zeros(sum(p.numel() for p in parameters), dtype=v.dtype))
            continue
        grads = torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True, create_graph=keep)
        rows.append(flat(grads, parameters))
    return torch.stack(rows)


class Truth:
    """Explicit per-sample gradients and second derivatives of a case."""

    def __init__(self, case: Case) -> None:
        self.model, (self.inputs, self.targets) = case.make()
        self.loss, self.parameters = case.loss, trainable(self.model)

    def losses(self) -> list[Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            outputs = [call(self.model, pick(self.inputs, i)) for i in range(len(self.targets))]
            return [one_loss(self.loss, o, self.targets[i : i + 1]) for i, o in enumerate(outputs)]

    def gradients(self) -> Tensor:
        """(n, W)."""
        with sdpa_kernel(SDPBackend.MATH):
            return rows_of(torch.stack(self.losses()), self.parameters)

    def hessian(self) -> Tensor:
        """Of the mean loss, (W, W)."""
        with sdpa_kernel(SDPBackend.MATH):
            mean = torch.stack(self.losses()).mean()
            (gradient,) = rows_of(mean.reshape(1), self.parameters, keep=True)
            return rows_of(gradient, self.parameters)

    def gauss_newton(self) -> Tensor:
        """(1/n) sum J^T H J, (W, W), H the second derivative of the loss by the output."""
        total = torch.zeros(())
        for i in range(len(self.targets)):
            output = call(self.model, pick(self.inputs, i))
            jacobian = rows_of(output, self.parameters)
            target = self.targets[i : i + 1]
            curvature = hessian(lambda o, t=target: one_loss(self.loss, o, t), output.detach())
            total = total + jacobian.T @ curvature.reshape(len(jacobian), -1) @ jacobian
        return total / len(self.targets)

    def softmax_jacobian_norms(self) -> Tensor:
        """||d softmax / d x||_2 of each sample, (n,)."""
        norms = []
        for i in range(len(self.targets)):
            leaves = {"x": pick(self.inputs, i)}
            parts = leaves["x"] if isinstance(leaves["x"], tuple) else (leaves["x"],)
            parts = tuple(p.requires_grad_() for p in parts)
            probabilities = call(self.model, parts if len(parts) > 1 else parts[0].clone()).softmax(1)[0]
            rows = [torch.autograd.grad(p, parts, retain_graph=True) for p in probabilities]
            matrix = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
            norms.append(torch.linalg.svdvals(matrix)[0])
        return torch.stack(norms)
