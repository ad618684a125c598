"""Laws of the optimality check: no proof is wrong in 60 digits, every proof is accepted again, no forgery is."""

from __future__ import annotations

import dataclasses

import mpmath
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignver.checks.optimality import check_optimality
from alignver.checks.recheck import recheck
from alignver.results import Frozen, Rigor, Verdict
from alignver.theory.descent import reference_points
from alignver.theory.enclosure import enclose, loss_bounds
from alignver.theory.infimum import infimum
from property_tests.theory.cases import problems, seeds
from tests.theory.test_enclosure import exact_outputs
from tests.theory.test_sample_losses import exact


def exact_loss(problem, theta):
    with mpmath.workdps(60):
        rows = zip(exact_outputs(problem.model, theta), problem.targets.tolist(), strict=True)
        return mpmath.fsum(exact(problem.loss.name, f, y) for f, y in rows) / problem.model.n


@st.composite
def points(draw, **options):
    """A problem and weights: fitted, near to fitted, or anywhere."""
    problem = draw(problems(**options))
    rng = np.random.default_rng(draw(seeds))
    theta = rng.standard_normal(problem.model.shape) * 10.0 ** draw(st.integers(-6, 6))
    kind = draw(st.sampled_from(["any", "fitted", "near"]))
    if kind != "any":
        theta = min(reference_points(problem, 0.0 * theta), key=lambda point: point.loss).weights
        theta = theta + (kind == "near") * 10.0 ** draw(st.integers(-12, 0)) * rng.standard_normal(theta.shape)
    return problem, theta


def checked(problem, theta, tolerance):
    one_hot = problem.loss.name == "cross_entropy" and problem.model.m_y > 1
    Y = problem.targets.argmax(axis=1) if one_hot else problem.targets
    return check_optimality(problem.model, theta, Y, loss=problem.loss.name, tolerance=tolerance)


@given(points())
def test_the_exact_loss_lies_between_its_bounds(case):
    problem, theta = case
    enclosed = enclose(problem.model, theta)
    for wider in (enclosed, enclosed.widened()):
        bounds = loss_bounds(wider, problem.targets, problem.loss.name)
        assert bounds.lower <= exact_loss(problem, theta) <= bounds.upper


@given(points(), st.floats(-14.0, 1.0))
def test_proofs_are_true_and_accepted_again(case, exponent):
    problem, theta = case
    result = checked(problem, theta, 10.0**exponent)
    if result.rigor is not Rigor.PROOF or result.verdict is Verdict.UNDECIDED:
        return
    inputs = problem.model.inputs(theta, problem.targets)
    again = recheck(result.certificate, **inputs)
    assert again.verdict is Verdict.HOLDS, again.reason
    gap = result.certificate.constants["gap"]
    if result.verdict is Verdict.HOLDS:
        assert exact_loss(problem, theta) <= gap <= 10.0**exponent
    else:
        assert gap > 10.0**exponent
        better = result.certificate.data.get("better")
        there = 0 if better is None else exact_loss(problem, better.reshape(problem.model.shape))
        assert exact_loss(problem, theta) - there > gap


@given(points(), st.floats(0.0, 0.999999), seeds)
def test_smaller_claims_are_refused(case, factor, seed):
    """A claim below the exact loss cannot be re-sealed into a proof; nor can other weights take its place."""
    problem, theta = case
    result = checked(problem, theta, 1e30)
    if result.certificate is None:
        return
    inputs = problem.model.inputs(theta, problem.targets)
    lower = factor * float(exact_loss(problem, theta))
    forged = dataclasses.replace(
        result.certificate, constants=Frozen({**result.certificate.constants, "gap": max(lower - 1e-300, 0.0)})
    )
    forged = dataclasses.replace(forged, seal=forged.expected_seal())
    if lower > 1e-280:
        assert recheck(forged, **inputs).verdict is Verdict.FAILS
    other = theta.copy()
    place = np.random.default_rng(seed).integers(other.size)
    other.flat[place] += max(1.0, abs(other.flat[place]))
    assert recheck(result.certificate, **problem.model.inputs(other, problem.targets)).verdict is Verdict.FAILS


@given(points(enough=False), seeds)
def test_the_interval_of_the_infimum_is_one(case, seed):
    """Below every loss that is tried, above at one of them, up to rounding."""
    problem, theta = case
    known = infimum(problem, theta, iterations=50)
    assert known.upper == problem.value(known.weights)
    assert known.lower <= known.upper
    rng = np.random.default_rng(seed)
    for scale in (0.0, 1e-3, 1.0):
        tried = problem.value(known.weights + scale * rng.standard_normal(theta.shape))
        assert known.lower <= tried * (1 + 1e-9) + 1e-9
