"""Samples drawn for each seed: others for another seed, nested in size, with their own labels."""

import pytest
import torch

from flatminima.errors import UsageError
from flatminima.studies.images import fresh, images


def test_a_seed_has_samples_of_its_own_and_a_longer_draw_begins_with_a_shorter():
    x, y = images("digits")
    one, labels = fresh("digits", 50, 3)
    again, two, longer = fresh("digits", 50, 3)[0], fresh("digits", 50, 4)[0], fresh("digits", 80, 3)[0]
    assert torch.equal(one, again) and not torch.equal(one, two) and torch.equal(longer[:50], one)
    places = [int((x == image).flatten(1).all(1).nonzero()[0]) for image in one]
    assert len(set(places)) == 50 and torch.equal(y[places], labels)  # without repeats, each with its label


def test_more_than_there_are_is_refused():
    with pytest.raises(UsageError, match="ask for fewer"):
        fresh("digits", 10**6, 0)
