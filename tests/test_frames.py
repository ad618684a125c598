"""Data frames and series of pandas and polars: as arrays without a change of a number, or refused with a remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.arrays import from_frame
from alignver.theory.losses import modified_targets

FRACTIONS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]
WHOLE = [1, 2, 3, 4, 5, 7]


def of_pandas(pandas):
    """Frames, each with what it has to become."""
    nullable = {"a": pandas.array(WHOLE, dtype="Int64"), "b": pandas.array(FRACTIONS, dtype="Float64")}
    return {
        "dummies": (pandas.get_dummies(pandas.DataFrame({"x": FRACTIONS, "group": list("abcabc")})),
                    np.column_stack([FRACTIONS, *np.tile(np.eye(3), (2, 1)).T])),
        "nullable": (pandas.DataFrame({**nullable, "c": pandas.array([True, False] * 3, dtype="boolean")}),
                     np.column_stack([WHOLE, FRACTIONS, [1, 0] * 3])),
        "objects": (pandas.DataFrame({"a": np.array(WHOLE, dtype=object), "b": FRACTIONS}),
                    np.column_stack([WHOLE, FRACTIONS])),
        "equal names": (pandas.DataFrame(np.column_stack([WHOLE, FRACTIONS]), columns=["a", "a"]),
                        np.column_stack([WHOLE, FRACTIONS])),
        "series": (pandas.Series(pandas.array(WHOLE, dtype="Int64")), np.array(WHOLE)),
    }  # fmt: skip


def of_polars(polars):
    return {
        "bools": (polars.DataFrame({"x": FRACTIONS, "b": [True, False] * 3}), np.column_stack([FRACTIONS, [1, 0] * 3])),
        "integers": (polars.DataFrame({"x": WHOLE, "y": WHOLE}), np.column_stack([WHOLE, WHOLE])),
        "series": (polars.Series(FRACTIONS), np.array(FRACTIONS)),
    }


LIBRARIES = {"pandas": of_pandas, "polars": of_polars}


@pytest.mark.parametrize("library", LIBRARIES)
def test_numbers_do_not_change(library):
    for name, (value, expected) in LIBRARIES[library](pytest.importorskip(library)).items():
        array = from_frame(value, "X")
        np.testing.assert_array_equal(array, expected, err_msg=name)
        assert array.dtype.kind in "iuf", name


def checks(value):
    """Every kind of call that takes an array."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    yield lambda: av.check_rank(value)
    yield lambda: av.check_data(value, np.arange(6) % 2)
    yield lambda: av.check_alignment(net, value, torch.arange(6) % 2, loss="cross_entropy")


def test_every_call_takes_a_frame():
    pandas = pytest.importorskip("pandas")
    for check in checks(pandas.DataFrame({"x": FRACTIONS, "b": [True, False] * 3})):
        assert str(check().verdict) == "HOLDS"


def refused_by_pandas(pandas):
    dates = pandas.date_range("2020", periods=6)
    return {
        "missing values in the column 'a'": (
            pandas.DataFrame({"a": pandas.array([1, None, 3, 4, 5, 7], dtype="Int64"), "b": FRACTIONS}),
            lambda frame: frame.dropna(), lambda frame: frame.fillna(0)),
        "missing values in the column 'b'": (
            pandas.DataFrame({"a": WHOLE, "b": [np.nan, *FRACTIONS[1:]]}), lambda frame: frame.fillna(0)),
        "texts in the column 'a'": (pandas.DataFrame({"a": list("abcabc"), "b": FRACTIONS}), pandas.get_dummies),
        "datetime64": (pandas.DataFrame({"a": dates, "b": WHOLE}),
                       lambda frame: frame.assign(a=frame["a"].astype("int64") // 10**15)),
        "integers in the column 'a'": (pandas.DataFrame({"a": [2**60 + 1] * 6, "b": FRACTIONS}),),
        "without columns": (pandas.DataFrame(index=range(6)),),
    }  # fmt: skip


def refused_by_polars(polars):
    decimals = polars.Series(WHOLE).cast(polars.Decimal(10, 2))
    return {
        "missing values": (polars.DataFrame({"a": [1, None, 2, 3, 4, 5], "b": FRACTIONS}),
                           lambda frame: frame.drop_nulls(), lambda frame: frame.fill_null(0)),
        "texts": (polars.DataFrame({"a": list("abcabc"), "b": FRACTIONS}), lambda frame: frame.to_dummies("a")),
        "Decimal": (polars.DataFrame({"a": decimals, "b": FRACTIONS}), lambda frame: frame.cast(float)),
        "a LazyFrame": (polars.DataFrame({"a": WHOLE, "b": FRACTIONS}).lazy(), lambda frame: frame.collect()),
    }  # fmt: skip


REFUSED = {"pandas": refused_by_pandas, "polars": refused_by_polars}


@pytest.mark.parametrize("library", REFUSED)
def test_other_columns_are_refused_with_a_remedy(library):
    for words, (value, *remedies) in REFUSED[library](pytest.importorskip(library)).items():
        for check in checks(value):
            with pytest.raises(av.InvalidInput, match=words):
                check()
        for remedy in remedies:
            assert from_frame(remedy(value), "X").dtype.kind in "iuf"


def named(container):
    if container == "list":
        return list("abab")
    if container == "array":
        return np.array(list("abab"))
    if container == "objects":
        return np.array(list("abab"), dtype=object)
    library, kind = container.split()
    module = pytest.importorskip(library)
    if kind == "Categorical":
        return module.Series(module.Categorical(list("abab")))
    return module.Series(list("abab")) if kind == "Series" else module.DataFrame({"label": list("abab")})


@pytest.mark.parametrize(
    "container",
    ["list", "array", "objects", "pandas Series", "pandas Categorical", "pandas DataFrame", "polars Series"],
)
def test_names_of_classes_are_labels(container):
    """In sorted order, as the report says."""
    torch.manual_seed(0)
    Y, X = named(container), torch.randn(4, 2)
    expected = modified_targets([0, 1, 0, 1], "cross_entropy", 4, 2)
    np.testing.assert_array_equal(modified_targets(Y, "cross_entropy", 4, 2), expected)
    assert str(av.check_data(X, Y, loss="cross_entropy").verdict) == "HOLDS"
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    result = av.check_alignment(net, X, Y, loss="cross_entropy")
    assert str(result.verdict) == "HOLDS"
    assert "the classes are in sorted order: 0 is 'a', 1 is 'b'" in result.evidence
    again = av.check_alignment(net, X, torch.tensor([0, 1, 0, 1]), loss="cross_entropy")
    assert result.measured["kappa"] == again.measured["kappa"]


def test_conflicts_between_names():
    result = av.check_data([[0.0], [0.0], [1.0]], ["yes", "no", "yes"])
    assert str(result.verdict) == "FAILS"


def test_names_that_are_no_labels():
    for loss, m_y, words in (("cross_entropy", 3, "2 names of classes for 3 outputs"), ("squared", 1, "numbers"),
                             ("binary_cross_entropy", 2, "names of classes")):  # fmt: skip
        with pytest.raises(av.InvalidInput, match=words):
            modified_targets(list("abab"), loss, 4, m_y)
    classes = ["a", "b", "c"]
    assert modified_targets([classes.index(name) for name in "abab"], "cross_entropy", 4, 3).shape == (4, 3)
    assert modified_targets(list("abab"), "binary_cross_entropy", 4, 1).ravel().tolist() == [-1.0, 1.0, -1.0, 1.0]
