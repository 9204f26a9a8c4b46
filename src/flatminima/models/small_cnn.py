"""A small CNN for MNIST that trains in minutes on one core: two 5x5 convolutions and two linear layers."""

from __future__ import annotations

from torch import nn

from flatminima.errors import ModelError
from flatminima.models.layers import check_positive, check_rate, norm_layer


def small_cnn(
    *,
    classes: int = 10,
    channels: int = 1,
    image_size: int = 28,
    width: int = 16,
    hidden: int = 128,
    dropout: float = 0.0,
    norm: str = "none",
) -> nn.Sequential:
    """conv 5x5 to `width`, pool, ReLU, conv 5x5 to twice as many, pool, ReLU, to `hidden`, ReLU, to the classes.

    Convolutions pad to keep the size; pooling before ReLU is the same function and cheaper.

    Args:
        classes: number of logits. channels: of the images. image_size: side of the square images, at least 4.
        width: channels of the first convolution. hidden: units of the first linear layer.
        dropout: rate in [0, 1) before each linear layer, for training a prior.
        norm: after each convolution, "batch", "group" or "none".

    Raises:
        ModelError: an option out of range. UnknownName: no such norm.

    Examples:
        >>> sum(p.numel() for p in small_cnn().parameters())  # 416 + 12832 + 200832 + 1290
        215370
    """
    check_positive(classes=classes, channels=channels, width=width, hidden=hidden)
    check_rate(dropout)
    if image_size < 4:
        raise ModelError(f"image_size={image_size}: two 2x2 pools need at least 4")
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((channels, width), (width, 2 * width)):
        layers += [nn.Conv2d(fan_in, fan_out, 5, padding=2), norm_layer(norm, fan_out), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * (image_size // 4) ** 2, hidden), nn.ReLU()]
    layers += [nn.Dropout(dropout), nn.Linear(hidden, classes)]
    idle = (nn.Identity, *(() if dropout else (nn.Dropout,)))
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, idle)))
