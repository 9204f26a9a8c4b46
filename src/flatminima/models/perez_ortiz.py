"""The two MNIST networks that Perez-Ortiz et al. (2021) certify: a fully connected one and a 4-layer CNN."""

from __future__ import annotations

from torch import nn

from flatminima.errors import ModelError
from flatminima.models.layers import check_positive, check_rate


def mnist_fcn(*, classes: int = 10, inputs: int = 784, width: int = 600, dropout: float = 0.0) -> nn.Sequential:
    """Fully connected 784-600-600-600-10 with ReLU; returns logits.

    Args:
        classes: number of logits. inputs: features; images are flattened.
        width: units of each of the three hidden layers.
        dropout: rate in [0, 1) after each hidden layer, for training the prior; 0.2 in the paper's code.

    Raises:
        ModelError: an option out of range.

    Source: Perez-Ortiz et al. (2021), sec. 7.1.

    Examples:
        >>> sum(p.numel() for p in mnist_fcn().parameters())  # 785*600 + 2*601*600 + 601*10
        1198210
    """
    check_positive(classes=classes, inputs=inputs, width=width)
    check_rate(dropout)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (inputs, width, width):
        layers += [nn.Linear(fan_in, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(width, classes))


def mnist_cnn4(*, classes: int = 10, channels: int = 1, image_size: int = 28, dropout: float = 0.0) -> nn.Sequential:
    """conv 3x3 to 32, ReLU, conv 3x3 to 64, ReLU, 2x2 max-pool, fully connected to 128, ReLU, to the classes.

    Args:
        classes: number of logits. channels: of the images. image_size: side of the square images, at least 6.
        dropout: rate in [0, 1) after each hidden layer, for training the prior; 0.2 in the paper's code.

    Raises:
        ModelError: an option out of range.

    Source: Perez-Ortiz et al. (2021), sec. 7.1, after PyTorch's later MNIST example.

    Examples:
        >>> sum(p.numel() for p in mnist_cnn4().parameters())  # 320 + 18496 + 9217*128 + 1290
        1199882
    """
    check_positive(classes=classes, channels=channels)
    check_rate(dropout)
    if image_size < 6:
        raise ModelError(f"image_size={image_size}: two 3x3 convolutions and a pool need at least 6")
    side = (image_size - 4) // 2
    layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Dropout(dropout)]
    layers += [nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(64 * side * side, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, classes)]
    return nn.Sequential(*(layer for layer in layers if dropout or not isinstance(layer, nn.Dropout)))
