"""The choices that the convolutional networks share: normalisation, activation, initial weights."""

from __future__ import annotations

import math

from torch import nn

from flatminima.errors import ModelError, UnknownName

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
_NORMS = ("batch", "group", "none")
_GROUPS = 8  # divides every width but DenseNet's, which take the largest divisor of 8 that fits


def activation_layer(name: str) -> nn.Module:
    """A fresh module of the named activation ("relu", "gelu", "tanh", ...)."""
    if name not in _ACTIVATIONS:
        raise UnknownName("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]()


def norm_layer(name: str, channels: int) -> nn.Module:
    """A fresh normalisation of `channels` channels: "batch", "group" (8 groups, or 4, 2, 1 as fits) or
    "none".

    Group norm treats each sample alone, so per-sample gradients are well defined in train mode as well; it
    has as many parameters as batch norm.
    """
    if name not in _NORMS:
        raise UnknownName("norm", name, _NORMS)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels) if name == "group" else nn.Identity()


def initialise(model: nn.Module) -> None:
    """He et al.'s initial weights, in place, from torch's global random state.

    Convolutions: normal with variance 2 / (kernel area * output channels). Linear layers keep torch's default
    (uniform within 1/sqrt(fan in)), normalisations theirs (1 and 0); biases of convolutions become 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_positive(**values: float) -> None:
    """Raise ModelError for the first of the named numbers that is not positive."""
    for name, value in values.items():
        if value <= 0:
            raise ModelError(f"{name}={value}: must be positive")


def check_rate(dropout: float) -> None:
    """Raise ModelError for a dropout rate outside [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ModelError(f"dropout={dropout}: the rate is in [0, 1)")
