"""The last linear layer of a network whose other layers are frozen: its inputs are computed once, not once a draw.

An isotropic prior looks alike in every basis, so the posterior may take the basis in which it is cheapest: the
eigenvectors of the bound samples' second moment. Along directions in which the features hardly vary, the posterior
stays at the prior's sigma and costs nothing. The basis may depend on the samples, as all of Q may.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import progress
from flatminima.errors import ModelError

_PROBE = 3


@dataclass(frozen=True)
class Head:
    """Where a network's last linear layer is, and the basis that its inputs are turned to.

    Attributes:
        name: of the layer.
        basis: (features, features), orthogonal; None for the layer's own.
    """

    name: str
    basis: Tensor | None = None

    def turned(self, basis: Tensor) -> Head:
        """The same head in another basis."""
        return Head(self.name, basis)

    def layer(self, model: nn.Module) -> nn.Linear:
        """A new linear layer, equal to the model's head in this basis."""
        old = model.get_submodule(self.name)
        assert isinstance(old, nn.Linear)
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        new = new.to(old.weight.device, old.weight.dtype)
        with torch.no_grad():
            new.weight.copy_(turned(old.weight, self.basis))
            if old.bias is not None:
                new.bias.copy_(old.bias)
        return new

    @torch.no_grad()
    def features(self, model: nn.Module, x: Tensor, batch_size: int = 500, task: str = "features") -> Tensor:
        """Inputs of the head (n, features) in this basis; the model in eval mode."""
        parts = []
        for start in range(0, len(x), batch_size):
            seen, _ = watched(model, self.name, x[start : start + batch_size])
            parts.append(turned(seen, self.basis))
            progress.report(task, min(start + batch_size, len(x)), len(x))
        return torch.cat(parts)


def find_head(model: nn.Module, x: Tensor) -> str:
    """Name of the linear layer whose output is the network's.

    Args:
        model: in eval mode. x: some inputs, a few are used.

    Raises:
        ModelError: no linear layer comes last, or more follows it.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name]
    if linears:
        name: str = linears[-1]
        with torch.no_grad():
            seen, output = watched(model, name, x[:_PROBE])
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            if seen.dim() == 2 and torch.equal(F.linear(seen, layer.weight, layer.bias), output):
                return name
    raise ModelError("the network does not end in a linear layer; use layers='all' or name the layers that are random")


def principal_basis(features: Tensor) -> Tensor:
    """Eigenvectors (d, d) of the features' second moment, in float64 and back."""
    moment = features.double().T @ features.double()
    vectors: Tensor = torch.linalg.eigh(moment).eigenvectors
    return vectors.to(features)


def turned(rows: Tensor, basis: Tensor | None) -> Tensor:
    """Rows (n, d) in a basis (d, d), multiplied in float64."""
    return rows if basis is None else (rows.double() @ basis.double()).to(rows)


def watched(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input of a layer, and output of the network.

    Raises:
        ModelError: the layer runs never, or more than once.
    """
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        output: Tensor = model(x)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ModelError(f"layer {name} ran {len(seen)} times in a forward pass; a head runs once")
    return seen[0], output
