"""The errors: one line each, with what to do; their place in the tree decides the exit code."""

import pytest

from flatminima import errors
from flatminima.errors import (
    CheckpointError,
    DataError,
    FlatMinimaError,
    MissingExtra,
    ModelError,
    NumericalError,
    StaleMinimum,
    Undefined,
    UnknownName,
    UsageError,
)

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FlatMinimaError)]


def test_every_error_is_ours_and_documented():
    assert len(ALL) >= 10
    for error in ALL:
        assert error.__doc__
        assert error.__name__ in errors.__doc__


@pytest.mark.parametrize("error", [CheckpointError, DataError, MissingExtra, ModelError, UnknownName])
def test_what_the_caller_got_wrong_exits_with_2(error):
    assert issubclass(error, UsageError)
    assert issubclass(error, ValueError)


@pytest.mark.parametrize(("error", "base"), [(NumericalError, ArithmeticError), (StaleMinimum, RuntimeError)])
def test_what_went_wrong_by_itself_does_not(error, base):
    assert issubclass(error, base)
    assert not issubclass(error, UsageError)


def test_undefined_carries_its_reason_and_is_no_usage_error():
    assert Undefined("no labels").reason == "no labels"
    assert not issubclass(Undefined, UsageError)


def test_an_unknown_name_suggests_the_nearest():
    error = UnknownName("measure", "margn", ["pacgen", "margin"], "see the list")
    assert str(error) == "unknown measure 'margn': did you mean 'margin'? (see the list)"


def test_an_unknown_name_near_nothing_lists_what_there_is():
    assert str(UnknownName("loss", "xyzzy", {"b", "a"})) == "unknown loss 'xyzzy': known: a, b"


def test_a_missing_extra_says_what_to_install():
    text = str(MissingExtra("datasets", "data", "reading folders"))
    assert text == "reading folders needs 'datasets', which is not installed: pip install 'flatminima[data]'"
