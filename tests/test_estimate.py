"""`Estimate`: finite or undefined with a reason, and what leaves it as JSON, text or pickle."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch

from flatminima import Estimate


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match=r"an Estimate is finite: use Estimate.missing\(reason\)"):
        Estimate(value)


@pytest.mark.parametrize("stderr", [math.nan, math.inf, -1e-9])
def test_a_standard_error_is_finite_and_not_negative(stderr):
    with pytest.raises(ValueError, match=r"got stderr=.*finite and not negative"):
        Estimate(1.0, stderr)


@pytest.mark.parametrize(("value", "undefined"), [(None, None), (1.0, "why")])
def test_exactly_one_of_value_and_reason(value, undefined):
    with pytest.raises(ValueError, match="give exactly one"):
        Estimate(value, undefined=undefined)


def test_an_undefined_value_has_no_standard_error():
    with pytest.raises(ValueError, match=r"got stderr=0.1 of an undefined value"):
        Estimate(None, 0.1, undefined="why")


@pytest.mark.parametrize("options", [{"direction": "up"}, {"kind": "guess"}])
def test_directions_and_kinds_are_the_known_ones(options):
    with pytest.raises(ValueError, match=r"expected one of \('lower', 'higher'\) and one of \('score', 'bound'"):
        Estimate(1.0, **options)


def test_mean_and_standard_error_in_closed_form():
    """s with n - 1: for 1, 2, 6 the variance is 7."""
    found = Estimate.mean(torch.tensor([[1.0, 2.0, 6.0]]), direction="higher", unit="nat")
    assert found.value == 3.0
    assert found.stderr == pytest.approx(math.sqrt(7 / 3), rel=1e-15)
    assert (found.details, found.direction) == ({"n": 3, "unit": "nat"}, "higher")


def test_one_sample_has_a_value_and_no_standard_error():
    found = Estimate.mean(torch.tensor([4.0]))
    assert (found.value, found.stderr, found.details["n"]) == (4.0, None, 1)


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got no samples"):
        Estimate.mean(torch.zeros(0))


def test_a_mean_counts_what_is_not_finite_and_averages_none_of_it():
    found = Estimate.mean(torch.tensor([1.0, math.nan, math.inf, 2.0]), subset=3)
    assert found.undefined == "2 of 4 terms are not finite"
    assert found.details == {"n": 4, "subset": 3}


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_squares_beyond_float64_do_not_spoil_the_standard_error(scale):
    found = Estimate.mean(torch.tensor([1.0, 2.0, 6.0]).double() * scale)
    assert found.value == pytest.approx(3 * scale, rel=1e-15)
    assert found.stderr == pytest.approx(math.sqrt(7 / 3) * scale, rel=1e-14)


def test_float32_samples_are_averaged_in_float64():
    """A float32 mean of 2^24 + 1 halves loses the last digits."""
    samples = torch.cat([torch.full((1,), 2.0**24), torch.full((3,), 0.5)])
    assert Estimate.mean(samples).value == (2.0**24 + 1.5) / 4


@pytest.mark.parametrize("number", [np.float32(1.5), torch.tensor(1.5), np.float64(1.5)])
def test_numbers_of_libraries_become_floats(number):
    found = Estimate(number, stderr=number)
    assert type(found.value) is float
    assert type(found.stderr) is float
    assert found == Estimate(1.5, 1.5)


def test_missing_carries_reason_direction_and_details():
    found = Estimate.missing("no labels", direction="higher", n=3)
    assert (found.value, found.undefined, found.direction, found.details) == (None, "no labels", "higher", {"n": 3})
    with pytest.raises(ValueError, match="undefined: no labels"):
        float(found)


def test_text():
    assert str(Estimate(3.14159)) == "3.142"
    assert str(Estimate(3.14159, 0.0123)) == "3.142 +- 0.012"
    assert str(Estimate.missing("no labels")) == "undefined: no labels"
    assert float(Estimate(2.5)) == 2.5
    assert "value=2.5" in repr(Estimate(2.5))


def test_frozen_all_the_way_down_and_hashable():
    details = {"layers": {"a": 1.0}}
    found = Estimate(1.0, details=details)
    details["later"] = 2
    assert "later" not in found.details
    with pytest.raises(TypeError):
        found.details["n"] = 1
    with pytest.raises(AttributeError):
        found.value = 2.0
    assert hash(found) == hash(Estimate(1.0, details={"layers": {"a": 1.0}}))


def test_with_details_adds_and_keeps_the_rest():
    found = Estimate(1.0, 0.5, {"n": 3}, direction="higher").with_details(rho=2.0)
    assert found == Estimate(1.0, 0.5, {"n": 3, "rho": 2.0}, direction="higher")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_and_pickles(again):
    for found in (Estimate(1.0, 0.5, {"layers": {"a": 1.0}}, None, "higher", "bound"), Estimate.missing("why", n=1)):
        assert again(found) == found


def test_to_dict_is_strict_json_whatever_is_in_the_details():
    details = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf, 1.0],
        "tensor": torch.tensor([1.0, math.nan]),
        "array": np.array([[1, 2]]),
        "number": np.float32(0.5),
        "count": np.int64(3),
        "layers": {0: (1.0, None), "b": True},
        "set": {4},
        "dtype": torch.float32,
    }
    document = json.loads(json.dumps(Estimate(1.0, 0.5, details).to_dict(), allow_nan=False))
    assert document == {
        "value": 1.0,
        "stderr": 0.5,
        "undefined": None,
        "direction": "lower",
        "kind": "score",
        "code": None,
        "details": {
            "nan": None,
            "inf": [None, None, 1.0],
            "tensor": [1.0, None],
            "array": [[1, 2]],
            "number": 0.5,
            "count": 3,
            "layers": {"0": [1.0, None], "b": True},
            "set": [4],
            "dtype": "torch.float32",
        },
    }
