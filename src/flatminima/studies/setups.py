"""The papers' printed settings against our configurations: every deviation of every scale, by name and number.

What a configuration does not hold, since it never varies, is in `_FIXED`, read from the code that uses it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flatminima.measures import margin, pacgen
from flatminima.models import MODELS
from flatminima.optim.fisher_trace import FisherTrace
from flatminima.optim.pertopt import PertOPT
from flatminima.report.axes import number
from flatminima.statistics import worst_case
from flatminima.studies import _jia, _jia_table, _neyshabur, _toy, _toy_minima, neyshabur_conditions, wang_pertopt
from flatminima.studies.claims import Setting, papers
from flatminima.studies.study import Config, Study
from flatminima.studies.words import SETTINGS
from flatminima.training import TrainConfig


def _default(of: Any, name: str) -> Any:
    """The default of an option of a function or a class; None where it has no such option."""
    found = inspect.signature(of).parameters.get(name)
    return None if found is None else found.default


_BATCH = TrainConfig().batch_size
_JIA = {"trials": _jia.TRIALS, "scheme": "none", "fresh_data": False, "weight_decay": _jia.WEIGHT_DECAY}
_N17 = {
    "batch_size": _BATCH,
    "lr": TrainConfig().lr,
    "momentum": TrainConfig().momentum,
    "weight_decay": TrainConfig().weight_decay,
    "margin_share": _default(margin, "fraction"),
    "sharpness_alpha": _neyshabur.SHARPNESS_ALPHA,
    "ascent_steps": None,
    "ascent_lr": worst_case.ASCENT_RATE,
    "ascent_momentum": worst_case.ASCENT_MOMENTUM,
    "ascent_batch": worst_case.ASCENT_BATCH,
}
_STEPS = {"auto": "a tenth of the loss over the gradient"}  # of the penalty, displaced by another length than alpha
_CNN = {"optimizer": TrainConfig().optimizer, "smoothing of the diagonal": None} | {
    name: _default(pacgen, name) for name in ("gamma", "epsilon")
}
_FIXED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "jia-augmentation": _JIA,
        "jia-batch": _JIA,
        "jia-confusion": _JIA,
        "jia-regularizer": {
            "trials": _jia_table.TRIALS,
            "weight_decay": _jia_table.WEIGHT_DECAY,
            "sub_batches": _jia_table.SUB_BATCHES,
            "max_norm": _jia_table.MAX_NORM,
            "batch_size": _jia_table.BATCH,
            "momentum": _jia_table.MOMENTUM,
            "alpha": _STEPS.get(_default(FisherTrace, "step"), _default(FisherTrace, "alpha")),
        },
        "neyshabur-conditions": _N17 | {"depth": neyshabur_conditions.DEPTH},
        "neyshabur-confusion": _N17,
        "neyshabur-random-labels": _N17,
        "neyshabur-width": _N17,
        "wang-cifar-batch": _CNN,
        "wang-cifar-lr": _CNN,
        "wang-mnist-batch": _CNN,
        "wang-mnist-lr": _CNN,
        "wang-pertopt": {"rate": 0.0, "images of the curves": wang_pertopt.CURVES}
        | {name: _default(PertOPT, name) for name in ("eps", "beta1", "beta2")},
        "wang-toy": {
            "samples": _toy_minima.SAMPLES,
            "Gaussians": _toy.COMPONENTS,
            "layers": _toy_minima.LAYERS,
            "eta of figure 1": _toy_minima.ETAS[0],
            "eta of figure 2": _toy_minima.ETAS[1:],
        },
    }
)
_OF_DATA: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {  # what goes with the data set
        "wang-pertopt": {
            data: {"optimizer": name, "batch_size": batch, "test set": wang_pertopt.TEST_SETS.get(data, "test")}
            for data, (name, _, batch, *_) in wang_pertopt.OPTIMIZERS.items()
        }
    }
)
_ALL = "all"  # of a data set's samples
_CIFAR_SIDE = 32
_VGG_SHRINKS = 16  # a side, by four 2 x 2 max-pools
_SEEDS = "seeds"  # how many there are of each configuration
_CHOSEN = ("beta", "sub_batches", "max_norm")  # that a run takes from what another run tried


def printed(study: Study) -> list[Setting]:
    """Settings that the papers print for a study; of one that reads another's runs, of theirs."""
    name = study.runs_of or study.id
    return [setting for paper in papers().values() for setting in paper.settings if name in setting.studies]


def deviations(study: Study, scale: str) -> list[str]:
    """Each printed setting that a scale does not have: what it is, what is here, what the paper has.

    Raises:
        UnknownName: no such scale.
    """
    configs, name, found = study.list_runs(scale), study.runs_of or study.id, []
    for setting in printed(study):
        about = [c for c in configs if _about(c, setting.only, name) and not ("choice" in c and setting.key in _CHOSEN)]
        ours = {_hashable(_lookup(c, setting.key, name)) for c in about}
        if setting.key == _SEEDS:
            ours = {len({c["seed"] for c in about})}
        wanted = {_hashable(v) for v in (setting.value if isinstance(setting.value, tuple) else (setting.value,))}
        if about and ours != wanted:
            of = "".join(f", {_word(key)} {_said(value)}" for key, value in setting.only.items())
            found.append(f"{_word(setting.key)}{of}: {_said(ours)} ({_said(wanted)})")
    return list(dict.fromkeys(found))  # two documents may print one setting


def _about(config: Config, only: Mapping[str, Any], study: str) -> bool:
    for key, wanted in only.items():
        own = _lookup(config, key, study)
        own = "none" if own is None else own
        if own not in (wanted if isinstance(wanted, (list, tuple)) else (wanted,)):
            return False
    return True


def _lookup(config: Config, key: str, study: str) -> Any:
    """A key of a configuration, "network.depth" of the one within; a limit of None is all samples.

    Trials are as many as there are: subsets share no sample, and a small set has fewer than were asked for.
    """
    of_data = _OF_DATA.get(study, {}).get(config.get("data", ""), {})
    place: Any = {**_FIXED.get(study, {}), **of_data, **config}
    for part in key.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    if place is not None and key == "trials":
        return min(place, config.get("true", config["limit"]) // config["subset"])
    if place is None and key == "limit":
        return _ALL
    return _of_network(config, key.removeprefix("network.")) if place is None and key.startswith("network.") else place


def _of_network(config: Config, option: str) -> Any:
    """What a configuration leaves to the network's own default, and what follows from its form."""
    name = config.get("network", {}).get("name")
    if name == "vgg" and option == "average_pool":  # over all that its max-pools leave
        return config.get("side", _CIFAR_SIDE) // _VGG_SHRINKS
    return _default(MODELS[name], option) if name in MODELS else None


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _word(key: str) -> str:
    return SETTINGS.get(key, key)


def _said(values: Any) -> str:
    """A value, or several by their size, as a person writes them."""
    several = values if isinstance(values, (set, tuple, list)) else (values,)
    shown = sorted(several, key=lambda v: (not _is_number(v), v if _is_number(v) else str(v)))
    return " and ".join(_shown(v) for v in shown)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return number(value) if _is_number(value) else _said(value) if isinstance(value, (tuple, list)) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
