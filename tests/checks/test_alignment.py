"""From a module and its data to a verdict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alignver.checks import alignment
from alignver.checks.alignment import check_alignment
from alignver.checks.membership import check_membership, membership_of
from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.jacobians import jacobian_form
from alignver.jacobians.jacobian import jacobian
from alignver.jacobians.prepare import inputs_again, prepare_alignment
from alignver.network import enclosures
from alignver.network.row_rank_bound import row_rank_bound
from alignver.results import CheckResult, Rigor, Verdict
from alignver.theory.losses import modified_targets
from tests import zoo
from tests.reference import fingerprint
from tests.reseal import resealed


def line(n: int = 6) -> np.ndarray:
    return np.linspace(-1.0, 1.0, n)[:, None]


def test_a_line_fits_lines_and_nothing_else():
    model, x = nn.Linear(1, 1), line()
    assert check_alignment(model, x, 3 * x - 1, loss="squared").verdict is Verdict.HOLDS
    assert check_alignment(model, x, x**2, loss="squared").verdict is Verdict.FAILS


@pytest.mark.parametrize("method", ["balls", "norms"])
def test_a_distance_of_the_network_is_checked_again(method, monkeypatch):
    monkeypatch.setattr(enclosures, "_QUICK", 0.0 if method == "norms" else 1.0)
    model, X, Y = nn.Linear(1, 1, bias=False), [[1.0], [2.0], [4.0]], [1.0, 3.0, -1.0]
    result = check_alignment(model, X, Y, loss="squared")
    assert (result.verdict, result.certificate.method) == (Verdict.FAILS, method)
    inputs = inputs_again(result.certificate, model, X, Y, loss="squared")[0]
    assert recheck(result.certificate, **inputs).verdict is Verdict.HOLDS
    more = resealed(result.certificate, distance=result.certificate.constants["distance"] * 1.01)
    assert recheck(more, **inputs).verdict is Verdict.FAILS


def test_the_result_says_what_was_checked():
    model, x = zoo.build("mlp")
    before = fingerprint(model)
    result = check_alignment(model, x, [0, 1, 0, 1, 1], loss="cross_entropy")
    assert fingerprint(model) == before
    assert (result.name, result.statement) == ("alignment", "Data-architecture alignment (Definition 2)")
    for key, value in {"n": 5, "m_y": 2, "d": 194, "loss": "cross_entropy", "dtype": "float64"}.items():
        assert result.measured[key] == value
    assert result.measured["computed_in"] == "float64"
    assert result.measured["planned"].startswith("dense: ")
    assert (
        "J: 5 samples, 2 outputs, 194 parameters; float64; torch.func, reverse mode, 5 samples at once"
        in result.evidence
    )
    assert result.cost["seconds"] > 0
    assert CheckResult.from_dict(result.to_dict()) == result


def test_what_the_membership_check_is_asked(monkeypatch):
    model, x = zoo.build("mlp")
    requested = []

    def spy(J, y, **options):
        requested.append((J, y, options))
        return membership_of(J, y, **options)

    monkeypatch.setattr(alignment, "membership_of", spy)
    Y = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [1, 1]])
    check_alignment(model, x, Y, loss="binary_cross_entropy", method="svd", rule="press", residual_tolerance=1e-6)
    J, y, options = requested[-1]
    assert torch.equal(J, jacobian(model, x))
    assert isinstance(y, torch.Tensor)
    assert y.tolist() == [-1, 1, -1, 1, 1, 1, 1, -1, -1, 1]  # column after column
    assert options == {
        "method": "svd",
        "rule": "press",
        "certify": True,
        "tolerance": None,
        "residual_tolerance": 1e-6,
        "computed_in": "float64",
        "rows": J.shape[0],
        "columns": J.shape[1],
        "deficient": False,
    }
    check_alignment(model, x, Y, loss="binary_cross_entropy", dtype="same")
    assert requested[-1][2]["computed_in"] == "float32"
    assert requested[-1][0].dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["gru", "tied embedding", "batch norm in eval mode", "control flow on data", "caching"]
)
def test_models_of_many_kinds(name):
    model, x = zoo.build(name)
    m_y = {"tied embedding": 7, "caching": 1}.get(name, 2)
    Y = np.arange(len(x) * m_y, dtype=np.float64).reshape(len(x), m_y) % 3
    before = fingerprint(model)
    result = check_alignment(model, x, Y, loss="squared")
    assert fingerprint(model) == before
    assert result.measured["m_y"] == m_y
    assert isinstance(result.verdict, Verdict)


@pytest.mark.parametrize("scale", [-2.0, 0.25])
def test_the_verdict_does_not_depend_on_the_order_of_samples_or_the_scale_of_targets(scale):
    model, x = zoo.build("mlp")
    y = np.arange(10.0).reshape(5, 2)
    turned = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    assert check_alignment(model, x, y, loss="squared").verdict is Verdict.HOLDS
    assert check_alignment(model, x[turned], scale * y[turned.numpy()], loss="squared").verdict is Verdict.HOLDS


def test_equal_inputs_with_different_labels():
    model, _ = zoo.build("mlp")
    x = np.array([[1.0, 2, 3], [4, 5, 6], [1, 2, 3], [0.0, 1, 0], [4, 5, 6], [-0.0, 1, 0], [1, 2, 3]])
    Y = [0, 1, 1, 0, 1, 0, 0]
    result = check_alignment(model, x, Y, loss="cross_entropy")
    assert result.verdict is Verdict.FAILS
    assert result.rigor is Rigor.PROOF
    assert result.reason == (
        "samples 0 and 2 have equal inputs and different labels (0, 1): no theta fits both; "
        "1 other pair conflicts (2 and 6)"
    )
    assert result.measured["conflicts"] == {"count": 2, "pairs": ((0, 2), (2, 6))}
    binary = check_alignment(zoo.build("one output, no axis")[0], x, Y, loss="binary_cross_entropy")
    assert "different labels (0, 1)" in str(binary)
    squared = check_alignment(zoo.build("one output, no axis")[0], x[:3], [0.5, 0.0, -2.0], loss="squared")
    assert "samples 0 and 2 have equal inputs and different targets (0.5, -2): no theta fits both" in squared.reason
    rows = check_alignment(model, x[:3], [[1, 0], [0, 0], [1, 1]], loss="squared")
    assert "samples 0 and 2 have equal inputs and different targets: no theta fits both" in rows.reason


def test_equal_inputs_with_equal_labels_are_no_conflict():
    model, x = zoo.build("mlp")
    result = check_alignment(model, torch.cat([x, x]), [0, 1, 0, 1, 1] * 2, loss="cross_entropy")
    assert result.verdict is Verdict.HOLDS
    assert result.measured["conflicts"] == {"count": 0, "pairs": ()}


@pytest.mark.parametrize("kind", ["numpy", "torch", "list"])
def test_targets_of_every_kind(kind):
    model, x = zoo.build("mlp")
    Y = np.array([0, 1, 0, 1, 1])
    given_as = {"numpy": Y, "torch": torch.from_numpy(Y), "list": Y.tolist()}[kind]
    assert check_alignment(model, x.numpy(), given_as, loss="cross_entropy").verdict is Verdict.HOLDS


def test_bfloat16_and_half_targets_and_models():
    model, x = zoo.build("mlp")
    for dtype in (torch.bfloat16, torch.float16):
        result = check_alignment(model.to(dtype), x.to(dtype), torch.ones(5, 2, dtype=dtype), loss="squared")
        assert result.measured["computed_in"] == "float64"


BAD = {
    "an unknown loss": ({"loss": "hinge"}, r"loss='hinge'.*'squared'"),
    "an unknown method": ({"method": "guess"}, r"method"),
    "an unknown rule": ({"rule": "thumb"}, r"rule"),
    "a tolerance below zero": ({"tolerance": -1.0}, r"tolerance"),
    "a residual tolerance of nan": ({"residual_tolerance": float("nan")}, r"residual_tolerance"),
    "too few targets": ({"Y": [0, 1]}, r"Y: got 2 rows for 5 samples in X"),
    "no rows": ({"Y": 3}, r"Y: got an int without rows"),
    "no targets": ({"Y": None}, r"Y: got no targets"),
    "a label out of range": ({"Y": [0, 1, 2, 0, 1]}, r"Y=2 at 2; needs labels 0\.\.1"),
    "sparse targets": ({"Y": torch.eye(5).to_sparse()}, r"dense tensor"),
    "meta targets": ({"Y": torch.ones(5, device="meta")}, r"meta"),
    "complex targets": ({"Y": torch.ones(5, 2) * 1j}, r"complex64"),
    "an option for the Jacobian": ({"chunk_size": -1}, r"chunk_size=-1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_before_the_long_work(name, monkeypatch):
    model, x = zoo.build("mlp")
    monkeypatch.setattr("alignver.jacobians.jacobian.vectorised", lambda *a: pytest.fail("the long work began"))
    monkeypatch.setattr("alignver.jacobians.jacobian.loop", lambda *a: pytest.fail("the long work began"))
    change, words = BAD[name]
    arguments = {"Y": [0, 1, 0, 1, 1], "loss": "cross_entropy"} | change
    Y = arguments.pop("Y")
    with pytest.raises(InvalidInput, match=words):
        check_alignment(model, x, Y, **arguments)


@pytest.mark.parametrize("engine", ["dense", "streamed", "matrix-free"])
def test_every_engine_gives_the_verdict(engine):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    result = check_alignment(model, x, np.arange(16.0).reshape(8, 2), loss="squared", engine=engine)
    assert result.verdict is Verdict.HOLDS
    assert (result.measured["n"], result.measured["m_y"], result.measured["d"]) == (8, 2, 122)
    assert result.measured["planned"].startswith(f"{engine}, as requested: ")
    linear = torch.nn.Linear(3, 1).double()
    bent = x[:, 0] ** 2 + 1.0
    options = {"engine": engine, "tolerance": 1e-8, "certify": False}
    assert check_alignment(linear, x, bent, loss="squared", **options).verdict is Verdict.FAILS


@pytest.mark.parametrize("engine", [None, "streamed", "gram", "matrix-free"])
def test_a_conflict_is_proved_before_an_engine_is_chosen(engine, monkeypatch):
    monkeypatch.setattr(alignment, "planned", lambda *a: pytest.fail("an engine was chosen"))
    model, _ = zoo.build("mlp")
    x = np.array([[1.0, 2, 3], [4, 5, 6], [1, 2, 3]])
    result = check_alignment(model, x, [0, 1, 1], loss="cross_entropy", engine=engine)
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert "different labels (0, 1)" in str(result)


def test_engines_are_known():
    model, x = zoo.build("mlp")
    for options in ({"engine": "fast"}, {"engine": "gram", "method": "svd"}, {"engine": "gram", "certify": False}):
        with pytest.raises(InvalidInput, match="engine"):
            check_alignment(model, x, np.zeros((5, 2)), loss="squared", **options)


def _wide_network(n: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network whose Jacobian is large enough for the Gram matrix to come first."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(500, 100), nn.Softplus(), nn.Linear(100, 60), nn.Softplus(), nn.Linear(60, 10))
        return model, torch.randn(n, 500), torch.arange(n) % 10


def test_a_numerical_answer_takes_what_the_proof_takes():
    model, X, Y = _wide_network(64)
    proved = check_alignment(model, X, Y, loss="cross_entropy")
    numerical = check_alignment(model, X, Y, loss="cross_entropy", certify=False)
    assert (proved.verdict, proved.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert (numerical.verdict, numerical.rigor, numerical.certificate) == (Verdict.HOLDS, Rigor.NUMERICAL, None)
    assert numerical.code == "alignment-at-tolerance"
    assert numerical.measured["rank"] == 640
    s = torch.linalg.svdvals(jacobian(model, X).double())
    assert 10.0 * numerical.tolerance.value <= numerical.measured["turns_at"] <= float(s[-1])


@pytest.mark.parametrize("certify", [True, False])
def test_nearly_equal_samples_are_decided_without_the_jacobian(certify, monkeypatch):
    model, X, Y = _wide_network(48)
    model, X = model.double(), X.double()
    X[3] = X[7] + 1e-13 * X[3]
    y = torch.from_numpy(modified_targets(Y.numpy(), "cross_entropy", 48, 10).ravel(order="F"))
    expected = check_membership(jacobian(model, X), y, method="svd", computed_in="float64")
    monkeypatch.setattr(jacobian_form, "differentiate", None)  # it would hold J in memory
    result = check_alignment(model, X, Y, loss="cross_entropy", certify=certify)
    assert result.verdict is expected.verdict is Verdict.FAILS
    assert result.measured["rank"] == expected.measured["rank"] == 470
    assert result.tolerance.value == pytest.approx(expected.tolerance.value, rel=1e-10)
    assert result.measured["residual"] == pytest.approx(expected.measured["residual"], rel=1e-6)
    assert "J J^T of the layers' factors in twice the precision represents the" in result.measured["engine"]
    assert result.plan["engine"] == "compressed"


@pytest.mark.parametrize("tail", [(), (nn.LogSoftmax(1),)])
def test_a_deficient_jacobian_is_decided_by_least_squares_with_the_gram_matrix(monkeypatch, tail):
    torch.manual_seed(0)
    body = (nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4))
    model, x, y = nn.Sequential(*body, *tail).double(), torch.randn(9, 6).double(), torch.arange(9) % 4
    by_factorization = check_alignment(model, x, y, loss="cross_entropy", certify=False)
    monkeypatch.setattr(alignment, "gram_first", lambda *_, **__: True)
    monkeypatch.setattr(alignment, "_LONG", 0.0)
    tries, inner = [], alignment.prove_by_factors
    monkeypatch.setattr(alignment, "prove_by_factors", lambda *args, **kw: tries.append(1) or inner(*args, **kw))
    result = check_alignment(model, x, y, loss="cross_entropy", certify=False)
    assert len(tries) == (0 if tail else 1)  # a few samples show that a proof of full rank fails
    assert result.verdict == by_factorization.verdict == ("FAILS" if tail else "HOLDS")
    if tail:  # the outputs of a sample add up to a function of the others
        assert result.code == "alignment-operator-not-at-tolerance"
        assert result.measured["residual"] == pytest.approx(by_factorization.measured["residual"], rel=1e-9)
        assert any("Gram matrix" in line for line in result.evidence)


def test_rows_of_every_size_are_not_taken_for_dependent():
    """Only rows of norm 1 tell whether a proof, which scales them, can succeed."""
    torch.manual_seed(0)
    x = torch.randn(9, 6).double() * 10.0 ** -torch.arange(0.0, 27.0, 3.0)[:, None]
    wide = nn.Sequential(nn.Linear(6, 40, bias=False), nn.Linear(40, 1, bias=False)).double()
    few = prepare_alignment(wide, x[:6], torch.randn(6), "squared", "float64")
    assert not alignment._dependent(few, "float64")
    assert alignment._dependent(prepare_alignment(wide, x, torch.randn(9), "squared", "float64"), "float64")


def test_what_least_squares_leaves_open_the_factorization_decides(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 4)).double()
    x, y = torch.randn(9, 6).double(), torch.arange(9) % 4
    x[1] = x[0] + 1e-9
    expected = check_alignment(model, x, y, loss="cross_entropy", certify=False)
    monkeypatch.setattr(alignment, "gram_first", lambda *_, **__: True)
    monkeypatch.setattr(alignment, "_LONG", 0.0)
    result = check_alignment(model, x, y, loss="cross_entropy", certify=False)
    assert (result.verdict, result.measured["rank"]) == (expected.verdict, expected.measured["rank"])


def test_more_parameters_than_entries_with_a_bound_of_the_rank_search_no_proof_of_full_rank(monkeypatch):
    model = nn.Sequential(nn.Linear(30, 1), nn.Tanh(), nn.Linear(1, 3)).double()
    x, y = torch.randn(20, 30).double(), torch.arange(20) % 3

    def never(inputs, attempts):
        assert inputs["J"].size == 1, "full column rank is impossible"  # the check of the options has one entry

    monkeypatch.setattr("alignver.proof.prove.membership_in_floats", never)
    assert row_rank_bound(model, x, 3).value < sum(p.numel() for p in model.parameters()) < 3 * len(x)
    assert check_alignment(model, x, y, loss="cross_entropy").verdict == "FAILS"
