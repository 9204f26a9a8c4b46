"""PyTorch's 2018 MNIST example network, the one behind W1 and W2's figures: 21,840 parameters.

The example trains with dropout and ends in log-softmax; W2 trains without dropout, and this returns logits.
Names and shapes of the weights are the example's, so its checkpoints load.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from flatminima.errors import ModelError
from flatminima.models.layers import check_positive, check_rate


def mnist_cnn(*, classes: int = 10, channels: int = 1, image_size: int = 28, dropout: float = 0.0) -> nn.Sequential:
    """conv 5x5 to 10, pool, ReLU, conv 5x5 to 20, pool, ReLU, fully connected to 50, ReLU, to the classes.

    Args:
        classes: number of logits.
        channels: of the images: 1 for MNIST, 3 for CIFAR-10.
        image_size: side of the square images, at least 16: 28 for MNIST, 32 for CIFAR-10.
        dropout: rate in [0, 1) after the second convolution (whole channels) and the first linear layer; 0.5
            in the example, 0 in the papers.

    Returns:
        A Sequential of named layers; weights as torch initialises them, from the global random state.

    Raises:
        ModelError: images too small, or an option out of range.

    Examples:
        >>> sum(p.numel() for p in mnist_cnn().parameters())  # 260 + 5020 + 16050 + 510
        21840
    """
    check_positive(classes=classes, channels=channels)
    check_rate(dropout)
    side = ((image_size - 4) // 2 - 4) // 2  # two valid 5x5 convolutions, each halved
    if side < 1:
        raise ModelError(f"image_size={image_size}: two 5x5 convolutions with pooling need at least 16")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, 10, 5)
    layers["pool1"] = nn.MaxPool2d(2)
    layers["relu1"] = nn.ReLU()
    layers["conv2"] = nn.Conv2d(10, 20, 5)
    if dropout:
        layers["drop2"] = nn.Dropout2d(dropout)
    layers["pool2"] = nn.MaxPool2d(2)
    layers["relu2"] = nn.ReLU()
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(20 * side * side, 50)
    layers["relu3"] = nn.ReLU()
    if dropout:
        layers["drop3"] = nn.Dropout(dropout)
    layers["fc2"] = nn.Linear(50, classes)
    return nn.Sequential(layers)
