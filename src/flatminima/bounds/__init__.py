"""PAC-Bayes bounds and divergences: float64 numbers in, numbers out; no torch. They broadcast over arrays.

Every docstring says whether its number is a CERT, true with probability 1 - delta under the listed
conditions, or a SCORE, fit for ranking only. Papers' variants and corrected ones stand side by side.
"""

from flatminima.bounds.certificate import binomial_tail_inverse, holdout_kl, mc_certificate, monte_carlo_risk
from flatminima.bounds.divergence import (
    kl_diag_gaussian,
    kl_scaled_noise_fixed_prior,
    kl_uniform,
    prior_scale_penalty,
    prior_variance_penalty,
)
from flatminima.bounds.hoeffding import hoeffding, hoeffding_grid
from flatminima.bounds.jia import jia_su, jia_su_excess, jia_su_expected_excess, jia_su_kl
from flatminima.bounds.kl import binary_kl, kl_inverse, kl_inverse_derivatives, kl_inverse_lower
from flatminima.bounds.laplace import diagonal_laplace_kl, diagonal_laplace_sigma, fisher_laplace_kl
from flatminima.bounds.losses import bounded_cross_entropy, smooth_cross_entropy
from flatminima.bounds.neyshabur import bicriteria_kl, neyshabur_5, neyshabur_6, neyshabur_8, neyshabur_score
from flatminima.bounds.pac_bayes import (
    catoni,
    lambda_bound,
    mcallester,
    optimal_lambda,
    pac_bayes_kl,
    quadratic,
)
from flatminima.bounds.top_eigenvalue import (
    gaussian_noise_moments,
    lambda_max,
    noise_third_moment,
    uniform_noise_moments,
)
from flatminima.bounds.truncated import (
    kl_truncated_gaussian,
    truncated_gaussian,
    truncated_gaussian_moments,
    truncated_gaussian_sigma,
)
from flatminima.bounds.wang import (
    uniform_perturbation,
    uniform_perturbation_simplified,
    uniform_sigma,
)
from flatminima.bounds.wang_grid import uniform_perturbation_grid, uniform_perturbation_printed

__all__ = [
    "bicriteria_kl",
    "binary_kl",
    "binomial_tail_inverse",
    "bounded_cross_entropy",
    "catoni",
    "diagonal_laplace_kl",
    "diagonal_laplace_sigma",
    "fisher_laplace_kl",
    "gaussian_noise_moments",
    "hoeffding",
    "hoeffding_grid",
    "holdout_kl",
    "jia_su",
    "jia_su_excess",
    "jia_su_expected_excess",
    "jia_su_kl",
    "kl_diag_gaussian",
    "kl_inverse",
    "kl_inverse_derivatives",
    "kl_inverse_lower",
    "kl_scaled_noise_fixed_prior",
    "kl_truncated_gaussian",
    "kl_uniform",
    "lambda_bound",
    "lambda_max",
    "mc_certificate",
    "mcallester",
    "monte_carlo_risk",
    "neyshabur_5",
    "neyshabur_6",
    "neyshabur_8",
    "neyshabur_score",
    "noise_third_moment",
    "optimal_lambda",
    "pac_bayes_kl",
    "prior_scale_penalty",
    "prior_variance_penalty",
    "quadratic",
    "smooth_cross_entropy",
    "truncated_gaussian",
    "truncated_gaussian_moments",
    "truncated_gaussian_sigma",
    "uniform_noise_moments",
    "uniform_perturbation",
    "uniform_perturbation_grid",
    "uniform_perturbation_printed",
    "uniform_perturbation_simplified",
    "uniform_sigma",
]
