"""What the data decide is answered before anything is computed, and samples that repeat others are merged."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.checks import alignment
from alignver.experiments.networks import lenet
from alignver.jacobians.prepare import prepare_alignment
from alignver.results import Rigor, Verdict
from alignver.training.tracker import AlignmentTracker


def mlp(sizes=(3, 16, 2), seed=0):
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def samples(n, m_x=3, classes=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, m_x, generator=g), torch.randint(0, classes, (n,), generator=g)


def repeated(n, copies, **options):
    x, y = samples(n, **options)
    return torch.cat([x, x[:copies]]), torch.cat([y, y[:copies]])


@pytest.mark.parametrize("engine", [None, "dense", "streamed", "gram", "matrix-free"])
def test_repeated_samples_are_merged_and_the_answer_is_for_all(engine):
    X, Y = repeated(8, 3)
    result = av.check_alignment(mlp(sizes=(3, 30, 2)), X, Y, loss="cross_entropy", engine=engine)
    assert result.verdict is Verdict.HOLDS
    if engine != "matrix-free":
        assert result.rigor is Rigor.PROOF
    assert (result.measured["n"], result.measured["distinct"]) == (11, 8)
    assert result.evidence[0] == (
        "3 samples repeat others, input and target (0 and 8, 1 and 9, ...): the check is made for the 8 distinct "
        "samples, and its answer is valid for all 11"
    )
    assert result.measured["conflicts"] == {"count": 0, "pairs": ()}


def test_the_merged_answer_is_that_of_the_distinct_samples():
    X, Y = repeated(9, 4)
    for model in (mlp(), mlp(sizes=(3, 2, 2))):  # full row rank, and too few parameters for it
        whole = av.check_alignment(model, X, Y, loss="cross_entropy")
        alone = av.check_alignment(model, X[:9], Y[:9], loss="cross_entropy")
        assert (whole.verdict, whole.rigor, whole.reason) == (alone.verdict, alone.rigor, alone.reason)
        assert whole.certificate.seal == alone.certificate.seal
        J, y = av.jacobian(model, X), prepare_alignment(model, X[:9], Y[:9], "cross_entropy", "float64").targets
        every = np.concatenate([y, y[:4]]).ravel(order="F")
        assert av.check_membership(J.numpy(), every, certify=False).verdict is whole.verdict  # J with its equal rows


def test_a_certificate_of_merged_samples_is_checked_again_from_the_model():
    from alignver.jacobians.prepare import inputs_again

    X, Y = repeated(6, 2)
    model = mlp()
    for labels, verdict in ((Y, Verdict.HOLDS), (torch.cat([Y[:-1], 1 - Y[-1:]]), Verdict.FAILS)):
        result = av.check_alignment(model, X, labels, loss="cross_entropy")
        assert (result.verdict, result.rigor) == (verdict, Rigor.PROOF)
        inputs, _, covered = inputs_again(result.certificate, model, X, labels, loss="cross_entropy")
        again = av.recheck(result.certificate, **inputs)
        assert (again.verdict, covered) == (Verdict.HOLDS, True)
        other = inputs_again(result.certificate, model, X, 1 - labels, loss="cross_entropy")[0]
        assert av.recheck(result.certificate, **other).verdict is Verdict.FAILS


def test_equality_is_asked_of_what_enters_the_model():
    X = torch.tensor([[0.1, 0.0], [0.1 + 1e-12, 0.0]], dtype=torch.float64)
    wide = mlp(sizes=(2, 9, 1)).double()
    assert av.check_alignment(wide, X, [0, 1], loss="binary_cross_entropy").verdict is not Verdict.FAILS
    rounded = X.float()
    result = av.check_alignment(mlp(sizes=(2, 9, 1)), rounded, [0, 1], loss="binary_cross_entropy")
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert result.certificate.inputs["X"]["dtype"] == "<f4"
    assert av.recheck(result.certificate, X=rounded, Y=[0, 1]).verdict is Verdict.HOLDS
    assert av.recheck(result.certificate, X=X, Y=[0, 1]).verdict is Verdict.HOLDS  # rounded by the re-check
    signed = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    assert (
        av.check_alignment(mlp(sizes=(2, 9, 1)), signed, [0, 1], loss="binary_cross_entropy").verdict is Verdict.FAILS
    )


def test_tokens_are_compared_as_integers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 3))
    X = torch.randint(0, 50, (5, 3), generator=torch.Generator().manual_seed(0))
    X[4] = X[1]
    assert av.check_alignment(model, X, [0, 1, 2, 0, 2], loss="cross_entropy").verdict is Verdict.FAILS
    merged = av.check_alignment(model, X, [0, 1, 2, 0, 1], loss="cross_entropy")
    assert merged.measured["distinct"] == 4


def test_the_conflict_costs_no_engine_at_any_size(monkeypatch):
    """60000 images, two conflicts: the answer comes before the Jacobian of 600000 rows is thought of."""
    monkeypatch.setattr(alignment, "planned", lambda *a: pytest.fail("an engine was chosen"))
    source = np.random.default_rng(0)
    X = source.random((60000, 1, 28, 28), dtype=np.float32)
    Y = source.integers(0, 10, 60000)
    X[59999], X[7] = X[12], X[30000]
    Y[59999], Y[7] = (Y[12] + 1) % 10, (Y[30000] + 1) % 10
    began = time.perf_counter()
    result = av.check_alignment(lenet(side=28), X, Y, loss="cross_entropy")
    seconds = time.perf_counter() - began
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert result.measured["conflicts"] == {"count": 2, "pairs": ((7, 30000), (12, 59999))}
    assert seconds < 15.0  # about one; benchmarks/data.py has the times
    assert result.measured["errors_lower"] == 2
    assert result.measured["loss_lower"] == pytest.approx(4 * np.log(2) / 60000, rel=1e-9)


def test_a_tracker_answers_from_the_data():
    X, Y = samples(12)
    X, Y = torch.cat([X, X[:1]]), torch.cat([Y, 1 - Y[:1]])
    model = mlp()
    tracker = AlignmentTracker(model, X, Y, loss="cross_entropy")
    record = tracker.update()
    assert {record.verdict(rule) for rule in ("press", "golub")} == {Verdict.FAILS}
    assert record.reason.startswith("data: samples 0 and 12 have equal inputs and different labels (0, 1)")
    logits = model(X)
    assert record.loss == pytest.approx(nn.functional.cross_entropy(logits, Y).item(), rel=1e-5)
    assert record.error == pytest.approx((logits.argmax(1) != Y).float().mean().item())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    tracker.update()
    assert tracker.history[-1].change["value"] > 0.0
    assert tracker.q() == {"press": (2, 2), "golub": (2, 2)}


def test_a_tracker_of_merged_samples_measures_all_of_them():
    X, Y = repeated(7, 3)
    model, twin = mlp(), mlp()
    tracker = AlignmentTracker(model, X, Y, loss="cross_entropy")
    probes = AlignmentTracker(twin, X, Y, loss="cross_entropy", change="exact")
    start = av.gram(model, X)
    tracker.update(), probes.update()
    for p, q in zip(model.parameters(), twin.parameters()):
        with torch.no_grad():
            p.mul_(1.3), q.mul_(1.3)
    record = tracker.update()
    wanted = float(((av.gram(model, X) - start) ** 2).sum())
    assert record.change["value"] == pytest.approx(wanted, rel=1e-9)
    logits = model(X)
    assert record.loss == pytest.approx(nn.functional.cross_entropy(logits, Y).item(), rel=1e-5)
    assert record.verdict("golub") is Verdict.HOLDS


def test_exploration_is_refuted_by_equal_inputs():
    X, _ = repeated(20, 2)
    Z = torch.cat([torch.tanh(X @ torch.randn(3, 5, generator=torch.Generator().manual_seed(2))), torch.ones(22, 1)], 1)
    Z[20:] += 1e-9 * torch.randn(2, 6, generator=torch.Generator().manual_seed(3))  # features of another batch
    Z[:, -1] = 1.0
    result = av.check_safe_exploration(Z.double(), X=X)
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert result.reason == (
        "samples 0 and 20 have equal inputs (1 other pair as well): rank phi is at most 20, below n = 22, for every "
        "theta, every width and all gates"
    )
    assert av.recheck(result.certificate, X=X).verdict is Verdict.HOLDS
    assert av.check_safe_exploration(Z[:20].double(), X=X[:20]).verdict is Verdict.HOLDS
    with pytest.raises(av.InvalidInput, match="X: got 22 samples for 20 rows of Z"):
        av.check_safe_exploration(Z[:20].double(), X=X)


def conflicting_model():
    """One feature besides the constant, equal for the first two samples, whose labels differ; the rest is fitted."""
    Z = np.array([[0.0, 1.0], [0.0, 1.0], [40.0, 1.0], [-40.0, 1.0]])
    X = np.array([[0.5], [0.5], [3.0], [-3.0]])
    model = av.Exploitation(Z, np.zeros((1, 2, 1)), np.ones((1, 1)))
    return model, X, np.array([[[2.0, 0.0]]]), [0, 1, 1, 0]


def test_the_gap_is_counted_from_what_the_data_cost():
    model, X, weights, Y = conflicting_model()
    options = {"loss": "binary_cross_entropy", "tolerance": 1e-6}
    without = av.check_optimality(model, weights, Y, **options)
    assert without.verdict is Verdict.UNDECIDED  # its loss is 0.35, and nothing here says that no model does better
    result = av.check_optimality(model, weights, Y, X=X, **options)
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.measured["infimum_lower"] == pytest.approx(np.log(2) / 2, rel=1e-9)
    assert "samples 0 and 1 have equal inputs and different labels (0, 1): no model fits both" in result.evidence
    inputs = model.inputs(weights, np.array(Y, dtype=float)[:, None])
    assert av.recheck(result.certificate, **inputs, X=X).verdict is Verdict.HOLDS
    apart = X + np.array([[0.0], [1e-9], [0.0], [0.0]])
    assert av.recheck(result.certificate, **inputs, X=apart).verdict is Verdict.FAILS
    with pytest.raises(av.InvalidInput, match="X: got 2 samples for 4 rows of Z"):
        av.check_optimality(model, weights, Y, X=X[:2], **options)
    with pytest.raises(av.InvalidInput, match="exactly R, W, X, Y, Z, theta"):
        av.recheck(result.certificate, **inputs)


def test_features_that_tell_equal_inputs_apart_leave_the_data_out():
    """Their loss may be below what any function of the inputs reaches: nothing may be taken off the gap."""
    model, X, weights, Y = conflicting_model()
    Z = model.Z.copy()
    Z[:2, 0] = -40.0, 40.0  # of equal inputs
    apart = av.Exploitation(Z, model.gates, model.output_weights)
    options = {"loss": "binary_cross_entropy", "tolerance": 1e-6, "X": X}
    good = av.check_optimality(apart, weights, Y, **options)
    assert (good.verdict, good.measured["infimum_lower"]) == (Verdict.HOLDS, 0.0)
    assert "equal inputs have different features in Z: the bound from the data is not used" in good.evidence
    again = av.recheck(good.certificate, **apart.inputs(weights, np.array(Y, dtype=float)[:, None]))
    assert again.verdict is Verdict.HOLDS
    worse = av.check_optimality(apart, 0.0 * weights, Y, **options)
    assert worse.verdict is Verdict.FAILS  # though the loss exceeds what the data cost by less than the gap


def test_data_that_cost_something_do_not_refute_optimality():
    """A conflict alone is no gap: what it costs no other model gets back."""
    model, X, weights, Y = conflicting_model()
    worse = av.check_optimality(model, 0.5 * weights, Y, X=X, loss="binary_cross_entropy", tolerance=1e-9)
    assert worse.verdict is not Verdict.HOLDS
    wide = av.check_optimality(model, 0.5 * weights, Y, X=X, loss="binary_cross_entropy", tolerance=0.1)
    assert (wide.verdict, wide.rigor) == (Verdict.HOLDS, Rigor.PROOF)


def test_a_data_set_gives_inputs_and_targets():
    X, Y = samples(6)
    data = torch.utils.data.TensorDataset(X, Y)
    for given in (data, torch.utils.data.DataLoader(data, batch_size=2)):
        with pytest.raises(av.InvalidInput, match=r"^Y: got targets in addition to those in X"):
            av.check_alignment(mlp(), given, Y, loss="cross_entropy")
        assert av.check_alignment(mlp(), given, loss="cross_entropy").verdict is Verdict.HOLDS
