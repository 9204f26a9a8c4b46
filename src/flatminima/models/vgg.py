"""N17's VGG variant: pairs of 3x3 convolutions of 64, 128, 256 and 512 channels, then 512 and the classes.

The text asks for a 2x2 max-pool after each of the four stacks and then a 4x4 average pool; a 32x32 image has
only 2x2 left by then. We keep the four max-pools and average over what is left; the parameters are the same
either way.
"""

from __future__ import annotations

from torch import nn

from flatminima.models.layers import activation_layer, check_positive, check_rate, initialise, norm_layer

_MULTIPLES = (1, 2, 4, 8)
_CONVOLUTIONS = 2  # in each stack


def vgg(
    *,
    width: int = 64,
    classes: int = 10,
    channels: int = 3,
    dropout: float = 0.0,
    norm: str = "batch",
    activation: str = "relu",
) -> nn.Sequential:
    """Four stacks of two 3x3 convolutions (norm before activation), each pooled; returns logits.

    Args:
        width: channels of the first stack, 64 in the paper; the others have 2, 4 and 8 times as many.
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
    check_positive(width=width, classes=classes, channels=channels)
    check_rate(dropout)
    layers: list[nn.Module] = []
    previous = channels
    for multiple in _MULTIPLES:
        for _ in range(_CONVOLUTIONS):
            wide = multiple * width
            layers += [
                nn.Conv2d(previous, wide, 3, padding=1, bias=norm == "none"),
                norm_layer(norm, wide),
                activation_layer(activation),
            ]
            previous = wide
        layers.append(nn.MaxPool2d(2))
        if dropout:
            layers.append(nn.Dropout(dropout))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(previous, previous), activation_layer(activation), nn.Linear(previous, classes)]
    model = nn.Sequential(*layers)
    initialise(model)
    return model
