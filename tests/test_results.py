"""Results: frozen, three-valued, honest about proofs, and the same after a JSON round trip."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from alignver.errors import InvalidInput, MissingDependency
from alignver.results import (
    Bound,
    CheckResult,
    Report,
    Rigor,
    Subject,
    Tolerance,
    Verdict,
    VerificationFailed,
    plain,
    worst,
)


class Paper:
    """Stands for a certificate."""

    def summary(self):
        return {"claim": "full row rank", "bytes": 12}


def result(**changes) -> CheckResult:
    fields = {
        "name": "rank",
        "statement": "A has rank 3",
        "verdict": Verdict.HOLDS,
        "rigor": Rigor.NUMERICAL,
        "reason": "because",
        "subject": Subject.COMPUTED_MATRIX,
        "code": "rank-at-tolerance",
        "next_steps": ("first this", "then that"),
        "plan": {"engine": "dense", "peak_bytes": 12},
        "evidence": ("first", "second"),
        "measured": {"rank": np.int64(3), "levels": np.array([1.0, math.inf]), "deep": {"list": [1, "a", None, True]}},
        "bounds": (Bound("residual", 1e-15, "<=", 1e-8),),
        "tolerance": Tolerance("golub", 1e-12, "formula", "source", 2.0**-52),
        "witness": {"rows": [1, 2]},
        "cost": {"seconds": 0.25, "peak_bytes": 2_000_000_000},
    }
    return CheckResult(**{**fields, **changes})


def test_no_truth_value():
    for thing in (*Verdict, *Rigor, *Subject, result()):
        with pytest.raises(TypeError, match="no truth value"):
            bool(thing)


def test_frozen_all_the_way_down():
    r = result()
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.reason = "other"
    for change in (
        lambda: r.measured.update(rank=4),
        lambda: r.measured.__setitem__("rank", 4),
        lambda: r.measured["deep"].pop("list"),
        lambda: r.measured.__delitem__("rank"),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change()
    assert r.measured["levels"] == (1.0, math.inf)


def test_proof_needs_what_rechecks_it():
    with pytest.raises(ValueError, match="certificate"):
        result(rigor=Rigor.PROOF)
    with pytest.raises(ValueError, match="witness"):
        result(rigor=Rigor.PROOF, verdict=Verdict.FAILS, witness=None)
    assert result(rigor=Rigor.PROOF, certificate=Paper()).certificate.summary()["bytes"] == 12
    assert result(rigor=Rigor.PROOF, verdict=Verdict.FAILS).rigor is Rigor.PROOF


def test_enumerations_are_strings():
    assert result().verdict == "HOLDS"
    assert f"{result().rigor} {result().subject}" == "NUMERICAL COMPUTED_MATRIX"
    assert json.dumps([result().subject]) == '["COMPUTED_MATRIX"]'
    assert type(plain(Verdict.HOLDS)) is str


def test_reports_of_version_1_are_read():
    """They had no subject, code, next steps and plan."""
    document = Report((result(),)).to_dict()
    document["schema"] = 1
    for field in ("subject", "code", "next_steps", "plan"):
        del document["results"][0][field]
    (read,) = Report.from_json(json.dumps(document)).results
    assert (read.subject, read.code, read.next_steps, read.plan) == ("COMPUTED_MATRIX", "", (), None)
    assert read.reason == result().reason
    with pytest.raises(ValueError, match="schema 1 or 2"):
        Report.from_json(json.dumps({**document, "schema": 3}))


def test_one_line_for_a_prompt_and_a_block_for_a_notebook():
    assert repr(result()) == "<CheckResult rank: HOLDS  numerical (computed matrix); because>"
    assert result(reason="a < b")._repr_html_().startswith("<pre>A has rank 3")
    assert "a &lt; b" in result(reason="a < b")._repr_html_()
    assert str(result()).splitlines()[-3:] == ["  next: first this", "  next: then that", "  0.2 s, 2.0 GB"]


def test_require():
    assert result().require().verdict is Verdict.HOLDS
    for verdict in (Verdict.FAILS, Verdict.UNDECIDED):
        with pytest.raises(VerificationFailed, match=verdict.value) as failure:
            result(verdict=verdict).require()
        assert failure.value.result.verdict is verdict


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))], ids=["deepcopy", "pickle"])
def test_copies_are_equal(twin):
    assert twin(result()) == result()


def test_json_round_trip():
    report = Report(
        (result(), result(verdict=Verdict.FAILS, tolerance=None, witness=None)), {"seed": 3, "t": -math.inf}
    )
    text = report.to_json()
    json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
    assert Report.from_json(text) == report
    assert report.verdict is Verdict.FAILS
    assert CheckResult.from_dict(json.loads(result().to_json())) == result()
    with_paper = Report((result(rigor=Rigor.PROOF, certificate=Paper()),))
    back = Report.from_json(with_paper.to_json())
    assert back == with_paper
    assert back.results[0].certificate == {"claim": "full row rank", "bytes": 12}


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 99}', "null"])
def test_not_a_report(text):
    with pytest.raises(ValueError, match="schema"):
        Report.from_json(text)


def test_terminal_text_has_every_sentence():
    text = str(result())
    for part in ("A has rank 3", "HOLDS", "numerical", "because", "first", "second", "0.2 s", "2.0 GB"):
        assert part in text
    assert str(Report((result(), result()))).count("because") == 2


def test_only_plain_data():
    assert plain(np.float64(0.5)) == 0.5
    assert type(plain(np.float64(0.5))) is float
    assert plain((1, [2, {"a": np.zeros(2)}])) == (1, (2, {"a": (0.0, 0.0)}))
    with pytest.raises(TypeError, match="plain data"):
        plain(object())


def test_bound():
    assert Bound("a", 1, "<", 2).satisfied
    assert not Bound("a", math.nan, "<=", 2).satisfied
    with pytest.raises(ValueError, match="relation"):
        Bound("a", 1, "~", 2)


def test_worst():
    assert worst([]) is Verdict.HOLDS
    assert worst([Verdict.HOLDS, Verdict.UNDECIDED]) is Verdict.UNDECIDED
    assert worst([Verdict.UNDECIDED, Verdict.FAILS, Verdict.HOLDS]) is Verdict.FAILS


def test_errors_say_what_to_do_and_travel():
    error = pickle.loads(pickle.dumps(InvalidInput("J", "nan at (0, 1)", "finite entries")))
    assert str(error) == "J: got nan at (0, 1); needs finite entries"
    assert isinstance(error, ValueError)
    missing = pickle.loads(pickle.dumps(MissingDependency("torch", "a check of a model", "torch")))
    assert "pip install 'alignver[torch]'" in str(missing)
    assert isinstance(missing, ImportError)
