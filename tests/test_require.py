"""Requirements on arguments: what each accepts, what it refuses, and with which words and code."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

import alignver
from alignver import require
from alignver.errors import InvalidInput


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_integers(value):
    accepted = require.integer("n", value, least=3, most=3)
    assert (accepted, type(accepted)) == (3, int)


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, 2, 5, math.nan])
def test_no_integers(value):
    with pytest.raises(InvalidInput, match="an integer from 3 to 4") as caught:
        require.integer("n", value, least=3, most=4)
    assert (caught.value.argument, caught.value.code) == ("n", "not-an-integer")


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1.0), np.int64(1)])
def test_numbers(value):
    accepted = require.real("tol", value, above=0.0, most=1.0)
    assert (accepted, type(accepted)) == (1.0, float)


@pytest.mark.parametrize("value", [True, "1", None, 0.0, 1.5, math.nan, math.inf, -math.inf, 1j])
def test_no_numbers(value):
    with pytest.raises(InvalidInput, match=r"a number above 0\.0") as caught:
        require.real("tol", value, above=0.0, most=1.0)
    assert caught.value.code == "not-a-number"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"least": 0}, "a non-negative number"),
        ({"above": 0}, "a positive number"),
        ({}, "a finite number"),
        ({"least": 0.8, "below": 1.0}, "a number of at least 0.8, below 1.0"),
        ({"least": 0.0, "most": 1.0}, "a number from 0.0 to 1.0"),
    ],
)
def test_ranges_in_words(limits, words):
    with pytest.raises(InvalidInput) as caught:
        require.real("x", math.nan, **limits)
    assert caught.value.need == words


def test_choices_keep_their_type():
    assert require.one_of("rank", 1, (0, 1)) == 1
    with pytest.raises(InvalidInput, match="one of 0, 1"):
        require.one_of("rank", True, (0, 1))
    with pytest.raises(InvalidInput):
        require.one_of("loss", np.ones(2), ("squared",))


def test_booleans_and_types():
    assert require.boolean("repair", False) is False
    with pytest.raises(InvalidInput):
        require.boolean("repair", 0)
    assert require.instance("x", "text", str, "a text") == "text"
    with pytest.raises(InvalidInput, match="type int"):
        require.instance("x", 1, str, "a text")


def test_the_code_survives_pickling():
    error = InvalidInput("x", "x=1", "2", code="wrong-type")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code) == (str(error), "wrong-type")


@pytest.mark.parametrize("value", [True, False, np.True_, np.bool_(0)])
def test_a_boolean_of_numpy_is_one(value):
    assert require.boolean("certify", value) is bool(value)


@pytest.mark.parametrize("value", [1, 0, "yes", None, np.array([True])])
def test_what_only_counts_as_a_boolean_is_refused_everywhere(value):
    with pytest.raises(InvalidInput, match="certify"):
        alignver.check_membership(np.eye(2), np.ones(2), certify=value)
    with pytest.raises(InvalidInput, match="certify"):
        alignver.check_rank(np.eye(2), certify=value)
    with pytest.raises(InvalidInput, match="certify"):
        alignver.check_safe_exploration(np.eye(3), certify=value)
