"""Codes of answers: each is documented, and each documented one can be given."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import alignver as av
from alignver.require import CODES

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/verdicts.md").read_text().partition("| code | meaning |")[2].partition("## Invalid arguments")[0]
PATTERNS = [code.replace("*", "[a-z0-9-]+") for code in re.findall(r"`([a-z*][a-zA-Z0-9*-]+)`", TABLE)]


def documented(code: str) -> bool:
    return any(re.fullmatch(pattern, code) for pattern in PATTERNS)


def refusals() -> set[str]:
    """Every code that a source file gives to InvalidInput, as the fourth argument or by its name."""
    codes = set()
    for path in (ROOT / "alignver").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InvalidInput":
                values = node.args[3:] + [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                codes |= {value.value for value in values if isinstance(value, ast.Constant)}
    return codes


def test_codes_of_refusals_are_documented():
    assert "not-an-integer" in refusals() <= set(CODES)
    page = (ROOT / "docs/verdicts.md").read_text()
    assert [code for code, meaning in CODES.items() if f"| `{code}` | {meaning} |" not in page] == []
    with pytest.raises(av.InvalidInput) as caught:
        av.check_rank(np.eye(2), rank=True)
    assert caught.value.code in CODES


def literals() -> set[str]:
    """Every string that a source file gives as the code of an answer, whole."""
    collected = set()
    for path in (ROOT / "alignver").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InvalidInput":
                continue
            values = [word.value for word in node.keywords if word.arg == "code"] if isinstance(node, ast.Call) else []
            if isinstance(node, ast.Dict):
                values += [value for key, value in zip(node.keys, node.values) if getattr(key, "value", "") == "code"]
            for value in values:
                parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                collected |= {part.value for part in parts if isinstance(part, ast.Constant) and part.value}
    return collected


def test_codes_in_the_source_are_documented():
    assert len(literals()) > 15
    assert [code for code in sorted(literals()) if not documented(code)] == []


J = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])
Z = np.column_stack([np.random.default_rng(0).standard_normal((12, 3)), np.ones(12)])
ANSWERS = {
    "membership-gram": lambda: av.check_membership(J, [1.0, 2.0]),
    "membership-structure": lambda: av.check_membership([[1.0, 1.0], [1.0, 1.0]], [1.0, 2.0]),
    "membership-at-tolerance": lambda: av.check_membership(J, [1.0, 2.0], certify=False),
    "membership-not-at-tolerance": lambda: av.check_membership(np.ones((3, 2)), [1.0, 2.0, 3.0], certify=False),
    "rank-gram": lambda: av.check_rank(J),
    "rank-tolerance-decides": lambda: av.check_rank(np.diag([1.0, 1e-3, 3 * 2.0**-52]), certify=False),
    "data-conflict": lambda: av.check_data([[0.0], [0.0]], [0, 1]),
    "data-consistent": lambda: av.check_data([[0.0], [1.0]], [0, 1]),
    "data-distinct": lambda: av.check_data([[0.0], [1.0]]),
    "data-equal-inputs": lambda: av.check_data([[0.0], [0.0]]),
    "exploration-staircase": lambda: av.check_safe_exploration(Z),
    "exploration-count": lambda: av.check_safe_exploration(Z, width=2),
    "exploration-equal-rows": lambda: av.check_safe_exploration(Z[[0, 1, 2, 3, 0]], width=3),
    "exploration-equal-inputs": lambda: av.check_safe_exploration(Z, X=np.zeros((12, 1))),
    "recheck-proved": lambda: av.recheck(av.check_rank(J).certificate, A=J),
    "recheck-not-proved": lambda: av.recheck(av.check_rank(J).certificate, A=2 * J),
}


@pytest.mark.parametrize("code", ANSWERS)
def test_an_answer_has_its_code(code):
    result = ANSWERS[code]()
    assert result.code == code
    assert documented(code)
    about_data = code.startswith("data-") or code == "exploration-equal-inputs"
    assert result.subject is (av.Subject.DATA if about_data else av.Subject.COMPUTED_MATRIX)
    if result.verdict == "UNDECIDED":
        assert result.next_steps
    assert all(step == step.strip() and not step.endswith(".") for step in result.next_steps)


def test_alignment_has_codes_of_its_own():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1).double()
    X = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    proved = av.check_alignment(model, X[:2], [1.0, 2.0], loss="squared")
    assert documented(proved.code)
    assert proved.code.startswith("alignment-")
    assert proved.plan["engine"] == "dense"
    conflict = av.check_alignment(model, X, [1.0, 2.0, 3.0], loss="squared")
    assert (conflict.code, conflict.subject) == ("alignment-data-conflict", "DATA")
    assert conflict.next_steps[0].startswith("look at these samples")
