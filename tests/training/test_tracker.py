"""The tracker: what it records is what the checks say, and the training does not notice it."""

from __future__ import annotations

import copy
import itertools
import math
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.checks.alignment_evaluator import AlignmentEvaluator, full_rank
from alignver.data import sine_wave
from alignver.errors import InvalidInput
from alignver.experiments.networks import fully_connected
from alignver.jacobians.prepare import prepare_alignment
from alignver.report.history import History
from alignver.results import Verdict
from alignver.training.tracker import AlignmentTracker, Schedule


class Noisy(nn.Module):
    """Draws from every generator in its forward pass, and couples its samples in train mode."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(3, 12), nn.BatchNorm1d(12), nn.Dropout(0.3)
        self.out = nn.Linear(12, 2)

    def forward(self, x):
        random.random()
        np.random.rand()  # noqa: NPY002 - the global state is the point
        return self.out(self.drop(torch.tanh(self.norm(self.first(x)))))


def mlp(seed=0, sizes=(3, 16, 2)):
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def data(n=24, m_x=3, classes=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, m_x, generator=g), torch.randint(0, classes, (n,), generator=g)


def trained(track, steps=5, **options):
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002
    torch.manual_seed(5)
    model, (x, y) = Noisy(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tracker = AlignmentTracker(model, x, y, loss="cross_entropy", mode="eval", **options) if track else None
    losses = []
    for _ in range(steps):
        if tracker:
            tracker.update()
        batch = torch.randperm(len(x))[:8]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    draws = (random.random(), np.random.rand(), torch.rand(3))  # noqa: NPY002
    return state, grads, losses, draws, [m.training for m in model.modules()], tracker


@pytest.mark.parametrize("options", [{}, {"thorough": True, "change": "probes", "structure": ["out"]}])
def test_the_training_is_the_same_to_the_last_bit(options, tmp_path):
    plain, watched = trained(False), trained(True, path=tmp_path / "h.jsonl", **options)
    assert all(torch.equal(plain[0][name], watched[0][name]) for name in plain[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], watched[1]))
    assert plain[2] == watched[2]
    assert plain[3][:2] == watched[3][:2]
    assert torch.equal(plain[3][2], watched[3][2])
    assert plain[4] == watched[4]
    assert len(watched[5].history) == 5


def test_train_mode_is_refused_with_the_remedy():
    model, (x, y) = Noisy(), data()
    with pytest.raises(InvalidInput, match="mode='eval'"):
        AlignmentTracker(model, x, y, loss="cross_entropy")
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("thorough", [False, True])
def test_a_record_is_what_check_alignment_says(thorough):
    """For a network of linear layers, one with a convolution, one with samples that repeat another."""
    torch.manual_seed(2)
    convolution = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2))
    x, y = data(9)
    twice = torch.cat([x, x[:1]])
    cases = [
        (mlp(), *data()),
        (mlp(sizes=(3, 4, 2)), *data(40)),
        (convolution, x[:, None], y),
        (mlp(), twice, torch.cat([y, y[:1]])),
        (mlp(sizes=(3, 4, 2)), torch.cat([x, x, data(40, seed=6)[0]]), torch.cat([y, y, data(40, seed=6)[1]])),
    ]
    verdicts = set()
    for model, inputs, labels in cases:
        tracker = AlignmentTracker(model, inputs, labels, loss="cross_entropy", thorough=thorough)
        record = tracker.update()
        for rule in ("press", "golub"):
            result = av.check_alignment(
                model, inputs, labels, loss="cross_entropy", rule=rule, certify=False, method="svd"
            )
            answer = record.rules[rule]
            assert record.verdict(rule) is result.verdict
            assert answer["rank"] == result.measured["rank"]
            assert answer["tolerance"] == pytest.approx(result.tolerance.value, rel=1e-6)
            assert answer["residual"][0] == pytest.approx(result.measured["residual"], abs=1e-12)
            assert record.largest == pytest.approx(result.measured["largest_singular_value"], rel=1e-9)
            verdicts.add(record.verdict(rule))
        logits = model(inputs)
        assert record.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
        assert record.error == pytest.approx((logits.argmax(1) != labels).float().mean().item())
    assert verdicts >= {Verdict.HOLDS, Verdict.FAILS}


def test_full_rank_by_the_gram_matrix_is_refused_where_it_cannot_tell():
    """A singular value below the rounding of M, and one within a hundred tolerances, are left to the accurate way."""
    model, (x, y) = mlp(), data()
    evaluator = AlignmentEvaluator(prepare_alignment(model, x, y, "cross_entropy", "float64"))
    q = torch.linalg.qr(torch.randn(evaluator.N, evaluator.N, dtype=torch.float64))[0]
    levels = torch.ones(evaluator.N, dtype=torch.float64)
    for smallest, clear in ((1e-2, True), (1e-7, False), (1e-11, False), (0.0, False)):
        levels[-1] = smallest
        M = (q * levels**2) @ q.T
        computed = full_rank(M, evaluator._scale, ("press", "golub"))
        assert (computed is not None) == clear, smallest
        large = torch.zeros(1600, 1600, dtype=torch.float64).fill_diagonal_(1.0)  # by Cholesky alone
        large[0, 0] = smallest**2
        scale_of = lambda s: AlignmentEvaluator._scale(evaluator, s)  # noqa: E731
        assert (full_rank(large, scale_of, ("press", "golub")) is not None) == clear, smallest


def test_sums_of_few_terms_leave_less_rounding():
    """Between the two bounds of the rounding, a smallest eigenvalue counts where M was made of short sums."""
    model, (x, y) = mlp(), data()
    evaluator = AlignmentEvaluator(prepare_alignment(model, x, y, "cross_entropy", "float64"))
    N, d, eps = evaluator.N, evaluator.d, 2.0**-52
    levels = torch.ones(N, dtype=torch.float64)
    levels[-1] = math.sqrt(2.0 * (d / 4 + N) * eps * N)
    M = torch.diag(levels**2)
    assert full_rank(M, evaluator._scale, ("press",)) is None
    computed = full_rank(M, evaluator._scale, ("press",), terms=d // 8)
    assert computed is not None
    assert computed[2] == pytest.approx(float(levels[-1]))


def test_least_squares_bounds_hold_the_residual_and_agree(monkeypatch):
    """Without singular values: bounds around those of the accurate way, and no opposite verdict."""
    from alignver.checks import alignment_evaluator

    for loss, width in (("cross_entropy", 16), ("cross_entropy", 2)):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Conv1d(1, width, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2 * width, 2))
        x, y = data(12)
        requested = prepare_alignment(model, x[:, None], y, loss, "float64")
        exact = AlignmentEvaluator(requested, thorough=True).evaluate()
        evaluator = AlignmentEvaluator(requested)
        monkeypatch.setattr(alignment_evaluator, "full_rank", lambda *_, **__: None)
        monkeypatch.setattr(alignment_evaluator, "_SOON", 0.0)
        monkeypatch.setattr(alignment_evaluator, "ROWS", 0)
        for fits in (True, False):
            monkeypatch.setattr(AlignmentEvaluator, "_fits", lambda self, fits=fits: fits)
            computed = evaluator.evaluate()
            assert computed.methods[-1] == ("least squares with the Gram matrix" if fits else "LSMR")
            for rule, answer in computed.answers.items():
                low, high = answer["residual"]
                assert low - 1e-12 <= exact.answers[rule]["residual"][0] <= high + 1e-12
                assert {answer["verdict"], exact.answers[rule]["verdict"]} != {"HOLDS", "FAILS"}
        monkeypatch.undo()


def test_q_counts_fails_and_undecided_apart():
    sine = sine_wave(80, seed=0)
    model = fully_connected(1, width=60, seed=1)
    tracker = AlignmentTracker(model, sine.x, sine.y, loss="binary_cross_entropy")
    for _ in range(4):
        tracker.update()
    verdicts = {rule: [record.verdict(rule) for record in tracker.history] for rule in ("press", "golub")}
    for rule, (fails, more) in tracker.q().items():
        assert fails == sum(v is Verdict.FAILS for v in verdicts[rule])
        assert more - fails == sum(v is Verdict.UNDECIDED for v in verdicts[rule])
    assert tracker.q()["golub"] == (4, 4)


def test_the_change_is_that_of_the_gram_matrices():
    model, (x, y) = mlp(), data()
    first = av.gram(model, x)
    exact = AlignmentTracker(model, x, y, loss="cross_entropy")
    probed = AlignmentTracker(model, x, y, loss="cross_entropy", change="probes")
    none = AlignmentTracker(model, x, y, loss="cross_entropy", change="off")
    assert exact.update().change["value"] == 0.0
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
    wanted = float(((av.gram(model, x) - first) ** 2).sum())
    assert exact.update().change["value"] == pytest.approx(wanted, rel=1e-9)
    change = probed.update().change
    assert change["rigor"] == "STATISTICAL"
    assert change["interval"][0] <= wanted <= change["interval"][1]
    assert none.update().change is None


def test_a_run_that_diverged_is_recorded_not_ended():
    model, (x, y) = mlp(), data()
    tracker = AlignmentTracker(model, x, y, loss="cross_entropy")
    tracker.update()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    record = tracker.update()
    assert record.verdict("press") is Verdict.UNDECIDED
    assert record.reason.startswith("no check: ")
    assert bool(model[0].weight[0, 0].isnan())
    assert tracker.q() == {"press": (0, 1), "golub": (0, 1)}


def test_parameters_that_are_replaced_are_seen():
    """The compressed way keeps the model's copies from look to look."""
    model, (x, y) = mlp(), data()
    tracker = AlignmentTracker(model, x, y, loss="cross_entropy")
    tracker.update()
    other = mlp(seed=9)
    model[0].weight = nn.Parameter(other[0].weight.detach().clone())
    assert tracker.update().largest == pytest.approx(float(torch.linalg.svdvals(av.jacobian(model, x))[0]), rel=1e-9)
    model[2].weight.requires_grad_(False)
    tracker.update()  # another question: refused, and said so
    assert tracker.history[-1].step == 2


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6]), ("3 steps", [0, 3, 6])])
def test_schedule_by_steps(every, steps):
    model, (x, y) = mlp(), data()
    tracker = AlignmentTracker(model, x, y, loss="cross_entropy", every=every)
    computed = [tracker.update() for _ in range(8)]
    assert [record.step for record in computed if record] == steps
    assert [record.step for record in tracker.history] == steps


def test_schedule_by_epochs():
    model, (x, y) = mlp(), data()
    tracker = AlignmentTracker(model, x, y, loss="cross_entropy", every="2 epochs")
    tracker.update()
    for _ in range(5):
        for _ in range(3):
            tracker.update()
        tracker.end_epoch()
    assert [(record.step, record.epoch) for record in tracker.history] == [(0, 0), (6, 2), (12, 4)]


def test_schedule_by_share_of_the_time(monkeypatch):
    """With a clock of our own: checks of 2 s, steps of 1 s, 10 %: never more than a tenth after the first check."""
    from alignver.training import tracker as module

    now = [0.0]

    class Time:
        perf_counter = staticmethod(lambda: now[0])
        time = staticmethod(lambda: now[0])

    monkeypatch.setattr(module, "time", Time)
    monkeypatch.setattr("alignver.training.tracker.time", Time)
    model, (x, y) = mlp(), data()
    tracker = AlignmentTracker(model, x, y, loss="cross_entropy", every="10%")
    look = tracker.evaluator.evaluate

    def slow():
        now[0] += 2.0
        return look()

    monkeypatch.setattr(tracker.evaluator, "evaluate", slow)
    for t in range(100):
        tracker.update()
        now[0] += 1.0
        if t > 40:
            assert tracker.clock.checking <= 0.1 * tracker.clock.training
    assert [record.step for record in tracker.history] == [0, 40, 60, 80]
    assert tracker.history[1].training_seconds == pytest.approx(40.0)


@pytest.mark.parametrize("every", [0, -1, True, 1.5, "often", "0%", "x%", "0 epochs", "inf%", None])
def test_schedules_that_are_none(every):
    with pytest.raises(InvalidInput, match="every"):
        Schedule.of(every)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("mode", {"mode": "train"}),
        ("change", {"change": "maybe"}),
        ("rules", {"rules": ["golub-qr"]}),
        ("rules", {"rules": "press"}),
        ("structure", {"structure": "2"}),
        ("theorem_3", {"theorem_3": {"lipschitz": 1.0, "rate": 0.1}}),
        ("theorem_3", {"structure": True, "theorem_3": {"lipschitz": 1.0, "rate": 3.0}}),
        ("theorem_3", {"structure": True, "theorem_3": {"lipschitz": 1.0}}),
        ("loss", {"loss": "hinge"}),
        ("residual_tolerance", {"residual_tolerance": -1.0}),
        ("network_at", {"network_at": 3}),
    ],
)
def test_options_out_of_range(argument, options):
    model, (x, y) = mlp(), data()
    with pytest.raises(InvalidInput) as caught:
        AlignmentTracker(model, x, y, **{"loss": "cross_entropy", **options})
    assert caught.value.argument == argument


def test_assumption_1_and_theorem_3_along_gradient_descent():
    """Least squares with a linear model: L is known, the bound is above the least loss at every check."""
    torch.manual_seed(0)
    x = torch.randn(6, 9, dtype=torch.float64)
    y = torch.randn(6, 1, dtype=torch.float64)
    model = nn.Linear(9, 1, bias=False).double()
    lipschitz = 2.0 / 6.0 * float(torch.linalg.svdvals(x)[0]) ** 2
    rate = 1.0 / lipschitz
    tracker = AlignmentTracker(
        model, x, y, loss="squared", structure=True, theorem_3={"lipschitz": lipschitz, "rate": rate}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    bounds = []
    for _ in range(30):
        record = tracker.update()
        assert record.structure["verdict"] == "HOLDS"
        assert record.theorem_3["least_loss"] <= record.theorem_3["bound"]
        bounds.append(record.theorem_3["bound"])
        optimizer.zero_grad()
        ((model(x) - y) ** 2).sum(1).mean().backward()
        optimizer.step()
    first = tracker.history[0].theorem_3
    assert first["beta_norm"] == pytest.approx(float((torch.linalg.pinv(x) @ y).norm()), rel=1e-8)
    assert first["nu_norm"] > 0.0
    assert bounds[-1] < bounds[0]


def test_a_theorem_without_its_premise_has_no_bound():
    """f = theta^4 ... has no S: no bound, whatever the alignment says."""

    class Quartic(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))

        def forward(self, x):
            return (self.theta**4 - 10 * self.theta**2 + 6 * self.theta + 100) * x

    tracker = AlignmentTracker(
        Quartic(), [[1.0]], [0.0], loss="squared", structure=["theta"], theorem_3={"lipschitz": 1.0, "rate": 0.1}
    )
    record = tracker.update()
    assert record.structure["verdict"] == "FAILS"
    assert record.theorem_3["bound"] is None


def test_resume_goes_on_with_counts_changes_and_theorem(tmp_path):
    model, (x, y) = mlp(), data()
    start = copy.deepcopy(model.state_dict())
    options = {"loss": "cross_entropy", "structure": True, "theorem_3": {"lipschitz": 10.0, "rate": 0.1}}

    def move():
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)

    tracker = AlignmentTracker(model, x, y, path=tmp_path / "h.jsonl", **options)
    whole = AlignmentTracker(model, x, y, **options)
    for _ in range(3):
        tracker.update()
        whole.update()
        move()
    tracker = AlignmentTracker(model, x, y, path=tmp_path / "h.jsonl", resume=True, start=start, **options)
    assert tracker.step == 2
    tracker.update()
    wanted = whole.update()
    assert tracker.history[-1].step == 3
    assert tracker.history[-1].change["value"] == pytest.approx(wanted.change["value"], rel=1e-9)
    assert tracker.history[-1].theorem_3 == wanted.theorem_3
    assert tracker.q() == whole.q()
    assert History.read(tmp_path / "h.jsonl") == tracker.history
    unknown = AlignmentTracker(model, x, y, path=tmp_path / "h.jsonl", resume=True, **options)
    assert unknown.update().change is None  # theta^0 is not at hand: no number rather than a wrong one
    with pytest.raises(InvalidInput, match="another configuration: data"):
        AlignmentTracker(model, x + 1.0, y, path=tmp_path / "h.jsonl", resume=True, **options)
    with pytest.raises(InvalidInput, match="resume=True"):
        AlignmentTracker(model, x, y, path=tmp_path / "h.jsonl", **options)


@pytest.mark.parametrize("step", ["a", -4, 1.5, True])
def test_a_step_that_is_no_count_is_refused_and_changes_nothing(step):
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    tracker = AlignmentTracker(nn.Sequential(nn.Linear(3, 2)), x, y, loss="cross_entropy")
    tracker.update(7)
    with pytest.raises(InvalidInput, match="step") as caught:
        tracker.update(step)
    assert (caught.value.code, tracker.step) == ("not-an-integer", 7)


def test_refusals_name_the_tracker_s_own_arguments():
    model, (x, y) = mlp(), data()
    with pytest.raises(InvalidInput, match="start: got a list") as caught:
        AlignmentTracker(model, x, y, loss="cross_entropy", start=[])
    assert caught.value.code == "wrong-type"
    with pytest.raises(InvalidInput, match="rules: got 'press'; needs a list") as caught:
        AlignmentTracker(model, x, y, loss="cross_entropy", rules="press")
    assert caught.value.code == "wrong-type"


def test_a_tracker_in_a_thread_beside_the_training():
    X, Y = data(12)
    runs = []
    for watched in (False, True):
        net, done, failures = mlp(), threading.Event(), []
        tracker = AlignmentTracker(net, X, Y, loss="cross_entropy")

        def watch(tracker=tracker, done=done, failures=failures):
            try:
                while not done.is_set():
                    tracker.update()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=watch)
        if watched:
            thread.start()
        torch.manual_seed(1)
        random.seed(1)
        optimizer, draws = torch.optim.SGD(net.parameters(), lr=0.05), []
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X), Y).backward()
            optimizer.step()
            draws += [float(torch.rand(())), random.random()]
        done.set()
        if watched:
            thread.join()
            assert {record.verdict("golub") for record in tracker.history} == {Verdict.HOLDS}
        assert not failures
        runs.append([[parameter.tolist() for parameter in net.parameters()], draws])
    assert runs[0] == runs[1]


def frozen(net):
    net[0].requires_grad_(False)


def replaced(net):
    net[2] = nn.Linear(16, 2)


def wider(net):
    net[0], net[2] = nn.Linear(3, 20), nn.Linear(20, 2)


def another_activation(net):
    net[1] = nn.Softplus()


@pytest.mark.parametrize("change", [frozen, replaced, wider, another_activation])
def test_a_model_that_changes_during_the_training(change):
    X, Y = data(20)
    net = mlp()
    tracker = AlignmentTracker(net, X, Y, loss="cross_entropy")
    assert tracker.update().verdict("golub") is Verdict.HOLDS  # 98 parameters for 40 rows
    change(net)
    record = tracker.update()
    expected = av.check_alignment(net, X, Y, loss="cross_entropy", certify=False)
    assert record.verdict("golub") is expected.verdict
    assert (expected.verdict is Verdict.FAILS) == (change is frozen)  # 34 parameters
    if record.smallest is not None and change is not frozen:
        singular = torch.linalg.svdvals(av.jacobian(net, X))
        assert math.isclose(record.smallest, float(singular[-1]), rel_tol=1e-6)
