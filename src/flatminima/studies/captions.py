"""The captions of the studies' figures: what each panel has, and what a line, a band and a dash mean."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flatminima.report.axes import number

_LINES = (
    "A line is the mean over seeds, its band one standard deviation, of logarithms where the axis is logarithmic; a "
    "line without a band has one seed."
)
_JIA = "Test error, the paper's four metrics of the Fisher matrix and the training loss against {}."
_TO_LOSS = "Solid: at equal epochs; dashed: each network trained to one loss, those left out that did not reach it."
_N17 = (
    "four norms over the margin, as logarithms of the capacity; sharpness and expected sharpness; expected sharpness "
    "against KL, the dashed line at 0.05, where the paper compares; the KL there. All but the errors are of networks "
    "that fit their training set."
)
_CNN = (
    "Gap and pacGen by epoch, as the papers draw them, of the rho and the seeds that their titles name: runs of before "
    "the printed rho was drawn hold the library's alone; then the training loss, the gap and pacGen in two "
    "forms at the end of training against the {}. "
) + _TO_LOSS
_PANELS: Mapping[str, str] = MappingProxyType(
    {
        "jia-augmentation": _JIA.format("the augmentation"),
        "jia-batch": f"{_JIA.format('the batch size')} {_TO_LOSS}",
        "jia-confusion": _JIA.format("the size of the confusion set"),
        "jia-regularizer": "Test error and trace of the Fisher matrix against the strength of the regularizer.",
        "jia-regularized-metric": "Log-determinant, logits rescaled and as they are, against the strength of the "
        "regularizer.",
        "neyshabur-confusion": f"Against the size of the confusion set: training and test error; {_N17}",
        "neyshabur-random-labels": f"Against the number of training samples, for true and random labels: test error; "
        f"{_N17}",
        "neyshabur-width": f"Against the number of hidden units: training and test error; {_N17}",
        "neyshabur-conditions": "Histograms over samples and seeds, for learned and for random weights, of what the "
        "conditions of Theorem 1 bound.",
        "wang-mnist-batch": _CNN.format("batch size"),
        "wang-mnist-lr": _CNN.format("learning rate"),
        "wang-cifar-batch": _CNN.format("batch size"),
        "wang-cifar-lr": _CNN.format("learning rate"),
        "wang-pertopt": "Accuracy on training and on held-out images by epoch, by method and its setting.",
        "wang-rescaling": "The measures against the factor that multiplies the first layer and divides the last.",
        "wang-toy": "One data set: its loss surface with the bound below it, its samples and predicted labels, the "
        "bound at four values of eta, the loss between the minima; below on the right all data sets.",
        "cohen-edge": "The largest eigenvalue over what the optimizer bears, and the training loss, step by step; the "
        "dashed line is what it bears.",
        "minima-over-time": "Four measures of flatness, the gap of the error and the training loss by epoch, by "
        "optimizer.",
    }
)
_NO_LINES = ("neyshabur-conditions", "wang-toy")  # where most panels have none


def panels_of(study: str) -> str:
    """The panels of a study's figure, in a sentence; empty for a study of one's own."""
    return _PANELS.get(study, "")


def caption(study: str, seeds: int) -> str:
    """The caption of a study's figure.

    Args:
        study: its id. seeds: of the runs that are drawn.
    """
    if study not in _PANELS:
        return ""
    one, several = (
        ("One data set.", "{} data sets.") if study == "wang-toy" else ("One seed.", "Up to {} seeds a point.")
    )
    count = one if seeds == 1 else several.format(number(seeds))
    return " ".join([_PANELS[study], *([] if study in _NO_LINES else [_LINES]), count])
