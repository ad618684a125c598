"""Laws of the wrapper on random networks and data: what torch trains is the model that the theorems are about."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alignver.results import Verdict
from alignver.theory.exploitation import objective
from alignver.theory.infimum import newton_step
from alignver.training.exploitation import CachedProblem, as_model, as_training_targets, mean_loss, wide
from alignver.training.gated_network import modify
from alignver.training.wrapper import EEWrapper
from property_tests.theory.cases import caught, losses, problems, seeds, some_targets

ACTIVATIONS = (nn.Tanh, nn.Softplus, nn.ReLU, nn.SiLU, nn.Sigmoid)


@dataclasses.dataclass(frozen=True)
class Case:
    model: nn.Module
    X: torch.Tensor
    Y: torch.Tensor
    loss: str
    m_y: int
    slope: float
    seed: int


@st.composite
def cases(draw, enough=True):
    """A fully connected network of two to four layers with data; ``enough``: h m >= 2 n."""
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    n, m_x, m_y = draw(st.integers(2, 8)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    features = draw(st.integers(2, 5))
    h = -(-2 * n // (features + 1)) if enough else 1
    loss = draw(losses)
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**31)
        sizes = [m_x, *([features] * draw(st.integers(1, 2))), h]
        layers = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), draw(st.sampled_from(ACTIVATIONS))()]
        model = nn.Sequential(*layers, nn.Linear(h, m_y)).double()
    X, Y = torch.as_tensor(rng.standard_normal((n, m_x))), torch.as_tensor(some_targets(rng, loss, n, m_y))
    return Case(model, X, Y, loss, m_y, draw(st.floats(0.5, 20.0)), seed % 1000)


def lemmas_6_and_7(case, frozen=True):
    """Outputs and gradient of the network after tau are those of A_j theta_j, by torch's own derivatives."""
    network = modify(case.model, case.X[:2], outputs=case.m_y, slope=case.slope)
    network.head.freeze()
    model = as_model(network, CachedProblem(network, case.X).Z)
    with torch.no_grad():  # away from the point at which the gates are the weights
        move = torch.randn(network.head.hidden.shape, generator=torch.Generator().manual_seed(case.seed)).double()
        network.head.hidden.add_(move)
    network.head._exploiting = frozen
    targets = as_training_targets(case.loss, case.Y, len(case.X), case.m_y, network.head.hidden)
    outputs = network(case.X)
    mean_loss(case.loss, outputs, targets).backward()
    theta, problem = wide(network.head.hidden), objective(model, case.Y.numpy(), case.loss)
    scale = 1e-9 * (1.0 + np.abs(model.outputs(theta)).max())
    same = np.allclose(wide(outputs), model.outputs(theta), rtol=1e-8, atol=scale)
    slopes = problem.gradient(theta)
    return bool(same and np.allclose(wide(network.head.hidden.grad), slopes, rtol=1e-6, atol=1e-9))


@given(cases())
def test_lemmas_6_and_7_on_networks(case):
    assert lemmas_6_and_7(case)


def test_lemmas_6_and_7_with_gates_that_still_move_are_caught():
    caught(cases(), lambda case: lemmas_6_and_7(case, frozen=False), examples=50)


def run(case, stretch=1.0, steps=12):
    """Train through tau with gradient descent of step 1/Lhat times ``stretch``; return the verdicts about the run."""
    wrapper = EEWrapper(
        case.model, loss=case.loss, tau=2, epsilon=0.3, gate=case.slope, exploit_optimizer="gd", record=True,
        seed=case.seed, optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of ranks
        for _ in range(2):
            wrapper.explore_step(case.X, case.Y)
        wrapper.enter_exploitation(case.X, case.Y)
        wrapper.optimizer.param_groups[0]["lr"] *= stretch
        for _ in range(steps):
            wrapper.exploit_step()
    return wrapper, {result.name: result.verdict for result in wrapper.check_convergence(case.Y)}


def theorem_5_i_in_a_run(case):
    wrapper, outcome = run(case)
    theorem = outcome["theorem_5_i"]
    # Without rank n its premise is missing: UNDECIDED, and the bound holds all the same.
    premise = theorem is (Verdict.HOLDS if wrapper.guarantee.proved else Verdict.UNDECIDED)
    return premise and outcome["descent"] is Verdict.HOLDS and outcome["descent_bound"] is Verdict.HOLDS


@given(cases())
@settings(max_examples=15)
def test_theorem_5_i_in_runs_of_the_wrapper(case):
    assert theorem_5_i_in_a_run(case)


@given(cases(enough=False))
@settings(max_examples=10)
def test_the_bound_needs_no_rank(case):
    assert theorem_5_i_in_a_run(case)


@given(cases())
@settings(max_examples=10)
def test_longer_steps_are_no_theorem(case):
    _, outcome = run(case, stretch=2.1, steps=3)
    assert outcome["step"] is Verdict.FAILS
    assert outcome["theorem_5_i"] is Verdict.UNDECIDED


def newton(problem, seed, sign=1.0):
    """A Newton step lowers the loss, unless the gradient vanishes; its direction is one of descent (Assumption 7)."""
    theta = np.random.default_rng(seed).standard_normal(problem.model.shape)
    step = newton_step(problem, theta)
    slope = float(np.vdot(problem.gradient(theta), sign * (step.weights - theta)))
    return step.size == 0.0 or (slope < 0.0 and step.after < step.before)


@given(problems(), seeds)
def test_newton_steps_descend(problem, seed):
    assert newton(problem, seed)


def test_steps_the_other_way_are_caught():
    caught(st.tuples(problems(), seeds), lambda case: newton(*case, sign=-1.0))


@given(problems(loss="squared", enough=True), seeds)
def test_newton_is_tight_for_the_squared_loss(problem, seed):
    """With rank n, well conditioned, one step leads to the infimum."""
    levels = [np.linalg.svd(problem.model.dense(j), compute_uv=False) for j in range(problem.model.m_y)]
    if any(level[-1] < 1e-3 * level[0] for level in levels):
        return
    theta = np.random.default_rng(seed).standard_normal(problem.model.shape)
    step = newton_step(problem, theta)
    assert step.size == 1.0
    assert step.after <= 1e-8 * step.before
