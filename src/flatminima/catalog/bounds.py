"""The bounds on the risk, a row each, and the functions that they are made of."""

from __future__ import annotations

from flatminima.catalog.papers import (
    CATONI_2007,
    DZIUGAITE_ROY_2017,
    J20,
    LANGFORD_2005,
    LANGFORD_CARUANA_2002,
    MCALLESTER_1999,
    N17,
    RIVASPLATA_2019,
    SEEGER_MAURER,
    THIEMANN_2017,
    W1,
)
from flatminima.catalog.rows import Bound

_FREE = "a loss in [0, 1], i.i.d. samples, a prior made without them"
_DRAWS = "independent draws of the weights, made after Q was frozen"
_HOLDOUT = "one fixed predictor, samples that nothing else has touched"
_PROVEN = "an estimated curvature; CERT only where it is proven on the box"

_ROWS = (
    Bound("binomial_tail_inverse", "certificate", "exact hold-out bound", LANGFORD_2005, "Thm 3.3", "CERT", _HOLDOUT),
    Bound("catoni", "pac_bayes", "Catoni's bound at one inverse temperature", CATONI_2007, "Thm 1.2.6", "CERT",
          _FREE + ", beta fixed before"),
    Bound("hoeffding", "hoeffding", "PAC-Bayes-Hoeffding at one eta", W1, "Thm 1 (2)", "CERT",
          _FREE + ", eta fixed before"),
    Bound("hoeffding_grid", "hoeffding", "PAC-Bayes-Hoeffding at the best eta of a grid", W1, "Thm 2, App. D",
          "CERT", _FREE),
    Bound("holdout_kl", "certificate", "hold-out bound by the kl inverse, any loss", LANGFORD_2005, "Cor. 3.7",
          "CERT", _HOLDOUT),
    Bound("jia_su", "jia", "Fisher log-determinant bound", J20, "Thm 1", "SCORE",
          "nothing helps: the prior is the data's"),
    Bound("lambda_bound", "pac_bayes", "linear in risk and KL, for every lambda at once", THIEMANN_2017, "",
          "CERT", _FREE),
    Bound("lambda_max", "top_eigenvalue", "noisy risk from the Hessian's top eigenvalue", W1, "Lemma 5 (24)",
          "SCORE", _PROVEN),
    Bound("mc_certificate", "certificate", "two kl inverses: draws, then PAC-Bayes", DZIUGAITE_ROY_2017, "",
          "CERT", _FREE + "; " + _DRAWS),
    Bound("mcallester", "pac_bayes", "classic square-root bound", MCALLESTER_1999, "", "CERT", _FREE),
    Bound("monte_carlo_risk", "certificate", "empirical risk of a stochastic network from draws",
          LANGFORD_CARUANA_2002, "", "CERT", _DRAWS),
    Bound("neyshabur_5", "neyshabur", "McAllester's bound of 2003", N17, "eq. 5", "CERT", _FREE),
    Bound("neyshabur_6", "neyshabur", "a weaker form of (5)", N17, "eq. 6", "CERT", _FREE),
    Bound("neyshabur_8", "neyshabur", "expected sharpness and norm", N17, "eq. 8", "CERT",
          _FREE + ", one sigma fixed before"),
    Bound("neyshabur_score", "neyshabur", "bound from the conditions C1 to C3", N17, "Thm 1", "SCORE",
          "a hidden constant"),
    Bound("pac_bayes_kl", "pac_bayes", "PAC-Bayes-kl, the tightest of its family", SEEGER_MAURER, "", "CERT", _FREE),
    Bound("quadratic", "pac_bayes", "tighter than the classic one at small risk", RIVASPLATA_2019, "", "CERT", _FREE),
    Bound("truncated_gaussian", "truncated", "truncated Gaussian noise", W1, "Lemma 4 (16)", "SCORE", _PROVEN),
    Bound("uniform_perturbation", "wang", "uniform noise at the best widths", W1, "Lemma 3 (7)", "SCORE", _PROVEN),
    Bound("uniform_perturbation_grid", "wang_grid", "uniform noise without a free eta", W1, "Thm 2 (4)",
          "SCORE", _PROVEN),
    Bound("uniform_perturbation_printed", "wang_grid", "Theorem 2 as its appendix prints it", W1, "App. D",
          "SCORE", "an invalid constant, kept to compare with the paper"),
    Bound("uniform_perturbation_simplified", "wang", "the paper's simpler form", W1, "Lemma 3 (8)", "SCORE", _PROVEN),
)  # fmt: skip

BOUNDS: dict[str, Bound] = {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}

# File of `flatminima/bounds` to its public functions that are no bounds on the risk: divergences, inverses, moments.
PARTS: dict[str, tuple[str, ...]] = {
    "divergence": (
        "kl_diag_gaussian",
        "kl_scaled_noise_fixed_prior",
        "kl_uniform",
        "prior_scale_penalty",
        "prior_variance_penalty",
    ),
    "jia": ("jia_su_excess", "jia_su_expected_excess", "jia_su_kl"),
    "kl": ("binary_kl", "kl_inverse", "kl_inverse_derivatives", "kl_inverse_lower"),
    "laplace": ("diagonal_laplace_kl", "diagonal_laplace_sigma", "fisher_laplace_kl"),
    "losses": ("bounded_cross_entropy", "smooth_cross_entropy"),
    "neyshabur": ("bicriteria_kl",),
    "pac_bayes": ("optimal_lambda",),
    "top_eigenvalue": ("gaussian_noise_moments", "noise_third_moment", "uniform_noise_moments"),
    "truncated": ("kl_truncated_gaussian", "truncated_gaussian_moments", "truncated_gaussian_sigma"),
    "wang": ("uniform_sigma",),
}
