"""Wide residual networks WRN-d-k (Zagoruyko & Komodakis 2016): W1's WRN-58-3 and J20's WRN-28-2-B(3,3).

The same pre-activation blocks as ResNet-20, k times wider. Depth counts the projections as well: d = 6 b + 4,
so WRN-22-1 is ResNet-20.
"""

from __future__ import annotations

from flatminima.errors import ModelError
from flatminima.models.resnet import PreActivationNet


def wide_resnet(
    depth: int = 28,
    width: int = 2,
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: float = 0.0,
    norm: str = "batch",
    activation: str = "relu",
) -> PreActivationNet:
    """WRN-depth-width with basic 3x3, 3x3 blocks; returns logits.

    Args:
        depth: 10, 16, 22, 28, ..., 58: 6 b + 4 for b blocks a stage.
        width: multiple of 16, 32, 64 channels, at least 1.
        classes: number of logits. channels: of the images.
        dropout: rate in [0, 1) between the two convolutions of each block; W1 compares 0.1, 0.3 and 0.5.
        norm, activation: as `resnet20`.

    Returns:
        A network with He et al.'s initial weights, from the global random state.

    Raises:
        ModelError: a depth that is not 6 b + 4, or an option out of range.

    Source: Zagoruyko & Komodakis, table 1. 1,467,610 parameters for WRN-28-2 on 10 classes.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ModelError(f"depth={depth}: a wide ResNet has depth 6 b + 4: 10, 16, 22, 28, ..., 58")
    return PreActivationNet(
        (depth - 4) // 6,
        width,
        classes=classes,
        channels=channels,
        norm=norm,
        activation=activation,
        dropout=dropout,
    )
