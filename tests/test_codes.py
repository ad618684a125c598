"""Codes of answers: each is explained, and each explanation has an example that gives it."""

from __future__ import annotations

import ast
import fnmatch
from pathlib import Path

import numpy as np
import pytest

import alignver as av
from alignver.codes import answers, explain, refusals
from alignver.require import CODES

ROOT = Path(__file__).parents[1]
J = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])


def explained(code: str) -> bool:
    return any(fnmatch.fnmatchcase(code, pattern) for kind in answers() for pattern in kind.codes)


def calls() -> list[ast.Call | ast.Dict]:
    paths = (ROOT / "alignver").rglob("*.py")
    return [n for path in paths for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call | ast.Dict)]


def refused(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InvalidInput"


def literals() -> set[str]:
    """Every string that a source file gives as the code of an answer, whole."""
    collected = set()
    for node in calls():
        if isinstance(node, ast.Call):
            values = [] if refused(node) else [word.value for word in node.keywords if word.arg == "code"]
        else:
            values = [value for key, value in zip(node.keys, node.values) if getattr(key, "value", "") == "code"]
        for value in values:
            parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            collected |= {part.value for part in parts if isinstance(part, ast.Constant) and part.value}
    return collected - set(CODES)


def test_codes_in_the_source_are_explained():
    assert len(literals()) > 15
    assert [code for code in sorted(literals()) if not explained(code)] == []


def test_codes_of_refusals_are_explained():
    """Every code that a source file gives to InvalidInput, as the fourth argument or by its name."""
    codes = set()
    for node in filter(refused, calls()):
        values = node.args[3:] + [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        codes |= {value.value for value in values if isinstance(value, ast.Constant)}
    assert "not-an-integer" in codes <= set(CODES)
    assert [kind.codes for kind in refusals()] == [(code,) for code in CODES]


def run(example: str) -> dict:
    torch = pytest.importorskip("torch")
    names: dict = {"av": av, "np": np, "torch": torch}
    try:
        exec(example, names)
    finally:
        torch.set_flush_denormal(False)
    return names


@pytest.mark.parametrize("kind", answers(), ids=lambda kind: kind.codes[0])
def test_an_example_gives_its_answer_and_what_to_do_next(kind):
    result = run(kind.example)["result"]
    assert any(fnmatch.fnmatchcase(result.code, pattern) for pattern in kind.codes), result.code
    assert result.next_steps or result.verdict == "HOLDS"
    assert all(step == step.strip() and not step.endswith((".", ";")) for step in result.next_steps)
    for step in result.next_steps:
        assert f"next: {step}" in str(result)


@pytest.mark.parametrize("kind", refusals(), ids=lambda kind: kind.codes[0])
def test_an_example_gives_its_refusal(kind):
    with pytest.raises(av.InvalidInput) as caught:
        run(kind.example)
    assert caught.value.code == kind.codes[0], caught.value


def test_an_unknown_code_names_a_similar_one():
    assert explain("figure1a-error").codes[0] == "figure*"
    assert str(explain("data-conflict")).splitlines()[-1] == "    result = av.check_data([[0.0], [0.0]], [0, 1])"
    with pytest.raises(av.InvalidInput, match="did you mean 'data-conflict'"):
        explain("data-conflicts")


ANSWERS = {
    "membership-gram": lambda: av.check_membership(J, [1.0, 2.0]),
    "rank-tolerance-decides": lambda: av.check_rank(np.diag([1.0, 1e-3, 3 * 2.0**-52]), certify=False),
    "exploration-equal-inputs": lambda: av.check_safe_exploration(np.eye(12, 4), X=np.zeros((12, 1))),
    "exploration-rank-not-at-tolerance": lambda: av.check_safe_exploration(
        [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]], q=np.zeros((2, 2)), method="dense"
    ),
}


@pytest.mark.parametrize("code", ANSWERS)
def test_an_answer_has_its_code(code):
    result = ANSWERS[code]()
    assert result.code == code
    assert result.subject is (av.Subject.DATA if code.endswith("equal-inputs") else av.Subject.COMPUTED_MATRIX)


def test_next_steps_have_the_numbers():
    tall = av.check_membership([[1.0], [2.0], [3.0]], [1.0, 2.0, 4.0])
    assert tall.next_steps[0].startswith("d = 1 < N = 3: full row rank is impossible; at least 2 more columns")
    flat = av.check_rank(np.ones((3, 3)), certify=False)
    assert "rank=1" in flat.next_steps[0]
    narrow = av.check_safe_exploration(np.vander(np.linspace(0.1, 1.0, 12), 4), width=2)
    assert "to 3 units or more" in narrow.next_steps[0]


def test_steps_of_an_alignment():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1).double()
    X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [1.0, 3.0]])
    proved = av.check_alignment(model, X[:2], [1.0, 2.0], loss="squared")
    assert proved.code.startswith("alignment-")
    assert proved.plan["engine"] == "dense"
    assert "av.AlignmentTracker" in proved.next_steps[0]
    refuted = av.check_alignment(model, X[[0, 1, 3, 4]], [1.0, 2.0, 0.0, 1.0], loss="squared")
    assert refuted.next_steps[0].startswith("d = 3 < N = 4: full row rank is impossible; 1 more parameter, or fewer")
    conflict = av.check_alignment(model, X[:3], [1.0, 2.0, 3.0], loss="squared")
    assert (conflict.code, conflict.subject) == ("alignment-data-conflict", "DATA")
    assert conflict.next_steps[0].startswith("look at these samples")
    squeezed = torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Tanh(), torch.nn.Linear(1, 4))
    narrow = av.check_alignment(squeezed, torch.randn(4, 8), torch.randn(4, 4), loss="squared")
    assert narrow.next_steps[0].startswith("widen the narrow layer: 9 parameters act only through one number")
