"""The optimisers of exploitation on real problems, in real runs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from alignver.errors import InvalidInput, UnstableStep
from alignver.results import Rigor, Verdict
from alignver.theory.exploitation import objective
from alignver.theory.infimum import newton_step
from alignver.theory.smoothness import smoothness
from alignver.training.exploitation import CachedProblem, as_model, wide
from alignver.training.solvers import FULL_BATCH, SOLVERS, Accelerated, ScheduledSGD, plain_descent
from alignver.training.wrapper import EEWrapper
from tests.theory.models import LOSSES, problem
from tests.training import nets

HOLDS, UNDECIDED = Verdict.HOLDS, Verdict.UNDECIDED


def run(
    solver,
    epochs=30,
    loss="binary_cross_entropy",
    m_y=1,
    batch_size="all",
    dtype=torch.float64,
    exploit_batch_size=None,
    **options,
):
    X, Y = nets.data(loss, m_y=m_y)
    wrapper = EEWrapper(
        nets.plain(m_y, dtype), loss=loss, tau=4, epsilon=0.1, seed=3, exploit_optimizer=solver, record=True, **options
    )
    return wrapper.fit((X, Y), epochs, batch_size=batch_size, exploit_batch_size=exploit_batch_size), Y


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_lowers_the_loss(solver):
    wrapper, _ = run(solver)
    losses = wrapper.training_record().losses
    assert len(losses) == 26
    assert wrapper.history[-1]["loss"] < (1e-3 if solver in ("newton", "lbfgs") else 0.999) * losses[0]
    assert np.all(np.isfinite(losses))
    if solver in ("gd", "newton"):
        assert np.all(np.diff(losses) < 0.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_descent_with_1_over_lhat_keeps_theorem_5_i_in_a_real_run(loss, dtype):
    wrapper, Y = run("gd", loss=loss, m_y=2, dtype=dtype)
    assert wrapper.optimizer.param_groups[0]["lr"] == wrapper.guarantee.smoothness.step
    results = {result.name: result for result in wrapper.check_convergence(Y)}
    assert wrapper.guarantee.proved
    assert {name: result.verdict for name, result in results.items()} == {
        "updates": HOLDS,
        "step": HOLDS,
        "descent": HOLDS,
        "descent_bound": HOLDS,
        "theorem_5_i": HOLDS,
        "theorem_5_ii": UNDECIDED,
    }
    record = wrapper.training_record()
    assert record.method == "gradient descent"
    assert (record.tau, record.steps[0], len(record.steps)) == (4, 4, 26)
    assert results["theorem_5_i"].measured["last_loss"] <= results["theorem_5_i"].measured["last_bound"]
    # theta^tau and its loss are what the record begins with.
    start = objective(wrapper.guarantee.model, Y.numpy(), wrapper.loss).value(wrapper.guarantee.weights)
    assert record.losses[0] == pytest.approx(start, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_sgd_with_theorem_5s_schedule(loss):
    wrapper, Y = run("sgd", loss=loss, m_y=2, batch_size=7)
    record = wrapper.training_record()
    assert record.method == "sgd"
    assert np.allclose(record.step_sizes, record.step_sizes[0] * np.arange(1, len(record.steps) + 1) ** -0.6)
    results = {result.name: result for result in wrapper.check_convergence(Y)}
    assert results["theorem_5_ii"].verdict is HOLDS
    assert results["theorem_5_ii"].rigor is Rigor.STATISTICAL
    assert results["theorem_5_i"].verdict is UNDECIDED
    assert wrapper.history[-1]["loss"] < record.losses[0]


def test_batches_in_turn_are_not_unbiased_and_theorem_5_ii_is_not_claimed():
    wrapper, Y = run(lambda p: torch.optim.SGD(p, lr=1e-4), batch_size=7)
    assert wrapper.training_record().method == "sgd, batches in turn"
    assert {r.name: r.verdict for r in wrapper.check_convergence(Y)}["theorem_5_ii"] is UNDECIDED


def test_other_methods_are_called_by_their_names():
    wrapper, Y = run("momentum")
    assert wrapper.training_record().method == "SGD"
    verdicts = {r.name: r.verdict for r in wrapper.check_convergence(Y)}
    assert verdicts["theorem_5_i"] is UNDECIDED
    newton, Y = run("newton", epochs=12)
    result = {r.name: r for r in newton.check_convergence(Y)}
    assert result["updates"].verdict is HOLDS  # a positive definite matrix times the gradient
    assert result["updates"].measured["c_lower"] > 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_steps_on_few_samples_are_short_enough_for_their_own_losses(loss):
    """Lhat of all samples is no bound for a batch: SGD with 1/Lhat on 2 of 30 samples would diverge (squared loss)."""
    adam = lambda p: torch.optim.Adam(p, lr=0.003)  # noqa: E731
    wrapper, _ = run("momentum", loss=loss, m_y=2, batch_size=2, epochs=12, optimizer=adam)
    bounds = wrapper.guarantee.smoothness
    step = wrapper.optimizer.param_groups[0]["lr"]
    assert step == pytest.approx(0.1 * wrapper.guarantee.steps.step)  # (1 - momentum) / Lhat of a batch
    assert wrapper.guarantee.steps.step < bounds.step
    assert any("for batches of 2" in sentence for sentence in wrapper.guarantee.sentences)
    model = wrapper.guarantee.model
    for start in range(0, 30, 2):
        rows = slice(start, start + 2)
        largest = max(np.linalg.norm(model.dense(j)[rows], 2) ** 2 for j in range(2))
        own_L = {"squared": 2.0, "binary_cross_entropy": 0.25, "cross_entropy": 0.5}[loss] / 2 * largest
        assert own_L <= wrapper.guarantee.steps.spectral
    assert wrapper.history[-1]["loss"] < wrapper.training_record().losses[0]
    assert bounds.of_batches(30, 30).spectral >= bounds.spectral
    assert bounds.spectral <= bounds.paper <= bounds.sample


def test_a_step_above_the_limit_is_lowered_with_a_warning_and_one_made_later_warned_of():
    with pytest.warns(UnstableStep, match=r"the step 1e\+06 of the exploitation phase is above .* 1/Lhat = "):
        wrapper, _ = run(lambda p: torch.optim.SGD(p, lr=1e6), epochs=8, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    assert wrapper.optimizer.param_groups[0]["lr"] == wrapper.guarantee.smoothness.step
    wrapper.optimizer.param_groups[0]["lr"] = 1.01 * wrapper.guarantee.smoothness.limit
    with pytest.warns(UnstableStep, match="is about to be taken"):
        wrapper.exploit_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper.exploit_step()  # said once


def test_full_batch_solvers_refuse_batches():
    for solver in sorted(FULL_BATCH):
        with pytest.raises(InvalidInput, match=f"exploit_optimizer: got '{solver}' with batches of 5 of 30"):
            run(solver, exploit_batch_size=5)
    with pytest.raises(InvalidInput, match="exploit_optimizer: got exploit_optimizer='rprop'"):
        run("rprop")
    (X, Y), wrapper = nets.data(), EEWrapper(nets.plain(), loss="squared", exploit_optimizer="newton")
    with pytest.raises(InvalidInput, match="'newton' without cached features"):
        wrapper.enter_exploitation(X, Y, cache=False)


def test_plain_descent_is_told_from_everything_else():
    p = [torch.nn.Parameter(torch.zeros(2))]
    assert plain_descent(torch.optim.SGD(p, lr=1.0))
    assert plain_descent(ScheduledSGD(p, lr=1.0))
    for more in ({"momentum": 0.5}, {"weight_decay": 0.1}, {"maximize": True}, {"momentum": 0.5, "nesterov": True}):
        assert not plain_descent(torch.optim.SGD(p, lr=1.0, **more))
    assert not plain_descent(torch.optim.Adam(p))


def test_accelerated_needs_far_fewer_steps_than_gradient_descent():
    levels = torch.logspace(-3, 0, 20, dtype=torch.float64)

    def steps_of(make):
        p = torch.nn.Parameter(torch.ones(20, dtype=torch.float64))
        optimizer = make([p])
        for count in range(4000):
            if float((levels * p.detach() ** 2).sum()) < 1e-6:
                return count

            def closure(p=p, optimizer=optimizer):
                optimizer.zero_grad()
                value = 0.5 * (levels * p**2).sum()
                value.backward()
                return value

            optimizer.step(closure)
        return 4000

    fast, slow = steps_of(lambda p: Accelerated(p, lr=1.0)), steps_of(lambda p: torch.optim.SGD(p, lr=1.0))
    assert 10 * fast < slow


@pytest.mark.parametrize("loss", LOSSES)
def test_a_newton_step_solves_its_system(loss):
    """Beside the same system in h m unknowns, with the matrix A written out."""
    objective = problem(loss, n=12, m_y=2)
    theta = 0.1 * np.random.default_rng(5).standard_normal(objective.model.shape)
    computed = newton_step(objective, theta)
    outputs = objective.model.outputs(theta)
    r, D = objective.loss.gradient(outputs, objective.targets), objective.loss.curvature(outputs, objective.targets)
    D = np.maximum(D, np.minimum(np.abs(r) / (8.0 + np.abs(outputs)), objective.loss.smoothness))
    D = np.maximum(D, 1e-3 * D.mean())
    for j in range(2):
        A = objective.model.dense(j)
        wide_step = -np.linalg.pinv(A.T @ (D[:, j, None] * A), rcond=1e-12, hermitian=True) @ (A.T @ r[:, j])
        moved = (computed.weights - theta)[j].ravel()
        assert np.allclose(A @ moved, computed.size * (A @ wide_step), rtol=1e-5, atol=1e-7)
    assert computed.after < computed.before
    assert computed.after == pytest.approx(objective.value(computed.weights))


@pytest.mark.parametrize("loss", LOSSES)
def test_newton_is_quick(loss):
    objective = problem(loss, n=20, m_y=2)
    theta, count = 5.0 * np.random.default_rng(1).standard_normal(objective.model.shape), 0
    while objective.value(theta) > 1e-6:
        step = newton_step(objective, theta)
        assert step.after < step.before
        theta, count = step.weights, count + 1
        assert count < 60
    assert count <= 2 or loss != "squared"


def test_newton_finds_a_minimum_that_is_not_zero():
    few = problem("squared", n=40, h=2, m_y=1)  # 10 unknowns for 40 samples
    theta = np.zeros(few.model.shape)
    for _ in range(12):
        theta = newton_step(few, theta).weights
    best = np.linalg.lstsq(few.model.dense(0), few.targets[:, 0], rcond=None)[0]
    assert few.value(theta) == pytest.approx(few.value(best.reshape(few.model.shape)), rel=1e-6)


def test_curvatures_are_above_the_hessian():
    rng = np.random.default_rng(0)
    for loss in LOSSES:
        objective = problem(loss, n=8, m_y=3)
        q = 3.0 * rng.standard_normal((8, 3))
        D = objective.loss.curvature(q, objective.targets)
        for i in range(8):
            H = np.empty((3, 3))
            for k in range(3):
                step = np.zeros((8, 3))
                step[i, k] = 1e-5
                slope = objective.loss.gradient(q + step, objective.targets) - objective.loss.gradient(
                    q - step, objective.targets
                )
                H[k] = slope[i] / 2e-5
            assert np.linalg.eigvalsh(np.diag(D[i]) - H)[0] >= -1e-8
            assert D[i].max() <= max(objective.loss.smoothness, 1.0)


@pytest.mark.parametrize("gate_bytes", [0, 1 << 30])
@pytest.mark.parametrize("m_y", [1, 3])
def test_cached_steps_are_the_uncached_ones(gate_bytes, m_y, monkeypatch):
    monkeypatch.setattr("alignver.training.exploitation._BLOCK", 7 * 12 * m_y)  # seven samples a block
    X, Y = nets.data("squared", m_y=m_y)
    wrapper = EEWrapper(nets.noisy(m_y), loss="squared", tau=1, epsilon=0.1, seed=3, exploit_optimizer="gd")
    wrapper.explore_step(X, Y)
    wrapper.enter_exploitation(X, Y)
    wrapper._cached = CachedProblem(wrapper.module, X, batch_size=11, gate_bytes=gate_bytes)
    start = wrapper.module.head.hidden.detach().clone()
    ends = []
    for cached in (True, False):
        with torch.no_grad():
            wrapper.module.head.hidden.copy_(start)
        for indices in (None, *torch.split(torch.randperm(30, generator=torch.Generator().manual_seed(1)), 8)):
            x, y = (X, Y) if indices is None else (X[indices], Y[indices])
            wrapper.exploit_step(indices=indices) if cached else wrapper.exploit_step(x, y)
        ends.append(wrapper.module.head.hidden.detach().clone())
    assert not torch.equal(ends[0], start)
    assert float((ends[0] - ends[1]).norm()) <= 1e-10 * float(ends[1].norm())


def test_the_cache_keeps_no_gates_beyond_its_bytes_and_holds_a_block_of_products():
    X, _ = nets.data()
    wrapper = EEWrapper(nets.plain(2), loss="squared", tau=1)
    network = wrapper.prepare(X, torch.zeros(30, 2))
    network.head.freeze()
    size = 2 * 12 * 30 * 8
    assert CachedProblem(network, X, gate_bytes=size)._factors.numel() * 8 == size
    assert CachedProblem(network, X, gate_bytes=size - 1)._factors is None
    gradient = torch.autograd.gradcheck(
        lambda theta: _outputs(CachedProblem(network, X, gate_bytes=0), theta), network.head.hidden
    )
    assert gradient
    exact = as_model(network, CachedProblem(network, X).Z).outputs(wide(network.head.hidden))
    assert np.allclose(wide(CachedProblem(network, X).outputs()), exact, rtol=1e-12, atol=1e-13)


def _outputs(cached, theta):
    from alignver.training.exploitation import _Outputs

    return _Outputs.apply(theta, cached, None)


def test_smoothness_of_one_sample_bounds_every_batch():
    objective = problem("cross_entropy", n=15, m_y=3)
    bounds = smoothness(objective.model, "cross_entropy")
    rows = max(np.linalg.norm(objective.model.dense(j), axis=1).max() for j in range(3)) ** 2
    assert 0.5 * rows <= bounds.sample <= 0.5 * rows * (1 + 1e-9)
