"""Our configurations against the papers' printed numbers: at the papers' scale every deviation is known by name."""

from dataclasses import replace

import pytest

from flatminima.studies import STUDIES
from flatminima.studies.setups import deviations, printed

_STEP = "step alpha of the penalty: a tenth of the loss over the gradient (0.0001)"
_SMOOTHING = "smoothing of the diagonal: none (0.999)"
_VGG = ["dropout: 0 (after each stack)", "side of the average pool, network vgg: 2 (4)"]
KNOWN = {  # each with its reason in the study's `reduction`
    "jia-regularizer": [_STEP],
    "jia-regularized-metric": [_STEP],
    "neyshabur-confusion": _VGG,
    "neyshabur-random-labels": _VGG,
    "neyshabur-width": [
        "draws of the noise: 50 (1,000)",
        "samples: 10,000 (64)",
        "steps of projected ascent: none (2,000)",
    ],
    "wang-pertopt": [
        "gamma, data cifar10 and cifar100, method PertOPT: 0.1 and 1 and 10 (10)",
        "gamma, data tinyimagenet, method PertOPT: 0.1 and 1 (1)",
        "images of the curves: held-out training and training (test and training)",
    ],
    "wang-cifar-batch": [_SMOOTHING],
    "wang-cifar-lr": [_SMOOTHING],
    "wang-mnist-batch": [_SMOOTHING],
    "wang-mnist-lr": [_SMOOTHING],
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_papers_scale_is_as_printed_but_for_what_is_said(name):
    assert deviations(STUDIES[name], "paper") == KNOWN.get(name, [])


def test_a_changed_number_is_a_deviation():
    study = STUDIES["jia-augmentation"]
    configs = [c | {"lr": 0.2} for c in study.list_runs("paper")]
    assert deviations(replace(study, configurations=lambda scale: configs), "paper") == ["learning rate: 0.2 (0.1)"]
    network = [c | {"network": {"name": "resnet20", "depth": 8}} for c in study.list_runs("paper")]
    assert deviations(replace(study, configurations=lambda scale: network), "paper") == ["depth: 8 (20)"]


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("ResNet", {"lr": 0.2}, "learning rate, name DenseNet and ResNet and WRN: 0.1 and 0.2 (0.1)"),
        ("ResNet", {"network": {"name": "resnet20", "depth": 8}}, "depth, name ResNet: 8 (20)"),
        ("WRN", {"weight_decay": 1e-4}, "l2, name WRN: 0.0001 (0.0005)"),
        ("WRN", {"network": {"name": "wide_resnet", "depth": 28, "width": 1}}, "width, name WRN: 1 (2)"),
        ("WRN", {"momentum": 0.8}, "momentum, name DenseNet and ResNet and WRN: 0.8 and 0.9 (0.9)"),
        ("DenseNet", {"batch_size": 128}, "batch size, name DenseNet: 128 (64)"),
        ("DenseNet", {"network": {"name": "densenet", "growth": 8}}, "growth, name DenseNet: 8 (12)"),
        ("DenseNet", {"epochs": 200}, "epochs, name DenseNet: 200 (300)"),
    ],
)
def test_each_network_of_table_1_is_trained_as_its_own_paper_has_it(name, changed, said):
    study = STUDIES["jia-regularizer"]
    configs = [c | changed if c["name"] == name else c for c in study.list_runs("paper")]
    assert said in deviations(replace(study, configurations=lambda scale: configs), "paper")


def test_what_a_configuration_leaves_to_its_network_is_looked_at():
    """Of N17's VGG: its width, normalisation, dropout and pool; of the small CNN that stands for it, what it has."""
    study = STUDIES["neyshabur-confusion"]
    narrow = {"width, network vgg: 16 (64)", "side of the average pool, network vgg: 1 (4)", _VGG[0]}
    assert narrow <= {*deviations(study, "half")} and "normalisation: none (batch)" in deviations(study, "smoke")
    own = [c | {"network": {"name": "vgg", "norm": "group", "width": 32}} for c in study.list_runs("paper")]
    found = deviations(replace(study, configurations=lambda scale: own), "paper")
    assert {"normalisation: group (batch)", "width, network vgg: 32 (64)"} <= {*found}


def test_known_deviations_of_n17_have_their_reason():
    for name in ("neyshabur-confusion", "neyshabur-random-labels"):
        said = STUDIES[name].reduction
        assert all("no dropout" in said[scale] and "4 x 4" in said[scale] for scale in ("half", "paper"))
        assert "250 samples" in said["half"] and "BatchNorm" in said["half"] and "BatchNorm" in said["cpu"]
    assert all(word in STUDIES["neyshabur-width"].reduction["paper"] for word in ("10,000 samples", "50 draws", "0.05"))


def test_smaller_scales_list_what_they_reduce():
    found = deviations(STUDIES["jia-confusion"], "cpu")
    assert {"true samples: 1,000 (10,000)", "augmentation: none (4-crop-f)"} <= {*found}
    assert "images of its own for each seed: no (yes)" in found
    assert deviations(STUDIES["jia-regularized-metric"], "cpu") == deviations(STUDIES["jia-regularizer"], "cpu") != []
    assert deviations(STUDIES["wang-mnist-lr"], "cpu")[0] == "training samples: 3,000 (all)"


@pytest.mark.parametrize(
    ("name", "seeds", "settings"),
    [
        ("jia-confusion", 14, {"epochs": 250, "scheme": "4-crop-f"}),
        ("jia-augmentation", 14, {"epochs": 250}),
        ("jia-batch", 5, {"epochs": 250, "scheme": "4-crop-f"}),
    ],
)
def test_half_has_the_seeds_that_its_table_says(name, seeds, settings):
    runs = [run for run in STUDIES[name].list_runs("half") if not run["target_loss"]]
    assert {run["seed"] for run in runs} == {*range(seeds)}
    assert all(settings.items() <= run.items() for run in runs)


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if "half" in study.scales])
def test_half_lies_between_cpu_and_paper(name):
    """Its seeds have data of their own, its trainings are as long as the printed ones, and it says what it reduces."""
    study = STUDIES[name]
    runs = study.list_runs("half")
    assert study.scales == ("smoke", "cpu", "half", "paper") and len(study.reduction["half"]) > 40
    seeds = {scale: {c["seed"] for c in study.list_runs(scale)} for scale in ("cpu", "half")}
    assert len(seeds["half"]) >= min(len(seeds["cpu"]), 5)
    assert all(c.get("fresh_data", name == "wang-toy") for c in runs)  # each data set of the toy is a seed
    if name.startswith("jia"):
        of_networks: dict[str, dict[str, set[int]]] = {}
        for scale in ("half", "paper"):
            for c in study.list_runs(scale):
                if not c.get("target_loss"):
                    of_networks.setdefault(c.get("name", ""), {}).setdefault(scale, set()).add(c["epochs"])
        both = [found for found in of_networks.values() if "half" in found]
        assert all(min(found["half"]) >= max(found["paper"]) for found in both) and both
        assert not [d for d in deviations(study, "half") if d.startswith(("augmentation", "images of its own", "l2"))]


def test_three_figures_ask_for_one_network():
    """Confusion 0, 4-crop-f and batch 128: J20's defaults. What decides the training is the same in all three."""
    own = {"confusion", "true", "limit"}  # of the samples: the first thousand of one draw
    found = [
        {k: v for k, v in c.items() if k not in own}
        for name in ("jia-confusion", "jia-augmentation", "jia-batch")
        for c in STUDIES[name].list_runs("half")
        if c["seed"] == 3 and c["batch_size"] == 128 and c["scheme"] == "4-crop-f" and not c["target_loss"]
        if not c.get("confusion")
    ]
    assert len(found) == 3 and found[0] == found[1] == found[2]


def test_every_study_of_an_experiment_has_printed_settings():
    without = {name for name, study in STUDIES.items() if not printed(study)}
    assert without == {"cohen-edge", "minima-over-time", "wang-rescaling"}  # the last paper has no experiment


def test_every_document_with_an_experiment_has_printed_settings():
    studies = (setting for study in STUDIES.values() for setting in printed(study))
    assert {setting.paper for setting in studies} == {"W1", "W2", "WB", "N17", "J20"}


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("wang-toy", {"eta of figure 1": 40.0}, "eta of figure 1: 40 (39)"),
        (
            "wang-toy",
            {"eta of figure 2": (10.0, 1.0)},
            "eta of figure 2: 1 and 10 (1e-5 and 0.01 and 0.1 and 1,000)",
        ),
        ("wang-toy", {"samples": 50}, "samples: 50 (100)"),  # once, though the blog prints it too
        ("wang-mnist-lr", {"optimizer": "adam"}, "optimizer: adam (sgd)"),
        ("wang-mnist-lr", {"epsilon": 0.2}, "epsilon: 0.2 (0.1)"),
        ("wang-cifar-batch", {"printed_rho": False}, "rho as printed, target loss none: no (yes)"),
        ("wang-pertopt", {"eps": 0.1}, "eps: 0.1 (1e-5)"),
        ("wang-pertopt", {"beta2": 0.5}, "beta2: 0.5 (0.1)"),
    ],
)
def test_what_no_configuration_holds_is_compared_too(name, changed, said):
    study = STUDIES[name]
    configs = [c | changed for c in study.list_runs("paper")]
    found = deviations(replace(study, configurations=lambda scale: configs), "paper")
    assert found.count(said) == 1, found


def test_the_optimizer_and_batch_of_pertopt_go_with_the_data_set():
    study = STUDIES["wang-pertopt"]
    swapped = {"cifar10": "tinyimagenet", "cifar100": "tinyimagenet", "tinyimagenet": "cifar10"}
    configs = [c | {"data": swapped[c["data"]]} for c in study.list_runs("paper")]
    assert not [d for d in deviations(replace(study, configurations=lambda scale: configs), "paper") if "batch" in d]
    configs = [c | {"batch_size": 64} for c in study.list_runs("paper")]
    found = deviations(replace(study, configurations=lambda scale: configs), "paper")
    assert {"batch size, data cifar10 and cifar100: 64 (128)", "batch size, data tinyimagenet: 64 (200)"} <= {*found}
