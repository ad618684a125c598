"""Lemmas 1 to 3, Proposition 1 and Theorem 3 as laws, each with a falsified variant that has to be caught."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alignver.theory.alignment_bounds import beta_hat, nu, target_loss, theorem_3, unreachable, zeta
from property_tests.theory.cases import at_most, caught, networks, seeds, unvec, vec

# --- Lemma 1 --------------------------------------------------------------------------------------------------------


def lemma_1(network, seed, constant=1.0):
    """L(theta) <= L_theta(beta) + ||nu - beta|| ||grad L||."""
    rng = np.random.default_rng(seed)
    theta = network.theta
    J, gradient, at = network.jacobian(theta), network.gradient(theta), nu(theta, network.S)
    size = max(1.0, float(np.linalg.norm(at)))
    for beta in (
        np.zeros_like(theta),
        at + 0.1 * rng.standard_normal(theta.size),
        size * rng.standard_normal(theta.size),
    ):
        linear = network.of(unvec(J @ beta, network.m_y))
        product = float(np.linalg.norm(at - beta) * np.linalg.norm(gradient))
        if not at_most(network.value(theta), linear + constant * product):
            return False
    return True


@given(networks(), seeds)
def test_lemma_1(network, seed):
    assert lemma_1(network, seed)


@given(networks())
def test_lemma_1_is_tight_at_nu(network):
    at = nu(network.theta, network.S)
    linear = network.of(unvec(network.jacobian(network.theta) @ at, network.m_y))
    assert np.isclose(linear, network.value(network.theta), rtol=1e-9, atol=1e-12)


def test_lemma_1_with_a_smaller_constant_is_caught():
    caught(st.tuples(networks(), seeds), lambda case: lemma_1(*case, constant=0.3))


def test_lemma_1_without_the_common_structure_is_caught():
    caught(st.tuples(networks(bent=True), seeds), lambda case: lemma_1(*case))


@dataclasses.dataclass(frozen=True)
class Bounded:
    """1 - exp(-||q - y||^2): smooth and not convex."""

    def values(self, q, y):
        return 1.0 - np.exp(-((q - y) ** 2).sum(axis=1))

    def gradient(self, q, y):
        return 2.0 * (q - y) * np.exp(-((q - y) ** 2).sum(axis=1))[:, None]


def test_lemma_1_without_convexity_is_caught():
    caught(st.tuples(networks(), seeds), lambda case: lemma_1(dataclasses.replace(case[0], loss=Bounded()), case[1]))


# --- Lemmas 2 and 3 -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Function:
    """A function >= 0 on R^d, its gradient Lipschitz with constant L; curvature L along ``top`` if that is given."""

    d: int
    value: Any
    gradient: Any
    L: float
    top: Any = None


@st.composite
def functions(draw):
    rng = np.random.default_rng(draw(seeds))
    d = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["quadratic", "wave", "exponentials"]))
    if kind == "quadratic":
        M = rng.standard_normal((d, d))
        H = M @ M.T
        levels, basis = np.linalg.eigh(H)
        return Function(d, lambda z: 0.5 * z @ H @ z, lambda z: H @ z, float(levels[-1]), basis[:, -1])
    if kind == "wave":  # neither convex nor concave
        a = rng.standard_normal(d)
        return Function(d, lambda z: 1.0 + np.sin(a @ z), lambda z: np.cos(a @ z) * a, float(a @ a))
    A = np.concatenate([rng.standard_normal((3, d)), np.zeros((1, d))])  # the row of zeros keeps it >= 0
    value = lambda z: float(np.logaddexp.reduce(A @ z))  # noqa: E731
    return Function(d, value, lambda z: A.T @ np.exp(A @ z - value(z)), float(np.linalg.norm(A, 2) ** 2) / 2.0)


def lemma_2(function, seed, constant=1.0):
    """phi(z') <= phi(z) + grad phi(z)^T (z' - z) + (L / 2) ||z' - z||^2."""
    rng = np.random.default_rng(seed)
    z = 2.0 * rng.standard_normal(function.d)
    steps = [10.0**k * rng.standard_normal(function.d) for k in (-2, 0, 1)]
    steps += [] if function.top is None else [function.top]
    value, slope = function.value(z), function.gradient(z)
    return all(
        at_most(function.value(z + step), value + slope @ step + 0.5 * constant * function.L * step @ step)
        for step in steps
    )


@given(functions(), seeds)
def test_lemma_2(function, seed):
    assert lemma_2(function, seed)


@given(functions(), seeds)
def test_lemma_2_is_tight_along_the_steepest_curvature(function, seed):
    if function.top is not None:
        z = np.random.default_rng(seed).standard_normal(function.d)
        right = function.value(z) + function.gradient(z) @ function.top + 0.5 * function.L
        assert np.isclose(function.value(z + function.top), right)


def test_lemma_2_with_a_smaller_constant_is_caught():
    caught(st.tuples(functions(), seeds), lambda case: lemma_2(*case, constant=0.99))


def test_lemma_2_without_a_lipschitz_gradient_is_caught():
    quartic = Function(1, lambda z: float(z[0] ** 4), lambda z: 4.0 * z**3, 12.0)  # 12 is the curvature at 1 only
    caught(seeds, lambda seed: lemma_2(quartic, seed))


def lemma_3(function, seed, alpha, constant=1.0, stretch=1.0):
    """min over T of ||grad|| <= sqrt(L (L(theta^t0) - L(theta^(t_last + 1))) / (2 alpha (1 - alpha) |T|))."""
    rng = np.random.default_rng(seed)
    z = 2.0 * rng.standard_normal(function.d) if seed % 2 or function.top is None else function.top
    values, norms = [], []
    for _ in range(12):
        slope = function.gradient(z)
        values.append(function.value(z))
        norms.append(float(np.linalg.norm(slope)))
        z = z - stretch * 2.0 * alpha / function.L * slope
    for T in ([0], [3], list(range(11)), sorted(rng.choice(11, 4, replace=False).tolist())):
        fall = function.L * max(0.0, values[T[0]] - values[T[-1] + 1]) / (2.0 * alpha * (1.0 - alpha) * len(T))
        # The difference of two values made of terms up to 1 + v is known to u (1 + v), its root to the root of that.
        rounding = np.sqrt(1e-15 * function.L * (1.0 + values[T[0]]) / (alpha * (1.0 - alpha)))
        if not at_most(min(norms[t] for t in T), constant * np.sqrt(fall) + rounding):
            return False
    return True


alphas = st.floats(0.05, 0.95)


@given(functions(), seeds, alphas)
def test_lemma_3(function, seed, alpha):
    assert lemma_3(function, seed, alpha)


@given(alphas, st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_lemma_3_is_tight_for_one_step_on_a_parabola(alpha, L, z):
    after = z - 2.0 * alpha * z
    fall = L * (0.5 * L * z * z - 0.5 * L * after * after) / (2.0 * alpha * (1.0 - alpha))
    assert np.isclose(L * z, np.sqrt(fall), rtol=1e-6)


def test_lemma_3_with_a_smaller_constant_is_caught():
    caught(st.tuples(functions(), seeds, alphas), lambda case: lemma_3(*case, constant=0.97))


def test_lemma_3_with_longer_steps_is_caught():
    caught(st.tuples(functions(), seeds, alphas), lambda case: lemma_3(*case, stretch=3.0))


# --- Proposition 1 --------------------------------------------------------------------------------------------------


def proposition_1(network, y, eta, theta=None):
    """With y outside Col J: f_X(theta) keeps its distance from eta y, so that they are not equal."""
    theta = network.theta if theta is None else theta
    outputs, J = vec(network.f(theta)), network.jacobian(theta)
    distance = unreachable(J, y, 1.0)
    if distance <= 1e-6 * np.linalg.norm(y):
        return True  # not outside, or not clearly
    gap = float(np.linalg.norm(outputs - eta * y))
    return at_most(abs(eta) * distance, gap) and gap > 0.0


etas = st.floats(-3.0, 3.0).filter(lambda eta: abs(eta) > 1e-2)


@given(networks(), seeds, etas)
def test_proposition_1(network, seed, eta):
    assert proposition_1(network, np.random.default_rng(seed).standard_normal(network.f(network.theta).size), eta)


@given(networks(), etas)
def test_proposition_1_is_tight_where_the_outputs_are_the_projection(network, eta):
    """f = J nu, and y = (f + w) / eta with w orthogonal to Col J is as near as can be."""
    outputs, J = vec(network.f(network.theta)), network.jacobian(network.theta)
    basis, levels, _ = np.linalg.svd(J)
    rank = int((levels > 1e-9 * max(levels[0], 1e-9)).sum())
    if rank < len(outputs):
        y = (outputs + basis[:, -1]) / eta
        assert np.isclose(unreachable(J, y, eta, tolerance=1e-9 * levels[0]), 1.0, rtol=1e-5)
        assert np.isclose(np.linalg.norm(outputs - eta * y), 1.0)


def test_proposition_1_as_printed_for_every_eta_is_caught():
    """At eta = 0 and theta = 0 the outputs are eta y for all y."""

    def law(case):
        network, seed = case
        y = np.random.default_rng(seed).standard_normal(network.f(network.theta).size)
        return proposition_1(network, y, 0.0, np.zeros_like(network.theta))

    caught(st.tuples(networks(), seeds), law)


def test_proposition_1_without_the_common_structure_is_caught():
    caught(networks(bent=True), lambda network: proposition_1(network, vec(network.f(network.theta)), 1.0))


# --- Theorem 3 ------------------------------------------------------------------------------------------------------


def descent(network, alpha, count):
    """Gradient descent with the step 2 alpha / L, L doubled until (39) holds at each step: all that the proof uses."""
    L = 1.0
    while True:
        theta, run = network.theta, []
        for _ in range(count):
            value, slope = network.value(theta), network.gradient(theta)
            after = theta - 2.0 * alpha / L * slope
            run.append((theta, value))
            if not network.value(after) <= value - 2.0 * alpha / L * (1.0 - alpha) * slope @ slope + 1e-13 * (
                1.0 + value
            ):
                break
            theta = after
        else:
            return L, run
        L *= 2.0


def sides(network, alpha, eta, aligned_only=True, count=6):
    """Return (least loss, target, bound) of Theorem 3 for Y* = Y_l; None without an aligned step."""
    L, run = descent(network, alpha, count)
    signed = network.loss.name != "squared"
    Y_l = 2.0 * network.Y - 1.0 if signed else network.Y
    target = target_loss(network.loss, network.Y if signed else Y_l, Y_l, eta)
    values, nus, betas = [], [], []
    for theta, value in run:
        reference = beta_hat(network.jacobian(theta), vec(Y_l), eta)
        if reference.residual > 1e-7 and aligned_only:
            continue
        values.append(value)
        nus.append(np.linalg.norm(nu(theta, network.S)))
        betas.append(np.linalg.norm(reference.beta))
    if not values:
        return None
    return min(values), target, theorem_3(values[0], target, L, alpha, zeta(nus, betas), len(values))


def theorem_3_holds(network, alpha, eta, constant=1.0, **options):
    computed = sides(network, alpha, eta, **options)
    assume(computed is not None)
    return at_most(computed[0], computed[1] + constant * (computed[2] - computed[1]) + 1e-6 * abs(computed[1]))


@given(networks(wide=True), alphas, st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=25)
def test_theorem_3(network, alpha, eta):
    assert theorem_3_holds(network, alpha, eta)


@given(networks(), alphas)
@settings(max_examples=25)
def test_theorem_3_at_the_steps_that_are_aligned(network, alpha):
    assert theorem_3_holds(network, alpha, 1.0)


def parabola(y, start, alpha):
    """Both sides less the target for (theta - y)^2, one step, L = 2."""
    return (start - y) ** 2, theorem_3((start - y) ** 2, 0.0, 2.0, alpha, zeta([abs(start)], [abs(y)]), 1)


def test_theorem_3_is_tight_up_to_a_factor_of_two_and_a_smaller_one_is_caught():
    left, right = parabola(1.0, -1.0, 0.5)
    assert np.isclose(2.0 * left, right)
    starts = st.floats(-3.0, 3.0)
    caught(starts, lambda start: at_most(parabola(1.0, start, 0.5)[0], 0.45 * parabola(1.0, start, 0.5)[1]))


def test_theorem_3_without_alignment_is_caught():
    """Outputs (theta, 0) with targets (0, 3): no beta gives the second, and nu = beta-hat = 0 at theta = 0."""

    def law(y):
        J, theta = np.array([[1.0], [0.0]]), 0.0
        reference = beta_hat(J, [0.0, y], 1.0)
        bound = theorem_3(y * y, 0.0, 2.0, 0.5, zeta([abs(theta)], [np.linalg.norm(reference.beta)]), 1)
        return at_most(y * y, bound)

    caught(st.floats(0.5, 3.0), law)
