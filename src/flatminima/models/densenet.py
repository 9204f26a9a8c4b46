"""DenseNet-BC (Huang et al. 2017) for small images: J20's k = 12, depth 100, 769,162 parameters on 10
classes.

Every layer sees the concatenation of all before it in its block; 1x1 bottlenecks of 4k channels (the B) and
transitions that halve the channels (the C).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from flatminima.errors import ModelError
from flatminima.models.layers import activation_layer, check_positive, initialise, norm_layer

_BLOCKS = 3
_BOTTLENECK = 4  # times the growth rate


class DenseLayer(nn.Module):
    """Norm, activation, 1x1, norm, activation, 3x3; the input is passed on beside the new channels."""

    def __init__(self, channels: int, growth: int, *, norm: str, activation: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = norm_layer(norm, channels)
        self.act1 = activation_layer(activation)
        self.conv1 = nn.Conv2d(channels, _BOTTLENECK * growth, 1, bias=bias)
        self.norm2 = norm_layer(norm, _BOTTLENECK * growth)
        self.act2 = activation_layer(activation)
        self.conv2 = nn.Conv2d(_BOTTLENECK * growth, growth, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, channels + growth, h, w)."""
        out = self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))
        return torch.cat([x, out], dim=1)


def densenet(
    *,
    depth: int = 100,
    growth: int = 12,
    classes: int = 10,
    channels: int = 3,
    norm: str = "batch",
    activation: str = "relu",
) -> nn.Sequential:
    """DenseNet-BC of three dense blocks, compression 1/2; returns logits.

    Args:
        depth: 6 b + 4 for b layers a block: 10, 16, ..., 40, ..., 100.
        growth: channels that each layer adds, k in the paper.
        classes: number of logits. channels: of the images, whose sides are a multiple of 4.
        norm: "batch", "group" or "none" (convolutions then have biases).
        activation: see `mlp`.

    Returns:
        A Sequential with He et al.'s initial weights, from the global random state.

    Raises:
        ModelError: a depth that is not 6 b + 4. UnknownName: no such norm or activation.

    Source: Huang et al. 2017, section 3 and table 2 (0.8M parameters).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ModelError(f"depth={depth}: DenseNet-BC has depth 6 b + 4: 10, 16, 22, ..., 40, ..., 100")
    check_positive(growth=growth, classes=classes, channels=channels)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = 2 * growth
    layers["stem"] = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
    for block in range(_BLOCKS):
        for index in range((depth - 4) // 6):
            layers[f"block{block + 1}_layer{index + 1}"] = DenseLayer(width, growth, norm=norm, activation=activation)
            width += growth
        if block < _BLOCKS - 1:
            layers[f"norm{block + 1}"] = norm_layer(norm, width)
            layers[f"act{block + 1}"] = activation_layer(activation)
            layers[f"transition{block + 1}"] = nn.Conv2d(width, width // 2, 1, bias=norm == "none")
            layers[f"pool{block + 1}"] = nn.AvgPool2d(2)
            width //= 2
    layers["norm"] = norm_layer(norm, width)
    layers["act"] = activation_layer(activation)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(width, classes)
    model = nn.Sequential(layers)
    initialise(model)
    return model
