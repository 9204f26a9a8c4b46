"""The quantities of results in words, with their units: a column's name is code, and a figure or a table has words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_SHARE, _NATS, _SQUARE = "share of samples", "nats", "nats²"
_CAPACITY = "log capacity by the {} norm"
# a column of `claims.quantities.rows` to its words and its unit, empty where it has none
QUANTITIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "abs_ln_factor": ("size of the ln factor of the first layer", ""),
        "batch_size": ("batch size", "samples"),
        "beta": ("strength beta of the regularizer", ""),
        "bound": ("bound", _NATS),
        "bound_above": ("bound of the flat minimum above that of the sharp one", _NATS),
        "boundary": ("length of the boundary", "sides"),
        "c2": ("C2's constant", ""),
        "c2_figure": ("C2 as in Fig. 5", ""),
        "c3": ("C3's constant", ""),
        "c3_median": ("median of C3's constant", ""),
        "confusion": ("confusion set", "samples"),
        "curvature_bound": ("share of weights whose noise the curvature decides", ""),
        "error_gap": ("gap of the error", _SHARE),
        "expected_sharpness": ("expected sharpness", _NATS),
        "factor": ("factor of the first layer", ""),
        "fisher_logdet": ("Fisher log-determinant", _NATS),
        "fisher_trace": ("trace of the Fisher matrix", _SQUARE),
        "frobenius": ("Frobenius norm of the Fisher matrix", _SQUARE),
        "gap": ("test minus training loss", _NATS),
        "hessian_top_eigenvalue": ("largest eigenvalue of the Hessian", _NATS),
        "hessian_trace": ("trace of the Hessian", _NATS),
        "l1_path": (_CAPACITY.format("l1-path"), _NATS),
        "l2": (_CAPACITY.format("l2"), _NATS),
        "l2_path": (_CAPACITY.format("l2-path"), _NATS),
        "ln_kl_at_sharpness": ("log KL at expected sharpness 0.05", _NATS),
        "local_minima": ("local minima of a data set", ""),
        "logdet": ("Fisher log-determinant", _NATS),
        "logdet_rescaled": ("Fisher log-determinant, logits rescaled", _NATS),
        "loss": ("training loss", _NATS),
        "loss_above": ("training loss of the flat minimum above that of the sharp one", _NATS),
        "lows_under_noise": ("minima that are left under noise", ""),
        "lr": ("learning rate", ""),
        "mean_log_inverse_mu": ("mean of ln 1/mu", ""),
        "mu": ("mu of C1", ""),
        "noise": ("level of the noise", ""),
        "noisy_loss": ("loss under noise", _NATS),
        "outputs": ("largest relative change of an output", ""),
        "pacgen": ("pacGen", _NATS),
        "pacgen_batch_gradient": ("pacGen, squared batch gradients", _NATS),
        "pacgen_invariant": ("pacGen, epsilon 0 and rho 0", _NATS),
        "pacgen_lemma3": ("pacGen of Lemma 3", _NATS),
        "pacgen_printed_rho": ("pacGen, squared batch gradients, printed rho", _NATS),
        "robustness": ("robustness", "1 / input²"),
        "scheme_order": ("augmentation, from none to 4-crop-f", ""),
        "sharp_is_global": ("whether the sharp minimum is the global one", ""),
        "sharpness": ("sharpness", _NATS),
        "size": ("training samples", ""),
        "smoothed": ("variation of the loss under noise, of that without", ""),
        "spectral": (_CAPACITY.format("spectral"), _NATS),
        "test_error": ("test error", _SHARE),
        "test_loss": ("test loss", _NATS),
        "trace": ("trace of the Hessian", _NATS),
        "train_error": ("training error", _SHARE),
        "true_error": ("error on the true images", _SHARE),
        "train_loss": ("training loss", _NATS),
        "trace_ratio": ("trace of the Hessian, sharp over flat", ""),
        "true": ("true samples", ""),
        "validation_error": ("held-out error", _SHARE),
        "width": ("hidden units", ""),
    }
)
# columns of one name and another meaning, by the beginning of a study's id
_OWN: Mapping[str, Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "jia": {"spectral": ("spectral radius of the Fisher matrix", _SQUARE)},
        "minima-over-time": {"gap": ("test minus training error", _SHARE)},
    }
)
# a key of a configuration, of those that the papers' printed settings are about
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "alpha": "step alpha of the penalty",
        "ascent_batch": "samples of an update of projected ascent",
        "ascent_lr": "step size of projected ascent",
        "ascent_momentum": "momentum of projected ascent",
        "ascent_steps": "steps of projected ascent",
        "augment": "augmentation",
        "batch_size": "batch size",
        "beta": "strength beta",
        "confusion": "confusion set",
        "draws": "draws of the noise",
        "fresh_data": "images of its own for each seed",
        "held": "held-out samples",
        "limit": "training samples",
        "lr": "learning rate",
        "margin_share": "share of samples below the margin",
        "max_norm": "threshold of the gradient's norm",
        "network.average_pool": "side of the average pool",
        "network.depth": "depth",
        "network.dropout": "dropout",
        "network.growth": "growth",
        "network.name": "network",
        "network.norm": "normalisation",
        "network.width": "width",
        "sub_batches": "sub-batches M",
        "subset": "samples of a subset",
        "printed_rho": "rho as printed",
        "scheme": "augmentation",
        "sharpness_alpha": "alpha of the sharpness",
        "target_loss": "target loss",
        "trials": "subsets",
        "true": "true samples",
        "weight_decay": "l2",
        "width": "hidden units",
    }
)
_JOINS: Mapping[str, str] = MappingProxyType({" + ": "plus", " - ": "minus", " / ": "over"})
_FUNCTIONS: Mapping[str, str] = MappingProxyType({"ln": "ln of the", "log2": "log2 of the", "abs": "size of the"})


def in_words(expression: str, study: str = "") -> str:
    """An expression of `claims.quantities.value` in words; a name that has none stays as it is.

    Args:
        expression: names of columns, as a trial has them. study: whose rows have the columns.

    Examples:
        >>> in_words("log2 batch_size"), in_words("test_error - train_error"), in_words("logdet / 100")
        ('log2 of the batch size', 'test error minus training error', 'Fisher log-determinant over 100')
    """
    for sign, word in _JOINS.items():
        if sign in expression:
            first, second = (in_words(part, study) for part in expression.rsplit(sign, 1))
            return f"{first} {word} {second}"
    function, _, rest = expression.partition(" ")
    if rest and function in _FUNCTIONS:
        return f"{_FUNCTIONS[function]} {in_words(rest, study)}"
    return _named(expression, study)[0]


def unit_of(name: str, study: str = "") -> str:
    """The unit of a column, empty where it has none.

    Examples:
        >>> unit_of("train_loss"), unit_of("test_error"), unit_of("width")
        ('nats', 'share of samples', '')
    """
    return _named(name, study)[1]


def _named(name: str, study: str) -> tuple[str, str]:
    own = next((names for start, names in _OWN.items() if study.startswith(start)), {})
    return own.get(name) or QUANTITIES.get(name, (name, ""))


def network_of(row: Mapping[str, Any]) -> str:
    """The network of a run as its configuration names it, with its depth; empty where it names none.

    Examples:
        >>> network_of({"network": {"name": "resnet20", "depth": 8}}), network_of({"name": "VGG"}), network_of({})
        ('resnet20, depth 8', 'VGG', '')
    """
    told = row.get("network")
    own = told if isinstance(told, Mapping) else {}
    name = str(row.get("name") or own.get("name", "")).replace("_", " ")
    return f"{name}, depth {own['depth']}" if name and "depth" in own else name
