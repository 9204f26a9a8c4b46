"""A network's logits, whatever it returns them in, the labels its error is counted by, and its last linear layer.

Where only the last layer is random, its inputs are computed once and not once a draw. An isotropic prior looks alike in
every basis, so the posterior may take the basis in which it is cheapest: the eigenvectors of the bound samples' second
moment. Along directions in which the features hardly vary, the posterior stays at the prior's sigma and costs nothing.
The basis may depend on the samples, as all of Q may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import progress
from flatminima.certification.division.reading import plain_samples
from flatminima.core.admission import unfit
from flatminima.core.gradient_check import out_of_memory
from flatminima.core.guard import evaluating, same_randomness
from flatminima.core.losses import Loss
from flatminima.core.output import logits
from flatminima.core.samples import Inputs, Samples, call, leaves, map_tensors
from flatminima.errors import DataError, FlatMinimaError, ModelError, UsageError

_IGNORED = -100  # torch's ignore_index


class Logits(nn.Module):
    """A network that returns a tensor of logits and leaves its inputs as they are.

    Args:
        network: that returns them in an object, a dictionary or a tuple.
        which: entry of what it returns, as for `Minimum`.
    """

    def __init__(self, network: nn.Module, which: Any = None) -> None:
        super().__init__()
        self.network, self.which = network, which

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = map_tensors(torch.clone, args), map_tensors(torch.clone, kwargs)
        return plain_samples(logits(self.network(*args, **kwargs), self.which))

    @classmethod
    @torch.no_grad()
    def needed(cls, network: nn.Module, x: Any, which: Any = None) -> nn.Module:
        """The network itself where it returns a tensor for `x` and does not write into it, else wrapped.

        Names of weights stay short so.

        Raises:
            DataError: it cannot take `x`.
        """
        with same_randomness(), evaluating(network):
            own = map_tensors(torch.clone, x)
            before = _versions(own)
            try:
                output = network(own)
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
                if isinstance(error, FlatMinimaError) or out_of_memory(error):
                    raise
                raise unfit(x if not isinstance(network, Packed) else network.packing.unpack(x), error) from error
        plain = which is None and type(output) is Tensor and _versions(own) == before
        return network if plain else cls(network, which)


@torch.no_grad()
def writes(network: nn.Module, x: Inputs) -> bool:
    """Whether a forward pass writes into its inputs; these stay as they are. Unknown is True."""
    own = map_tensors(torch.clone, x)
    before = _versions(own)
    network(own)
    return not before or _versions(own) != before


def _versions(inputs: Inputs) -> list[int]:
    """Counts of writes into each tensor; none of those made in inference mode, which are not counted."""
    return [t._version for t in leaves(inputs) if not t.is_inference()]


@dataclass(frozen=True)
class Packing:
    """Layout of inputs that are several tensors, or integers, side by side in rows of float64.

    Attributes:
        like: the inputs of one sample: a tensor, or a mapping or tuple of them.
    """

    like: Inputs

    @classmethod
    def of(cls, samples: Samples) -> Packing | None:
        """None where the inputs are one floating-point tensor, which is used as it is."""
        inputs = samples.take(torch.tensor([0]))[0]
        return None if isinstance(inputs, Tensor) and inputs.is_floating_point() else cls(inputs)

    def pack(self, inputs: Inputs) -> Tensor:
        """Rows (k, d) float64 of k inputs.

        Raises:
            DataError: complex numbers.
        """
        parts = leaves(inputs)
        if any(t.is_complex() for t in parts):
            raise DataError("got complex inputs; a certificate of a recipe needs real numbers")
        return torch.cat([t.reshape(len(t), -1).double().cpu() for t in parts], 1)

    def unpack(self, rows: Tensor) -> Inputs:
        """The inputs (k, ...) of k rows, in their own dtypes."""
        parts = iter(rows.split([t[0].numel() for t in leaves(self.like)], 1))
        return map_tensors(lambda t: next(parts).reshape(len(rows), *t.shape[1:]).to(t.dtype), self.like)


class Packed(nn.Module):
    """A network over packed rows.

    Args:
        network: that takes the inputs as they are (see `core.samples.call`).
    """

    def __init__(self, network: nn.Module, packing: Packing) -> None:
        super().__init__()
        self.network, self.packing = network, packing

    def forward(self, rows: Tensor) -> Any:
        return call(self.network, self.packing.unpack(rows))


def two_class(output: Tensor) -> Tensor:
    """Logits (batch, classes): one logit z a sample is that of the second of two classes, (0, z)."""
    output = plain_samples(output)
    if output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1):
        z = output.reshape(-1)
        return torch.stack([torch.zeros_like(z), z], 1)
    return output


def class_count(output: Tensor, samples: int) -> int:
    """Classes that the logits of so many samples tell apart.

    Raises:
        ModelError: no logits (samples, classes), and not one a sample, in real floating-point numbers.
    """
    shape = tuple(output.shape)
    if not output.is_floating_point() or output.dim() not in (1, 2) or len(output) != samples or 0 in shape:
        raise ModelError(
            f"the network returned {str(output.dtype).removeprefix('torch.')} of shape {shape} for {samples} samples; "
            "expected real floating-point logits (samples, classes), or one a sample: return the scores of the "
            "classes themselves"
        )
    return two_class(output).shape[1]


def class_labels(targets: Tensor, output: Tensor, loss: Loss, start: int = 0) -> Tensor:
    """Class indices (batch,) of targets, checked against the network's output.

    Args:
        output: of these or other samples. loss: of the Minimum. start: number of the first sample, for the message.

    Raises:
        UsageError: no classifier. DataError: a label that is none of its classes.
    """
    output, targets = plain_samples(output), plain_samples(targets)
    one_logit = two_class(output) is not output
    classes = two_class(output).shape[-1]
    if output.dim() > 2 or (one_logit and loss.name != "binary_cross_entropy"):
        raise UsageError(
            f"got outputs of shape {tuple(output.shape[1:])} a sample with loss {loss.name!r}: a certificate is about "
            "the 0-1 error of a classifier, with logits (classes,) of at least two classes, or one logit and "
            "loss='binary_cross_entropy'"
        )
    labels = targets.reshape(len(targets)) if one_logit and targets.numel() == len(targets) else targets
    if labels.dim() != 1 or labels.is_complex() or (labels.is_floating_point() and not one_logit):
        raise UsageError(
            f"got targets of dtype {targets.dtype} and shape {tuple(targets.shape)} with loss {loss.name!r}: a "
            "certificate is about the 0-1 error, which needs one class index a sample"
        )
    whole = labels.long()
    if one_logit and not bool((whole == labels).all()):
        raise UsageError(f"got targets between 0 and 1 with loss {loss.name!r}: the 0-1 error needs labels 0 and 1")
    check_labels(whole, classes, start)
    return whole


def check_labels(labels: Tensor, classes: int, start: int = 0) -> None:
    """Refuse labels that are none of the network's classes.

    Raises:
        DataError: naming the sample.
    """
    bad = ((labels < 0) | (labels >= classes)).nonzero()
    if not len(bad):
        return
    place, label = int(bad[0]) + start, int(labels[bad[0]])
    if label == _IGNORED:
        raise DataError(
            f"sample {place} has the label {_IGNORED}, torch's mark for what a loss ignores: a certificate counts "
            "every sample; leave those out"
        )
    raise DataError(f"sample {place} has the label {label}; the network has {classes} classes, 0 to {classes - 1}")


_PROBE = 3


@dataclass(frozen=True)
class Head:
    """A network's last linear layer, and the basis that its inputs are rotated to.

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
            seen, _ = watched_outputs(model, self.name, x[start : start + batch_size])
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
            seen, output = watched_outputs(model, name, x[:_PROBE])
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


def watched_outputs(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
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
