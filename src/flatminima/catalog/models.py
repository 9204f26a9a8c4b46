"""The papers' networks, a row each."""

from __future__ import annotations

from flatminima.catalog.papers import J20, N17, PEREZ_ORTIZ_2021, W1
from flatminima.catalog.rows import Model

_ROWS = (
    Model("densenet", "densenet", "DenseNet-BC of growth 12 and depth 100", J20),
    Model("mlp", "mlp", "multi-layer perceptron of any widths", N17),
    Model("mnist_cnn", "mnist_cnn", "PyTorch's MNIST example of 2018, 21,840 parameters", W1),
    Model("mnist_cnn4", "perez_ortiz", "CNN of four layers for MNIST", PEREZ_ORTIZ_2021),
    Model("mnist_fcn", "perez_ortiz", "fully connected network of four layers for MNIST", PEREZ_ORTIZ_2021),
    Model("plain_cnn", "plain_cnn", "four 3x3 convolutions with batch norm, two linear layers", None),
    Model("random_features", "random_features", "random convolutional features under a linear layer", None),
    Model("resnet20", "resnet", "pre-activation ResNet for small images", J20),
    Model("six_layer_cnn", "six_layer_cnn", "plain CNN of the appendix: six 3x3 convolutions", J20),
    Model("small_cnn", "small_cnn", "two 5x5 convolutions and two linear layers", None),
    Model("vgg", "vgg", "four pairs of 3x3 convolutions, then 512 and the classes", N17),
    Model("wide_resnet", "wrn", "wide residual network WRN-d-k", W1),
)

NETWORKS: dict[str, Model] = {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}
