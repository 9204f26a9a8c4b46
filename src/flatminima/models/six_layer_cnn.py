"""J20's plain CNN as its appendix E spells it: six 3x3 convolutions, two pools, global average pooling.

`plain_cnn`, which the committed runs of jia-regularizer have, was made before the appendix was at hand and is another
network: four convolutions with batch norm and a hidden linear layer with most of its weights.
"""

from __future__ import annotations

from torch import nn

from flatminima.errors import ModelError
from flatminima.models.layers import activation_layer, check_positive, initialise

_STACKS = (1.0, 2.0, 3.0)  # channels of a stack of two convolutions, in widths: 64, 128, 192


def six_layer_cnn(
    *, classes: int = 10, channels: int = 3, image_size: int = 32, width: int = 64, activation: str = "relu"
) -> nn.Sequential:
    """Convolutions of 64, 64, 128, 128, 192, 192 filters, 2x2 max pools after the second and the fourth; logits.

    Args:
        classes: number of logits. channels: of the images. image_size: their side, at least 4.
        width: filters of the first stack; the second has twice, the third three times as many.
        activation: see `mlp`.

    Returns:
        A Sequential with He et al.'s initial weights, from the global random state: convolutions with biases, no norm.

    Raises:
        ModelError: an option out of range. UnknownName: no such activation.

    Source: J20, appendix E.
    """
    check_positive(classes=classes, channels=channels, width=width)
    if image_size < 4:
        raise ModelError(f"image_size={image_size}: two 2x2 pools need at least 4")
    layers: list[nn.Module] = []
    previous = channels
    for index, factor in enumerate(_STACKS):
        filters = int(factor * width)
        for _ in range(2):
            layers += [nn.Conv2d(previous, filters, 3, padding=1), activation_layer(activation)]
            previous = filters
        layers.append(nn.MaxPool2d(2) if index < len(_STACKS) - 1 else nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(previous, classes))
    initialise(model)
    return model
