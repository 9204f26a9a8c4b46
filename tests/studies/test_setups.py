"""Our configurations against the papers' printed numbers: at the papers' scale every deviation is known by name."""

from dataclasses import replace

import pytest

from flatminima.studies import STUDIES
from flatminima.studies.setups import deviations, printed

KNOWN = {  # each with its reason in the study's `reduction`
    "neyshabur-confusion": ["samples: 10,000 (64)"],
    "neyshabur-random-labels": ["samples: 50,000 (64)"],
    "neyshabur-width": ["draws: 50 (1000)", "samples: 10,000 (64)", "ascent_steps: none (2000)"],
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_papers_scale_is_as_printed_but_for_what_is_said(name):
    assert deviations(STUDIES[name], "paper") == KNOWN.get(name, [])


def test_a_changed_number_is_a_deviation():
    study = STUDIES["jia-augmentation"]
    configs = [c | {"lr": 0.2} for c in study.list_runs("paper")]
    assert deviations(replace(study, configurations=lambda scale: configs), "paper") == ["lr: 0.2 (0.1)"]
    network = [c | {"network": {"name": "resnet20", "depth": 8}} for c in study.list_runs("paper")]
    assert deviations(replace(study, configurations=lambda scale: network), "paper") == ["network.depth: 8 (20)"]


def test_smaller_scales_list_what_they_reduce():
    found = deviations(STUDIES["jia-confusion"], "cpu")
    assert "true: 1000 (10,000)" in found and "scheme: none (4-crop-f)" in found and "fresh_data: False (True)" in found
    assert deviations(STUDIES["jia-regularized-metric"], "cpu") == deviations(STUDIES["jia-regularizer"], "cpu") != []
    assert deviations(STUDIES["wang-mnist-batch"], "cpu") == ["limit: 3000 (all)"]


def test_every_study_of_an_experiment_has_printed_settings():
    without = {name for name, study in STUDIES.items() if not printed(study)}
    assert without == {"cohen-edge", "minima-over-time", "wang-rescaling"}  # the last paper has no experiment
