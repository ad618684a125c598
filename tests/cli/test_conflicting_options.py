"""Options of which one would have no effect, and files that would overwrite another, are refused."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.arrays import EPS
from alignver.checks import membership, rank
from alignver.cli import main, options
from alignver.linalg import rank_rules

RANK = ("check", "rank", "A.npy")

CONFLICTS = {
    "quiet and verbose": ((*RANK, "--quiet", "--verbose"), "--quiet with --verbose"),
    "exact without a proof": ((*RANK, "--method", "exact", "--no-certify"), "exact arithmetic is a proof"),
    "a plan as JSON": ((*RANK, "--plan", "--json"), "--plan with --json; needs one of them"),
    "JUnit on stdout": ((*RANK, "--junit", "-"), "--junit: got -; needs the name of a file"),
    "one file for two reports": ((*RANK, "--html", "out", "--junit", "./out"), "the file of --html"),
    "a page over the input": ((*RANK, "--html", "A.npy"), "A.npy, which is read"),
    "a page over an array's file": (("check", "rank", "A.npz:A", "--html", "A.npz"), "A.npz, which is read"),
    "a page over a named input": (("verify", "proof", "--input", "A=A.npy", "--html", "A.npy"), "A.npy, which is read"),
    "JUnit over the input": ((*RANK, "--junit", "./A.npy"), "A.npy, which is read"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_refused(name, tmp_path, monkeypatch, capsys):
    words, expected = CONFLICTS[name]
    np.save(tmp_path / "A.npy", np.eye(2))
    before = (tmp_path / "A.npy").read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main.run(list(words))
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert out == ""
    assert (tmp_path / "A.npy").read_bytes() == before
    assert not (tmp_path / "out").exists()


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main.run(list(arguments))
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def help_of(capsys, *command):
    with pytest.raises(SystemExit):
        main.run([*command, "--help"])
    return " ".join(capsys.readouterr().out.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rank", "7"), "--rank: got 7; needs an integer"),
        (("--rank", "1.5"), "--rank: got '1.5'; needs an integer\n"),
        (("--tolerance", "x"), "--tolerance: got 'x'; needs a number\n"),
        (("--tolerance", "-1"), "--tolerance: got -1.0; needs a non-negative number"),
        (("--method", "lstsq"), "--method: got 'lstsq'; needs one of 'auto', 'svd', 'qr', 'exact'"),
        (("--method", "exact", "--no-certify"), "--certify: got --method exact with --no-certify; needs --certify: "),
        (("--rule", "x"), "--rule: got x; needs one of 'press', "),
        (("--html", "gone/a.html"), "--html: got gone/a.html, in the folder gone, which does not exist"),
        (("--expected", "1"), "no such option: --expected"),
    ],
)
def test_messages_are_about_the_options_of_the_command_line(tmp_path, monkeypatch, capsys, arguments, words):
    np.save(tmp_path / "A.npy", np.eye(2))
    monkeypatch.chdir(tmp_path)
    assert words in refusal(capsys, *RANK, *arguments)


def test_the_help_shows_the_values_that_are_accepted(capsys):
    text = {name: help_of(capsys, "check", name) for name in ("membership", "rank", "alignment")}
    for name, methods, choices in (
        ("membership", membership.METHODS, options.Method),
        ("alignment", membership.METHODS, options.Method),
        ("rank", rank.METHODS, options.RankMethod),
    ):
        assert tuple(choices) == methods
        assert f"{', '.join(methods[:-1])} or {methods[-1]}." in text[name]
        *others, last = rank_rules.RULES
        assert f"{', '.join(others)} or {last};" in text[name]
    assert [name for name in EPS if name != "float64" and name not in text["rank"]] == []
