"""Names of columns in words, where a figure or a table shows them."""

import re
from pathlib import Path

from flatminima.studies import STUDIES
from flatminima.studies.claims import claims, papers
from flatminima.studies.result_files import documents
from flatminima.studies.words import SETTINGS, in_words, unit_of

RESULTS = Path(__file__).parents[2] / "results" / "studies"


def test_every_quantity_along_which_a_claim_is_tried_has_words():
    along = {(trial.x, trial.study) for claim in claims() for trial in claim.trials if trial.x}
    assert along and not [x for x, study in along if "_" in in_words(x, study)]


def test_a_name_of_two_meanings_has_those_of_its_study():
    assert in_words("ln spectral", "jia-batch") == "ln of the spectral radius of the Fisher matrix"
    assert in_words("spectral", "neyshabur-width") == "log capacity by the spectral norm"
    assert unit_of("gap", "minima-over-time") == "share of samples" != unit_of("gap")


def test_minima_over_time_has_no_name_of_code():
    (document,) = documents(RESULTS, "minima-over-time")
    results = [run["result"] for run in document["runs"] if "result" in run]
    study = STUDIES["minima-over-time"]
    drawn = [axes.get_title() + axes.get_ylabel() for axes in study.figure(results).axes]
    said = [verdict.claim for verdict in study.claims(results)]
    assert len(said) == 15 and not [text for text in (*drawn, *said) if "_" in text or not text]


def test_every_printed_setting_has_words():
    """But for keys that are words: no underscore or dot reaches a page."""
    keys = {key for paper in papers().values() for s in paper.settings for key in (s.key, *s.only)}
    assert {key for key in keys if re.search("[._]", key)} <= SETTINGS.keys()
