"""Every public name, where it lives and what a reader needs to know of it. Imports no torch.

To add a measure: one file in `measures/`, one test, one line here; the contract tests apply by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from flatminima.errors import UnknownName

Direction = Literal["lower", "higher"]
Budget = Literal["fast", "default", "thorough"]

W = "Wang et al. 2018"
N = "Neyshabur et al. 2017"
J = "Jia & Su 2020"
F = "Jiang et al. 2020"
G = "Ghorbani et al. 2019"
MB = "Maddox et al. 2020"


@dataclass(frozen=True)
class Measure:
    """A measure as `flatminima list` shows it.

    Attributes:
        name: of the function in `flatminima.measures`.
        module: file in `flatminima/measures`.
        summary: one line.
        paper, equation: where it is defined.
        direction: which way goes with better generalization.
        needs: passes over the data and what else.
        invariant: transformations that leave the function, and this measure at its defaults, unchanged. A test
            applies them all to every measure: what is not listed changes it.
        budget: the smallest whose table includes it.
    """

    name: str
    module: str
    summary: str
    paper: str
    equation: str
    direction: Direction
    needs: str
    invariant: frozenset[str] = frozenset()
    budget: Budget = "default"

    def load(self) -> Any:
        """The function."""
        return getattr(import_module(f"flatminima.measures.{self.module}"), self.name)


# Of a ReLU network; the function stays the same. Repeating the first gives every layer a factor, product 1.
LAYERWISE = "layer rescaling"  # one layer's weights and biases times a, the next layer's weights divided by a
UNITWISE = "unit rescaling"  # the same for each hidden unit with a factor of its own


def _measures() -> dict[str, Measure]:
    layers = frozenset({LAYERWISE})  # products of whole layers' norms
    units = frozenset({LAYERWISE, UNITWISE})
    rows = [
        Measure("adaptive_sharpness", "adaptive", "rise of the loss under changes in proportion to each weight",
                "Kwon et al. 2021", "def. 2", "lower", "1 gradient; 14 more on 300 samples", units),
        Measure("bicriteria", "sharpness", "best trade-off of expected sharpness and divergence", N,
                "fig. 1, 2, App. A", "lower", "scales x draws x forward on a block"),
        Measure("conditions", "conditions", "mean ln(1/mu) of condition C1; C2 and C3", N,
                "App. B, C1 to C3", "lower", "10 samples, d^2/2 products of layers each; bias-free MLP", layers),
        Measure("distance_from_init", "distance", "distance of the weights from their initial values", N,
                "sec. 3", "lower", "the initial weights"),
        Measure("effective_dimension", "spectrum", "directions that the data determines (spectral density)", MB,
                "N_eff", "lower", "124 Gauss-Newton products on 500 samples"),
        Measure("expected_sharpness", "sharpness", "rise of the loss under random weight noise", N,
                "sec. 2.2, fig. 2", "lower", "draws x forward on a block"),
        Measure("fisher_frobenius", "fisher", "squared Frobenius norm of the empirical Fisher", J,
                "App. D (J-h)", "lower", "1 forward, 1 backward"),
        Measure("fisher_logdet", "fisher", "log-determinant of the empirical Fisher on subsets", J,
                "eq. 4, 5", "lower", "1 forward, 1 backward"),
        Measure("fisher_logdet_full", "fisher", "log-determinant of the full Fisher matrix (small networks)", J,
                "eq. 2, 3", "lower", "1 forward, C backward; at most 5,000 parameters"),
        Measure("fisher_rao_norm", "fisher_rao", "length of the weights in the metric of the Fisher matrix",
                "Liang et al. 2019", "def. 2", "lower", "1 forward, 1 backward on 10,000 samples", units),
        Measure("fisher_spectral_radius", "fisher", "largest eigenvalue of the empirical Fisher", J,
                "sec. 7.1, App. D", "lower", "1 forward, 1 backward"),
        Measure("fisher_trace", "fisher", "trace of the empirical Fisher", J,
                "sec. 6", "lower", "1 forward, 1 backward"),
        Measure("frobenius_norm", "norms", "ln of the product of Frobenius norms over margin", N,
                "sec. 2.3, l2 norm", "lower", "1 forward; a classifier; ReLU network", layers),
        Measure("gradient_noise_scale", "gradient_noise", "variance of the gradients over their squared mean",
                "McCandlish et al. 2018", "eq. 2.9", "lower", "2 forward, 2 backward"),
        Measure("gradient_signal_to_noise", "gradient_noise", "squared mean over variance of each weight's gradients",
                "Liu et al. 2020", "eq. 1", "higher", "2 forward, 2 backward", units),
        Measure("gradient_variance", "gradient_noise", "variance of the samples' gradients", F,
                "App. C", "lower", "2 forward, 2 backward"),
        Measure("group_norm", "norms", "ln of the product of l_{p,q} group norms over margin", N,
                "sec. 2.3, group norms", "lower", "1 forward; a classifier; ReLU network", layers),
        Measure("hessian_top_eigenvalue", "hessian", "largest eigenvalue of the loss's Hessian (Lanczos)", W,
                "Lemma 5, eq. 24", "lower", "about 30 Hessian products on 250 samples"),
        Measure("hessian_trace", "hessian", "trace of the loss's Hessian (Hutchinson)", W,
                "eq. 7, equal sigma", "lower", "2 Hessian products on 1,000 samples"),
        Measure("lipschitz", "lipschitz", "ln of a bound of the Lipschitz constant over margin", N,
                "sec. 2.3, Lipschitz", "lower", "1 forward; a classifier; ReLU network", layers),
        Measure("margin", "margin", "margin that 95% of the samples exceed", N,
                "eq. 2", "higher", "1 forward; a classifier", units),
        Measure("negative_curvature", "spectrum", "share of the Hessian's spectrum below 0", G,
                "negative part", "lower", "124 Hessian products on 500 samples"),
        Measure("noise_complexity", "noise_flatness", "PAC-Bayes complexity at the noise that costs 10% accuracy", F,
                "eq. 48, 49, 56, 57", "lower", "as noise_flatness"),
        Measure("noise_flatness", "noise_flatness", "ln of 1 over the variance of noise that costs 10% accuracy", F,
                "eq. 53, 61", "lower", "about 15 x draws x forward on a block; a classifier"),
        Measure("output_entropy", "margin", "mean entropy of the predicted class probabilities", F,
                "App. C", "higher", "1 forward; a classifier", units),
        Measure("pacgen", "pacgen", "local PAC-Bayes metric of curvature, its Lipschitz constant and scale", W,
                "sec. 6, Psi", "lower", "2 draws x (1 forward, C backward)"),
        Measure("parameter_count", "norms", "number of trainable parameters", N,
                "eq. 1", "lower", "nothing", units),
        Measure("parameter_norm", "distance", "Euclidean norm of the weights", F,
                "eq. 42", "lower", "nothing"),
        Measure("path_norm", "norms", "ln of the path norm over margin", N,
                "sec. 2.3, path norms", "lower", "1 forward; a classifier; ReLU network", units),
        Measure("perturbation_score", "conditions", "right-hand side of Theorem 1 on weight noise", N,
                "Theorem 1", "lower", "as conditions, 100 samples"),
        Measure("power_law_exponent", "power_law", "mean power-law exponent of the weights' spectra",
                "Martin et al. 2021", "alpha", "lower", "singular values of the weights", layers),
        Measure("robustness", "robustness", "squared norm of the probabilities' input Jacobian", J,
                "sec. 7.1", "lower", "C backward on 300 samples", units),
        Measure("sharpness", "sharpness", "highest relative rise of the loss in a box around the weights", N,
                "eq. 4", "lower", "1 gradient; 14 more on 300 samples"),
        Measure("sharpness_divergence", "pacgen", "sharpness plus divergence of uniform noise of the best widths", W,
                "AISTATS sec. 5.2", "lower", "2 draws x (1 forward, C backward)"),
        Measure("spectral_complexity", "spectral_complexity", "ln of spectral norms times stable ranks over margin", F,
                "eq. 29, 30", "lower", "1 forward; a classifier; ReLU network", layers),
        Measure("spectral_norm", "norms", "ln of the product of spectral norms over margin", N,
                "sec. 2.3, spectral", "lower", "1 forward; a classifier; ReLU network", layers),
        Measure("vc_dimension", "norms", "depth times number of trainable parameters", N,
                "eq. 1", "lower", "ReLU network", units),
    ]  # fmt: skip
    return {row.name: replace(row, budget=_BUDGETS.get(row.name, row.budget)) for row in rows}


_BUDGETS: dict[str, Budget] = {
    "adaptive_sharpness": "thorough",
    "bicriteria": "thorough",
    "conditions": "thorough",
    "effective_dimension": "thorough",
    "expected_sharpness": "fast",
    "fisher_frobenius": "fast",
    "fisher_logdet": "fast",
    "fisher_logdet_full": "thorough",
    "fisher_spectral_radius": "fast",
    "fisher_trace": "fast",
    "frobenius_norm": "fast",
    "gradient_noise_scale": "thorough",
    "gradient_signal_to_noise": "thorough",
    "gradient_variance": "thorough",
    "margin": "fast",
    "negative_curvature": "thorough",
    "noise_complexity": "thorough",
    "noise_flatness": "thorough",
    "pacgen": "fast",
    "parameter_count": "fast",
    "path_norm": "fast",
    "perturbation_score": "thorough",
    "robustness": "fast",
    "sharpness_divergence": "thorough",
    "spectral_norm": "fast",
    "vc_dimension": "fast",
}


@dataclass(frozen=True)
class Bound:
    """A bound on the risk as `flatminima list` shows it.

    Attributes:
        name: of the function in `flatminima.bounds`.
        summary: one line.
        paper, equation: where it is defined; the equation is empty where the paper is only named.
        label: "CERT": holds with probability 1 - delta under its conditions. "SCORE": ranks networks, proves nothing
            with the inputs that one has in practice.
        needs: what makes it a certificate, or what keeps it from being one.
    """

    name: str
    summary: str
    paper: str
    equation: str
    label: Literal["CERT", "SCORE"]
    needs: str


def _bounds() -> dict[str, Bound]:
    free = "a loss in [0, 1], i.i.d. samples, a prior made without them"
    draws = "independent draws of the weights, made after Q was frozen"
    holdout = "one fixed predictor, samples that nothing else has touched"
    proven = "an estimated curvature; CERT only where it is proven on the box"
    rows = [
        Bound("binomial_tail_inverse", "exact hold-out bound", "Langford 2005", "Thm 3.3", "CERT", holdout),
        Bound("catoni", "Catoni's bound at one inverse temperature", "Catoni 2007", "Thm 1.2.6", "CERT",
              free + ", beta fixed before"),
        Bound("hoeffding", "PAC-Bayes-Hoeffding at one eta", W, "Thm 1 (2)", "CERT", free + ", eta fixed before"),
        Bound("hoeffding_grid", "PAC-Bayes-Hoeffding at the best eta of a grid", W, "Thm 2, App. D", "CERT", free),
        Bound("holdout_kl", "hold-out bound by the kl inverse, any loss", "Langford 2005", "Cor. 3.7", "CERT", holdout),
        Bound("jia_su", "Fisher log-determinant bound", J, "Thm 1", "SCORE", "nothing helps: the prior is the data's"),
        Bound("lambda_bound", "linear in risk and KL, for every lambda at once", "Thiemann et al. 2017", "",
              "CERT", free),
        Bound("lambda_max", "noisy risk from the Hessian's top eigenvalue", W, "Lemma 5 (24)", "SCORE", proven),
        Bound("mc_certificate", "two kl inverses: draws, then PAC-Bayes", "Dziugaite & Roy 2017", "", "CERT",
              free + "; " + draws),
        Bound("mcallester", "classic square-root bound", "McAllester 1999", "", "CERT", free),
        Bound("monte_carlo_risk", "empirical risk of a stochastic network from draws", "Langford & Caruana 2002",
              "", "CERT", draws),
        Bound("neyshabur_5", "McAllester's bound of 2003", N, "eq. 5", "CERT", free),
        Bound("neyshabur_6", "a weaker form of (5)", N, "eq. 6", "CERT", free),
        Bound("neyshabur_8", "expected sharpness and norm", N, "eq. 8", "CERT", free + ", one sigma fixed before"),
        Bound("neyshabur_score", "bound from the conditions C1 to C3", N, "Thm 1", "SCORE", "a hidden constant"),
        Bound("pac_bayes_kl", "PAC-Bayes-kl, the tightest of its family", "Seeger 2002, Maurer 2004", "", "CERT",
              free),
        Bound("quadratic", "tighter than the classic one at small risk", "Rivasplata et al. 2019", "", "CERT",
              free),
        Bound("truncated_gaussian", "truncated Gaussian noise", W, "Lemma 4 (16)", "SCORE", proven),
        Bound("uniform_perturbation", "uniform noise at the best widths", W, "Lemma 3 (7)", "SCORE", proven),
        Bound("uniform_perturbation_grid", "uniform noise without a free eta", W, "Thm 2 (4)", "SCORE", proven),
        Bound("uniform_perturbation_printed", "Theorem 2 as its appendix prints it", W, "App. D", "SCORE",
              "an invalid constant, kept to compare with the paper"),
        Bound("uniform_perturbation_simplified", "the paper's simpler form", W, "Lemma 3 (8)", "SCORE", proven),
    ]  # fmt: skip
    return {row.name: row for row in rows}


MEASURES: dict[str, Measure] = _measures()

# Which to look at first, by question; docs/which-measure.md says what each order is worth.
FIRST: dict[str, str] = {
    "adaptive_sharpness": "Which generalizes better? One of eight whose order fits the gaps in our zoo",
    "robustness": "How much do small changes of an input change the prediction?",
    "expected_sharpness": "What does noise in the weights cost?",
    "hessian_top_eigenvalue": "How curved is the steepest direction, against 2 / learning rate?",
    "margin": "How sure is it of nearly all samples?",
}
BOUNDS: dict[str, Bound] = _bounds()


def measure(name: str) -> Measure:
    """The entry of a measure. Raises UnknownName, suggesting the nearest."""
    if name not in MEASURES:
        raise UnknownName("measure", name, MEASURES, "see `flatminima list`")
    return MEASURES[name]
