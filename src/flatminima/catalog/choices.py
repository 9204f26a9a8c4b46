"""Choices by name, written once: the library checks it, and the command line offers it without torch."""

from __future__ import annotations

from typing import Literal, get_args

from flatminima.catalog.optimizers import OPTIMIZERS

LOSSES = (
    "binary_cross_entropy",
    "causal_lm",
    "causal_lm_sequence",
    "cross_entropy",
    "mse",
    "token_cross_entropy",
    "token_cross_entropy_sequence",
)

# data: how inputs are scaled, and how arrays of images lie
SCALINGS = ("imagenet", "none", "standard", "unit")
LAYOUTS = ("chw", "hwc")

# training
METHODS = tuple(sorted(("plain", *OPTIMIZERS)))
SCHEDULES = ("constant", "cosine", "plateau", "step")
PRECISIONS = ("bfloat16", "float32")
AUGMENTATIONS = ("1-crop-f", "4-crop-f", "flip", "none")

# certificates: of the posterior's training, its random weights, the prior's samples, and the precision that is kept
OBJECTIVE_NAMES = ("classic", "kl", "lambda", "quadratic")
RANDOM_LAYERS = ("all", "head")
PRIOR_AUGMENTATIONS = ("none", "shift1", "shift2")
KEPT_PRECISIONS = ("float16", "float32")
PosteriorName = Literal["gaussian", "diagonal_laplace", "fisher_laplace", "uniform", "truncated_gaussian"]
POSTERIORS: tuple[PosteriorName, ...] = get_args(PosteriorName)

# landscapes
DIRECTIONS = ("filter", "eigenvectors")

# studies
SCALES = ("smoke", "cpu", "half", "paper")
ENGINES = ("local", "ray")
