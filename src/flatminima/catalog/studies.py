"""The studies: id on the command line to the file of `flatminima/studies` that defines its STUDY."""

from __future__ import annotations

STUDY_FILES: dict[str, str] = {
    "cohen-edge": "cohen_edge",
    "jia-augmentation": "jia_augmentation",
    "jia-batch": "jia_batch",
    "jia-confusion": "jia_confusion",
    "jia-regularized-metric": "jia_regularized_metric",
    "jia-regularizer": "jia_regularizer",
    "minima-over-time": "minima_over_time",
    "neyshabur-conditions": "neyshabur_conditions",
    "neyshabur-confusion": "neyshabur_confusion",
    "neyshabur-random-labels": "neyshabur_random_labels",
    "neyshabur-width": "neyshabur_width",
    "wang-cifar-batch": "wang_cifar_batch",
    "wang-cifar-lr": "wang_cifar_lr",
    "wang-mnist-batch": "wang_mnist_batch",
    "wang-mnist-lr": "wang_mnist_lr",
    "wang-pertopt": "wang_pertopt",
    "wang-rescaling": "wang_rescaling",
    "wang-toy": "wang_toy",
}
