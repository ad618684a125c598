"""Whatever a text holds, what is shown of it is a line of printable characters; printable text is shown as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignver.errors import InvalidInput, first_line, printable
from alignver.results import CheckResult, Rigor, Subject, Verdict

LETTERS = st.characters(exclude_categories=())  # surrogates too
TEXTS = st.text(LETTERS)
HOSTILE = "\x1b[2K\r\x07\x9b8m\u202e\u200b\ud800\U000e0041\n"


def law(show, text):
    shown = show(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
    assert show(shown) == shown
    shown.encode("utf-8")
    # The escapes say what was there: nothing is dropped, and two texts of controls never look alike.
    if "\\" not in text:
        assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == text


@given(TEXTS)
@example(HOSTILE)
@example("é‖≤漢字 \\n 'quoted'")
def test_printable(text):
    law(printable, text)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text,
        lambda text: "".join(letter if unicodedata.category(letter) != "Cc" else "?" for letter in text),
        lambda text: text.encode("ascii", "backslashreplace").decode(),
        lambda text: repr(text)[1:-1],
        lambda text: "".join(filter(str.isprintable, text)),
    ],
    ids=["nothing", "controls alone", "ASCII", "repr", "dropped"],
)
def test_the_law_catches_what_is_wrong(wrong):
    with pytest.raises((AssertionError, UnicodeEncodeError)):
        [law(wrong, text) for text in (HOSTILE, "é‖≤漢字 'quoted'", "a\\b")]


@given(TEXTS, TEXTS, TEXTS)
def test_refusals_are_a_line_and_keep_what_they_are_about(argument, got, need):
    error = InvalidInput(argument, got, need)
    assert str(error).isprintable()
    assert (error.argument, error.got, error.need) == (argument, got, need)
    assert first_line(ValueError(got)).isprintable()


@given(TEXTS, TEXTS, st.lists(TEXTS, max_size=3))
def test_results_show_a_line_for_each_sentence_and_keep_the_words(statement, reason, evidence):
    about = {"subject": Subject.DATA, "code": "rank-at-tolerance", "next_steps": (reason,)}
    result = CheckResult("rank", statement, Verdict.UNDECIDED, Rigor.NUMERICAL, reason, tuple(evidence), **about)
    shown = str(result).split("\n")
    assert all(line.isprintable() for line in shown)
    assert len(shown) == 3 + len(evidence)
    assert (result.statement, result.reason, list(result.evidence)) == (statement, reason, evidence)
