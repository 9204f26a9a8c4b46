"""Measures: plain functions of a `Minimum` (or any `Statistics`) to an `Estimate`.

Imported eagerly: a module here may carry its function's name, and a lazy attribute would turn into the module once
that is imported. (`import flatminima` alone does not come here, and so does not import torch.)
"""

from flatminima.measures.adaptive import adaptive_sharpness
from flatminima.measures.conditions import conditions, perturbation_score
from flatminima.measures.distance import distance_from_init, parameter_norm
from flatminima.measures.fisher import (
    fisher_frobenius,
    fisher_logdet,
    fisher_logdet_full,
    fisher_spectral_radius,
    fisher_trace,
)
from flatminima.measures.fisher_rao import fisher_rao_norm
from flatminima.measures.gradient_noise import gradient_noise_scale, gradient_signal_to_noise, gradient_variance
from flatminima.measures.hessian import hessian_top_eigenvalue, hessian_trace
from flatminima.measures.lipschitz import lipschitz
from flatminima.measures.margin import margin, output_entropy
from flatminima.measures.noise_flatness import noise_complexity, noise_flatness
from flatminima.measures.norms import (
    frobenius_norm,
    group_norm,
    parameter_count,
    path_norm,
    spectral_norm,
    vc_dimension,
)
from flatminima.measures.pacgen import pacgen, sharpness_divergence
from flatminima.measures.power_law import power_law_exponent
from flatminima.measures.robustness import robustness
from flatminima.measures.sharpness import bicriteria, expected_sharpness, sharpness
from flatminima.measures.spectral_complexity import spectral_complexity
from flatminima.measures.spectrum import effective_dimension, negative_curvature

__all__ = [
    "adaptive_sharpness",
    "bicriteria",
    "conditions",
    "distance_from_init",
    "effective_dimension",
    "expected_sharpness",
    "fisher_frobenius",
    "fisher_logdet",
    "fisher_logdet_full",
    "fisher_rao_norm",
    "fisher_spectral_radius",
    "fisher_trace",
    "frobenius_norm",
    "gradient_noise_scale",
    "gradient_signal_to_noise",
    "gradient_variance",
    "group_norm",
    "hessian_top_eigenvalue",
    "hessian_trace",
    "lipschitz",
    "margin",
    "negative_curvature",
    "noise_complexity",
    "noise_flatness",
    "output_entropy",
    "pacgen",
    "parameter_count",
    "parameter_norm",
    "path_norm",
    "perturbation_score",
    "power_law_exponent",
    "robustness",
    "sharpness",
    "sharpness_divergence",
    "spectral_complexity",
    "spectral_norm",
    "vc_dimension",
]
