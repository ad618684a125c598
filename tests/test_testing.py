"""alignver.testing: assertions fail when they should, and strategies deliver what they say, by exact arithmetic."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import flint
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import alignver as av
from alignver.errors import InvalidInput
from alignver.results import Rigor, Verdict
from alignver.testing import assert_aligned, assert_full_rank, assert_safely_explored
from alignver.testing import strategies as known


def exact_rank(A):
    """By fractions, and by flint: two ways that share nothing."""
    rows = [[Fraction(float(entry)) for entry in row] for row in A]
    rank = 0
    for column in range(A.shape[1]):
        pivot = next((k for k in range(rank, len(rows)) if rows[k][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for k in range(rank + 1, len(rows)):
            factor = rows[k][column] / rows[rank][column]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[rank])]
        rank += 1
    entries = [[flint.fmpq(*float(entry).as_integer_ratio()) for entry in row] for row in A]
    assert flint.fmpq_mat(entries).rank() == rank
    return rank


@given(known.matrices_of_known_rank(octaves=60) | known.matrices_of_known_rank())
def test_the_rank_is_exact(drawn):
    assert exact_rank(drawn.matrix) == drawn.rank


@given(st.integers(0, 6).flatmap(lambda r: known.matrices_of_known_rank(rank=r)))
def test_a_rank_that_is_asked_for(drawn):
    assert exact_rank(drawn.matrix) == drawn.rank


@given(known.matrices_of_known_rank(duplicates=True, octaves=5))
def test_duplicates_are_equal(drawn):
    assert exact_rank(drawn.matrix) == drawn.rank
    for i, j in drawn.duplicates:
        assert i != j
        assert np.array_equal(drawn.matrix[i], drawn.matrix[j])
    assert drawn.duplicates


@given(known.matrices_of_known_rank(duplicates=False))
def test_no_duplicates(drawn):
    assert exact_rank(drawn.matrix) == drawn.rank
    assert len(np.unique(drawn.matrix, axis=0)) == len(drawn.matrix)


@given(known.membership_problems())
def test_membership_is_exact(problem):
    J, y = problem.J, problem.y
    assert (exact_rank(np.column_stack([J, y])) == exact_rank(J)) == problem.member
    assert exact_rank(J) == problem.rank
    if problem.member:
        assert np.array_equal(J @ problem.witness, y)
    else:
        assert not np.any(problem.witness @ J)
        assert problem.witness @ y != 0


@pytest.mark.parametrize("wanted", [True, False])
@given(data=st.data())
def test_the_answer_that_is_asked_for(wanted, data):
    assert data.draw(known.membership_problems(member=wanted)).member is wanted
    assert data.draw(known.feature_problems(explored=wanted)).explored is wanted
    assert data.draw(known.alignment_problems(aligned=wanted)).aligned is wanted


@settings(max_examples=15)
@given(known.membership_problems())
def test_our_own_check_gives_the_known_answer(problem):
    result = av.check_membership(problem.J, problem.y)
    wanted = Verdict.HOLDS if problem.member else Verdict.FAILS
    assert result.verdict in (wanted, Verdict.UNDECIDED)
    if result.rigor is Rigor.PROOF:
        assert result.verdict is wanted


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(known.alignment_problems())
def test_alignment_problems(problem):
    result = av.check_alignment(problem.model, problem.X, problem.Y, loss=problem.loss)
    assert result.verdict is not (Verdict.FAILS if problem.aligned else Verdict.HOLDS)


@settings(max_examples=15)
@given(known.feature_problems())
def test_feature_problems(problem):
    result = av.check_safe_exploration(problem.Z, width=problem.width)
    assert result.verdict is not (Verdict.FAILS if problem.explored else Verdict.HOLDS)


@given(known.networks(inputs=3, outputs=2))
def test_networks_run(net):
    before = torch.get_rng_state()
    assert net(torch.zeros(4, 3, dtype=torch.float64)).shape == (4, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_that_cannot_be():
    for options in ({"rank": 7}, {"rank": 3, "rows": st.just(2)}):

        @given(known.matrices_of_known_rank(**options))
        def impossible(drawn):
            raise AssertionError("drawn all the same")

        with pytest.raises(InvalidInput, match="rank"):
            impossible()


def test_assert_full_rank():
    result = assert_full_rank(np.diag([3.0, 1.0]), rigor="PROOF")
    assert result.rigor is Rigor.PROOF
    with pytest.raises(AssertionError, match="rank"):
        assert_full_rank(np.ones((2, 2)))
    with pytest.raises(AssertionError, match="rank"):
        assert_full_rank(np.diag([1.0, 1e-300]), certify=False)


def test_a_proof_that_was_asked_for():
    with pytest.raises(AssertionError, match="the rigor is NUMERICAL, weaker than PROOF"):
        assert_full_rank(np.diag([3.0, 1.0]), rigor=Rigor.PROOF, certify=False)
    with pytest.raises(InvalidInput, match="rigor"):
        assert_full_rank(np.eye(2), rigor="certain")


def test_assert_aligned():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    assert assert_aligned(net, [[0.0], [1.0]], [0.0, 3.0], loss="squared").verdict is Verdict.HOLDS
    with pytest.raises(AssertionError, match="samples 0 and 1 have equal inputs"):
        assert_aligned(net, [[0.0], [0.0]], [0.0, 3.0], loss="squared")
    with pytest.raises(InvalidInput, match="loss"):
        assert_aligned(net, [[0.0]], [0.0], loss="hinge")


def test_assert_safely_explored():
    Z = np.column_stack([np.arange(6.0), np.ones(6)])
    assert assert_safely_explored(Z, width=3, rigor="PROOF").rigor is Rigor.PROOF
    with pytest.raises(AssertionError, match="FAILS"):
        assert_safely_explored(Z, width=2)


def test_the_assertions_need_neither_hypothesis_nor_torch():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from alignver.testing import assert_full_rank\n"
        "assert_full_rank([[1.0]])\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    import alignver.testing.strategies\n"
        "except ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependency")
    assert "alignver[test]" in done.stdout
