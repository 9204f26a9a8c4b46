"""Pre-activation residual networks for small images (He et al. 2016, "Identity mappings"): J20's ResNet-20.

A block whose shape changes projects its *activated* input by a 1x1 convolution; the others add their raw
input. With projections ResNet-20 has 272,282 parameters (the parameter-free shortcuts of He et al. 2015 give
269,722).
"""

from __future__ import annotations

from torch import Tensor, nn

from flatminima.errors import ModelError
from flatminima.models.layers import activation_layer, check_positive, check_rate, initialise, norm_layer

_STAGES = 3  # 32x32, 16x16, 8x8 for CIFAR images
_STEM_WIDTH = 16


class PreActivationBlock(nn.Module):
    """Norm, activation, 3x3, norm, activation, (dropout,) 3x3, and a shortcut around them."""

    def __init__(self, channels: int, width: int, stride: int, *, norm: str, activation: str, dropout: float) -> None:
        super().__init__()
        bias = norm == "none"  # a norm's own shift makes the convolution's bias redundant
        self.norm1 = norm_layer(norm, channels)
        self.act1 = activation_layer(activation)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, width)
        self.act2 = activation_layer(activation)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.shortcut = (
            nn.Conv2d(channels, width, 1, stride=stride, bias=False) if stride != 1 or channels != width else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, width, h / stride, w / stride)."""
        activated = self.act1(self.norm1(x))
        out: Tensor = self.conv2(self.drop(self.act2(self.norm2(self.conv1(activated)))))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + out


class PreActivationNet(nn.Module):
    """Stem, three stages of pre-activation blocks, norm, activation, average pool, linear.

    Args:
        blocks: residual blocks a stage, at least 1. width: multiple of 16, 32, 64 channels.
        classes, channels: of the logits and of the images. norm, activation, dropout: see `resnet20`.
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        *,
        classes: int,
        channels: int,
        norm: str,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        check_positive(blocks=blocks, width=width, classes=classes, channels=channels)
        check_rate(dropout)
        self.stem = nn.Conv2d(channels, _STEM_WIDTH, 3, padding=1, bias=norm == "none")
        previous, body = _STEM_WIDTH, []
        for stage in range(_STAGES):
            current = _STEM_WIDTH * width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                body.append(
                    PreActivationBlock(previous, current, stride, norm=norm, activation=activation, dropout=dropout)
                )
                previous = current
        self.body = nn.Sequential(*body)
        self.norm = norm_layer(norm, previous)
        self.act = activation_layer(activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, classes)
        initialise(self)
        if norm == "none":
            # without a norm each block doubles the variance: scale the branch so that the sum over blocks is
            # O(1)
            for residual in body:
                residual.conv2.weight.data /= len(body) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, h, w), sides a multiple of 4, to logits (n, classes)."""
        logits: Tensor = self.fc(self.flatten(self.pool(self.act(self.norm(self.body(self.stem(x)))))))
        return logits


def resnet20(
    *,
    classes: int = 10,
    channels: int = 3,
    depth: int = 20,
    norm: str = "batch",
    activation: str = "relu",
) -> PreActivationNet:
    """Pre-activation ResNet of depth 6 b + 2, 16-32-64 channels; returns logits.

    Args:
        classes: number of logits. channels: of the images.
        depth: 8, 14, 20, 26, ...: counts the stem, the blocks' convolutions and the linear layer.
        norm: "batch", "group" (8 groups of channels), or "none" (convolutions then have biases, and the last
            convolution of each block starts divided by the square root of the number of blocks).
        activation: see `mlp`. A smooth one makes finite differences of gradients meaningful.

    Returns:
        A network with He et al.'s initial weights, from the global random state.

    Raises:
        ModelError: a depth that is not 6 b + 2. UnknownName: no such norm or activation.

    Source: He et al. 2016; J20 section 7. The count is checked by hand in the tests.

    Examples:
        >>> sum(p.numel() for p in resnet20().parameters())
        272282
    """
    if depth < 8 or (depth - 2) % 6:
        raise ModelError(f"depth={depth}: a ResNet of basic blocks has depth 6 b + 2: 8, 14, 20, 26, 32, ...")
    return PreActivationNet(
        (depth - 2) // 6,
        1,
        classes=classes,
        channels=channels,
        norm=norm,
        activation=activation,
        dropout=0.0,
    )
