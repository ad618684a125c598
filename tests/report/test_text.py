"""The text report says what str(result) says, and adds colour, folding and tables."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from alignver.checks.exploration import check_safe_exploration
from alignver.report import text
from alignver.results import Bound, CheckResult, Rigor, Subject, Tolerance, Verdict
from tests.features.features import features

RULES = (
    {"rule": "press", "tolerance": 3e-13, "rank": 5, "shipped_by": ""},
    {"rule": "golub", "tolerance": 2e-11, "rank": 4, "shipped_by": "NumPy, PyTorch"},
)


def result(**changes):
    fields = {
        "name": "rank",
        "statement": "A has rank 5 (full)",
        "verdict": Verdict.FAILS,
        "rigor": Rigor.NUMERICAL,
        "reason": "rank 4 at tolerance 2e-11, so that one of the rows is a combination of the four others; take it out",
        "evidence": ("A is 5 x 9",),
        "bounds": (Bound("residual", 0.5, "<=", 1.5e-8),),
        "tolerance": Tolerance("golub", 2e-11, "s_1 eps max(N, d)", "a book", 2.0**-52),
        "cost": {"seconds": 0.25},
        "subject": Subject.COMPUTED_MATRIX,
        "code": "rank-at-tolerance",
    }
    return CheckResult(**{**fields, **changes})


def shown(value: CheckResult, width: int, **options) -> str:
    stream = io.StringIO()
    text.put(Console(file=stream, width=width, highlight=False), text.render(value, width, **options))
    return stream.getvalue()


@pytest.mark.parametrize("verdict", list(Verdict))
def test_what_is_piped_is_what_str_says(verdict):
    value = result(verdict=verdict)
    assert shown(value, 4000) == f"{value}\n"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_width_has_the_same_words(width):
    value = result(measured={"rules": RULES, "methods": {"svd": {"verdict": "FAILS"}, "qr": {"verdict": "HOLDS"}}})
    page = shown(value, width)
    assert max(map(len, page.splitlines())) <= width
    assert str(value).split() == [word for word in shown(result(), width).split() if word]
    for word in ("press", "golub", "svd", "PyTorch"):
        assert word in page


def test_the_verdict_keeps_its_column():
    columns = {
        shown(result(verdict=verdict, rigor=rigor), 80).splitlines()[0].index(str(verdict))
        for verdict in Verdict
        for rigor in (Rigor.NUMERICAL, Rigor.STATISTICAL)
    }
    assert len(columns) == 1


def test_a_long_statement_pushes_the_verdict_to_a_line_of_its_own():
    page = shown(result(statement="x" * 75), 80).splitlines()
    assert page[0] == "x" * 75
    assert page[1].split() == ["FAILS", "numerical", "(computed", "matrix)"]


def test_rules_that_agree_take_one_line_and_a_table_when_asked():
    value = result(measured={"rules": [{**row, "rank": 5} for row in RULES]})
    assert "rank rules: all 2 give rank 5" in shown(value, 80)
    assert "> golub" not in shown(value, 80)
    assert "> golub" in shown(value, 80, verbosity=1)


def test_rules_that_a_bound_does_not_settle_have_no_rank():
    rows = [{**RULES[0], "rank": None}, RULES[1]]
    assert "rank rule" not in shown(result(measured={"rules": rows}), 80)
    table = shown(result(measured={"rules": rows}), 80, verbosity=1).splitlines()
    assert [line.split() for line in table if "press" in line] == [["press", "3e-13", "-"]]


def test_the_rules_of_safe_exploration_are_shown():
    value = check_safe_exploration(features(60, 9), width=8)
    rules = [row["rule"] for row in value.measured["rules"]]
    assert f"rank rules: all {len(rules)} give rank 60" in shown(value, 4000)
    rows = [line.split() for line in shown(value, 4000, verbosity=1).splitlines()]
    for rule in rules:
        assert [row[2] for row in rows if row[:1] == [rule] and row[2:] and row[2].isdecimal()] == ["60"]


def test_one_rule_alone_is_not_called_all():
    page = shown(result(measured={"rules": RULES[:1]}), 80)
    assert "rank rule press: rank 5 at tolerance 3e-13" in page


def test_rules_that_differ_are_shown():
    page = shown(result(measured={"rules": RULES}), 80)
    assert "> golub" in page
    assert "NumPy, PyTorch" in page


def test_quiet_is_one_line_and_notes_come_before_the_cost():
    assert len(shown(result(), 80, verbosity=-1).splitlines()) == 1
    lines = shown(result(), 80, notes=("a note",)).splitlines()
    assert lines[-2:] == ["  a note", "  0.2 s"]


def test_verbose_shows_bounds_tolerance_and_numbers():
    page = shown(result(measured={"rank": 4, "levels_near_tolerance": [1.0]}), 80, verbosity=1)
    for words in ("not met", "s_1 eps max(N, d)", "measured", "rank"):
        assert words in page
    assert "levels" not in page


def test_a_command_to_copy_is_never_folded():
    note = "certificate out; re-check with: alignver verify out" + " --input J=folder/J.npy" * 5
    assert note in shown(result(), 80, notes=(note,))


def test_markup_in_a_name_is_text():
    assert "[red]file[/red]" in shown(result(reason="no [red]file[/red]"), 80)


def test_no_colour_when_piped():
    stream = io.StringIO()
    out = text.console(stream)
    out.print(text.render(result(measured={"rules": RULES}), out.width, verbosity=1))
    assert "\x1b" not in stream.getvalue()
    assert out.width > 1000


def test_numbers_in_tables():
    assert text.number(float("inf")) == "inf"
    assert text.number("svd") == "svd"
    assert text.numbers_table({"rows": (1, 2)}) is None


@pytest.mark.parametrize("width", [36, 40, 60])
def test_a_narrow_terminal_never_cuts_a_number(width):
    """Words wrap; a number that lost its end would be another one."""
    bounds = (Bound("s_min(phi), press", 1.5e-3, ">", 3.21e-13), Bound("a bound", 1.25e-300, "<=", 6.4e-12))
    words = shown(result(bounds=bounds), width, verbosity=1).split()
    for number in ("0.0015", "3.21e-13", "1.25e-300", "6.4e-12", ">", "<=", "met"):
        assert number in words


HOSTILE = "\x1b[8m\r\x07\x9b8m\u202e\nFORGED  HOLDS"


def test_no_text_of_a_result_draws_or_begins_a_line():
    value = result(
        statement=HOSTILE,
        reason=HOSTILE,
        evidence=(HOSTILE,),
        measured={
            HOSTILE: HOSTILE,
            "rules": ({**RULES[0], "rule": HOSTILE}, {**RULES[1], "shipped_by": HOSTILE}),
            "methods": {HOSTILE: {HOSTILE: HOSTILE}},
        },
        bounds=(Bound(HOSTILE, 0.5, "<=", 1.5e-8),),
        tolerance=Tolerance(HOSTILE, 2e-11, HOSTILE, HOSTILE, 2.0**-52),
    )
    page = shown(value, 4000, verbosity=1, notes=(HOSTILE,))
    assert page.count(r"\x1b[8m\x0d\x07\x9b8m\u202e\x0aFORGED") == 15
    assert page.replace("\n", " ").isprintable()
    assert not any(line.lstrip().startswith("FORGED") for line in page.splitlines())
    assert (value.statement, value.reason, value.evidence) == (HOSTILE, HOSTILE, (HOSTILE,))


def test_blanks_are_a_statement_too():
    assert "FAILS" in shown(result(statement=" " * 100, reason=" "), 80)


def test_letters_of_any_language_are_left_as_they_are():
    assert "‖é‖ ≤ 漢字" in shown(result(reason="‖é‖ ≤ 漢字"), 80)


def test_the_console_sends_no_controls_but_its_own():
    stream = io.StringIO()
    out = text.console(stream)
    text.put(out, Text(HOSTILE, style="bold"), HOSTILE)
    assert stream.getvalue().replace("\n", " ").isprintable()


@pytest.mark.parametrize("width", [50, 80])
@pytest.mark.parametrize("letter", ["a", "漢"])
def test_no_words_of_a_result_begin_a_row(width, letter):
    for filling in range(width - 20, width + 1):
        words = f"{letter * (filling // cell_len(letter))} FORGED  HOLDS"
        value = result(statement=words, reason=words, evidence=(f"to be copied: alignver {' ' * filling} FORGED",))
        rows = [part for row in shown(value, width).splitlines() for part in chop_cells(row, width)]  # as terminals do
        assert not any(part.startswith("FORGED") for part in rows)
