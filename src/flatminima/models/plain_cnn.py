"""A plain CNN of six weight layers and no shortcuts: four 3x3 convolutions with batch norm, two linear layers.

J20's plain CNN is another one, `six_layer_cnn`; this one has the committed runs of jia-regularizer.
"""

from __future__ import annotations

from torch import nn

from flatminima.errors import ModelError
from flatminima.models.layers import activation_layer, check_positive, check_rate, initialise, norm_layer


def plain_cnn(
    *,
    classes: int = 10,
    channels: int = 3,
    image_size: int = 32,
    width: int = 64,
    dropout: float = 0.0,
    norm: str = "batch",
    activation: str = "relu",
) -> nn.Sequential:
    """Two stacks of two 3x3 convolutions, each pooled, then two linear layers; returns logits.

    Args:
        classes: number of logits. channels: of the images.
        image_size: side of the square images, at least 4.
        width: channels of the first stack; the second has twice as many, the hidden linear layer four times.
        dropout: rate in [0, 1) before each linear layer.
        norm: "batch", "group" or "none" (convolutions then have biases). activation: see `mlp`.

    Returns:
        A Sequential with He et al.'s initial weights, from the global random state.

    Raises:
        ModelError: an option out of range. UnknownName: no such norm or activation.

    Source: ours; J20's is `six_layer_cnn`.
    """
    check_positive(classes=classes, channels=channels, width=width)
    check_rate(dropout)
    if image_size < 4:
        raise ModelError(f"image_size={image_size}: two 2x2 pools need at least 4")
    layers: list[nn.Module] = []
    previous = channels
    for stack in (width, 2 * width):
        for _ in range(2):
            layers += [
                nn.Conv2d(previous, stack, 3, padding=1, bias=norm == "none"),
                norm_layer(norm, stack),
                activation_layer(activation),
            ]
            previous = stack
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for fan_in, fan_out in ((previous * (image_size // 4) ** 2, 4 * width), (4 * width, classes)):
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers += [nn.Linear(fan_in, fan_out), activation_layer(activation)]
    model = nn.Sequential(*layers[:-1])  # no activation on the logits
    initialise(model)
    return model
