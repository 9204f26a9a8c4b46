"""Random convolutional features under a linear layer: a network of which everything but the head may stay at its seed.

Features that no data has touched are the same in prior and posterior, so a data-free certificate pays for the linear
layer alone. Their length is one, which makes the scale of the head's weights mean the same for every image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from flatminima.errors import ModelError
from flatminima.models.layers import check_positive


class UnitLength(nn.Module):
    """Each sample's features divided by their Euclidean norm."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) to (n, ...), norm 1 a sample (0 stays 0)."""
        return normalize(x.flatten(1), dim=1).reshape(x.shape)


def random_features(
    *, classes: int = 10, channels: int = 1, image_size: int = 28, widths: tuple[int, int] = (32, 128)
) -> nn.Sequential:
    """Random 5x5 convolution, ReLU, mean-pool, another, mean-pool to 3x3, unit length, linear head; returns logits.

    Args:
        classes: number of logits. channels: of the images. image_size: side of the square images, at least 12.
        widths: channels of the two convolutions, which have no biases.

    Returns:
        A Sequential whose last layer is the linear head, without a bias and zero at the start. Convolutions are
        Gaussian from the global random state, of variance 2 / fan in, and are meant to be kept.

    Raises:
        ModelError: an option out of range.

    Source: ours; random features as in Rahimi & Recht (2008) and Coates & Ng (2012).

    Examples:
        >>> sum(p.numel() for p in random_features()[-1].parameters())  # 128 * 9 * 10
        11520
    """
    check_positive(classes=classes, channels=channels, **{f"widths[{i}]": w for i, w in enumerate(widths)})
    if image_size < 12:
        raise ModelError(f"image_size={image_size}: two poolings to 3x3 need at least 12")
    first, second = widths
    head = nn.Linear(9 * second, classes, bias=False)
    nn.init.zeros_(head.weight)
    convolutions = [nn.Conv2d(a, b, 5, padding=2, bias=False) for a, b in ((channels, first), (first, second))]
    with torch.no_grad():
        for layer in convolutions:
            layer.weight.normal_(0.0, math.sqrt(2.0 / layer.weight[0].numel()))
    pools = (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3))
    body = [part for layer, pool in zip(convolutions, pools, strict=True) for part in (layer, nn.ReLU(), pool)]
    return nn.Sequential(*body, nn.Flatten(), UnitLength(), head)
