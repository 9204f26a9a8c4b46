"""N17's VGG variant: pairs of 3x3 convolutions of 64, 128, 256 and 512 channels, then 512 and the classes.

The text asks for a 2x2 max-pool after each of the four stacks and then a 4x4 average pool; a 32x32 image has
only 2x2 left by then. We keep the four max-pools and average over what is left; the parameters are the same
either way.
"""

from __future__ import annotations

from torch import nn

from flatminima.models.layers import activation_layer, check_positive, check_rate, initialise, norm_layer

_WIDTHS = (64, 128, 256, 512)
_CONVOLUTIONS = 2  # in each stack


def vgg(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: float = 0.0,
    norm: str = "batch",
    activation: str = "relu",
) -> nn.Sequential:
    """Four stacks of two 3x3 convolutions (norm before activation), each pooled; returns logits.

    Args:
        classes: number of logits. channels: of the images, whose sides are at least 16.
        dropout: rate in [0, 1) after each stack. The paper has dropout but not its rate; the default leaves
            it off, since its minima interpolate.
        norm: "batch" (the paper's), "group" or "none" (convolutions then have biases).
        activation: see `mlp`.

    Returns:
        A Sequential with He et al.'s initial weights, from the global random state.

    Raises:
        ModelError: an option out of range. UnknownName: no such norm or activation.

    Source: N17 appendix (networks).
    """
    check_positive(classes=classes, channels=channels)
    check_rate(dropout)
    layers: list[nn.Module] = []
    previous = channels
    for width in _WIDTHS:
        for _ in range(_CONVOLUTIONS):
            layers += [
                nn.Conv2d(previous, width, 3, padding=1, bias=norm == "none"),
                norm_layer(norm, width),
                activation_layer(activation),
            ]
            previous = width
        layers.append(nn.MaxPool2d(2))
        if dropout:
            layers.append(nn.Dropout(dropout))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(previous, 512), activation_layer(activation), nn.Linear(512, classes)]
    model = nn.Sequential(*layers)
    initialise(model)
    return model
