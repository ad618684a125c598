"""Alignment proved through layer factors: the factors are those of J, the bound is true of J, the certificate holds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from alignver import recheck
from alignver.checks.alignment import check_alignment
from alignver.errors import InvalidInput
from alignver.jacobians import factored_proof
from alignver.jacobians.factored_proof import STEP, layer_factors, prove_by_factors
from alignver.jacobians.jacobian_form import Plan
from alignver.jacobians.prepare import inputs_again
from alignver.kernel import seal
from alignver.proof import load_certificate
from alignver.results import Rigor, Verdict
from tests import zoo
from tests.jacobians import networks
from tests.reference import fingerprint, reference_jacobian


def columns(layers) -> torch.Tensor:
    """J as the factors give it, rows j n + i."""
    parts = [np.einsum("ita,jitb->jiba", layer.inputs, layer.gradients) for layer in layers]
    return torch.from_numpy(np.concatenate([part.reshape(part.shape[0] * part.shape[1], -1) for part in parts], axis=1))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", [*zoo.CASES, *networks.NETWORKS])
def test_the_factors_are_those_of_the_jacobian(name):
    model, x = (zoo if name in zoo.CASES else networks).build(name)
    before = fingerprint(model)
    factors = layer_factors(model, x, chunk_size=2)
    assert fingerprint(model) == before
    J = reference_jacobian(model.layer if isinstance(model, zoo.Counting) else model, x)
    assert (factors.n * factors.m_y, factors.d) == tuple(J.shape)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert set(factors.left_out) <= set(names)
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    covered = torch.cat([torch.full((sizes[n],), n not in factors.left_out) for n in names])
    wanted = J[:, covered] @ J[:, covered].T
    if not factors.layers:
        assert not covered.any()
        return
    K = columns(factors.layers)
    assert K.shape[1] == int(covered.sum())
    assert float((K @ K.T - wanted).norm()) <= 1e-12 * float(wanted.norm())


COVERED = {
    "mlp": (), "lenet": (), "tied embedding": ("table.weight",), "layer norm": ("1.weight", "1.bias"),
    "weight norm": ("0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"),
    "reused and aliased": (), "attention": None, "gru": (),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, left in COVERED.items() if left is not None])
def test_which_parameters_have_factors(name):
    factors = layer_factors(*zoo.build(name))
    assert set(factors.left_out) == set(COVERED[name])


def test_a_budget_leaves_large_ones_out():
    model, x = zoo.build("mlp")
    whole = layer_factors(model, x)
    small = layer_factors(model, x, budget=sum(l.inputs.nbytes + l.gradients.nbytes for l in whole.layers[1:]))  # noqa: E741
    assert 0 < len(small.layers) < len(whole.layers)
    none = layer_factors(model, x, budget=0)
    assert none.layers == ()
    assert set(none.left_out) == {n for n, _ in model.named_parameters()}


def test_factors_of_a_model_in_float32_are_its_floats():
    model, x = zoo.build("mlp")
    factors = layer_factors(model, x, dtype="same")
    assert factors.computed_in == "float32"
    for layer in factors.layers:
        for factor in (layer.inputs, layer.gradients):
            assert factor.dtype == np.float64
            assert np.array_equal(factor, factor.astype(np.float32).astype(np.float64))


def wide(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor, np.ndarray]:
    """A network and samples that it can fit: 24 rows, 130 columns."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2), nn.LayerNorm(2)).to(dtype)
        x = torch.randn(12, 3, dtype=dtype)
    return model, x, np.cos(np.arange(24.0)).reshape(12, 2)


def narrow(seed: int = 0) -> tuple[nn.Module, torch.Tensor, np.ndarray]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)).double()
        x = torch.randn(8, 2, 6, dtype=torch.float64)
    return model, x, np.cos(np.arange(16.0)).reshape(8, 2)


@pytest.mark.parametrize("build", [wide, narrow])
def test_a_proof_and_its_certificate(build, tmp_path):
    model, x, Y = build()
    before = fingerprint(model)
    result = check_alignment(model, x, Y, loss="squared", engine="gram")
    assert fingerprint(model) == before
    if build is wide:  # what LayerNorm makes of two outputs has one dimension
        assert result.verdict is not Verdict.HOLDS
        assert any("no proof from the Gram matrix" in line for line in result.evidence)
        model = model[:3]
        result = check_alignment(model, x, Y, loss="squared", engine="gram")
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    proof = result.measured["proof"]
    assert proof["step"] == STEP
    smallest = float(torch.linalg.svdvals(reference_jacobian(model, x))[-1])
    assert proof["radius"] < proof["s_min_lower"] <= smallest
    assert proof["s_min_lower"] > smallest / 20
    assert result.measured["engine"].startswith("gram: from layer factors, without forming J; fallback: ")
    assert "layer factors" in proof["about"]
    certificate = load_certificate(result.certificate.save(tmp_path / "proof"))
    assert certificate.claim == "factored-membership"
    inputs, notes, covered = inputs_again(certificate, model, x, Y, loss="squared")
    assert covered
    assert set(inputs) == {"y"}
    assert "bit for bit" in notes[0]
    assert recheck(certificate, **inputs).verdict is Verdict.HOLDS


def test_digests_in_place_of_large_factors(monkeypatch, tmp_path):
    monkeypatch.setattr(factored_proof, "STORED", 0)
    model, x, Y = narrow()
    result = check_alignment(model, x, Y, loss="squared", engine="gram")
    assert any("has their digests" in line for line in result.evidence)
    certificate = load_certificate(result.certificate.save(tmp_path / "proof"))
    assert set(certificate.data) == {"scaling"}
    inputs, notes, covered = inputs_again(certificate, model, x, Y, loss="squared")
    assert covered
    assert set(inputs) == {"y", "A0", "B0", "A1", "B1"}
    assert "digests" in notes[0]
    assert recheck(certificate, **inputs).verdict is Verdict.HOLDS
    other, _, _ = narrow(seed=1)
    inputs, *_ = inputs_again(certificate, other, x, Y, loss="squared")
    assert recheck(certificate, **inputs).verdict is Verdict.FAILS
    inputs, *_ = inputs_again(certificate, model, 2 * x, Y, loss="squared")
    assert recheck(certificate, **inputs).verdict is Verdict.FAILS


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_without_entries_have_no_columns():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.empty, self.first, self.second = nn.Linear(3, 0), nn.Linear(3, 20), nn.Linear(20, 2)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x))) + self.empty(x).sum(1, keepdim=True)

    torch.manual_seed(0)
    model, x = Partly().double(), torch.randn(4, 3, dtype=torch.float64)
    assert [layer.name for layer in layer_factors(model, x).layers] == ["first.weight", "second.weight"]
    result = check_alignment(model, x, np.ones((4, 2)), loss="squared", engine="gram")
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.certificate.claim == "factored-membership"


def test_where_the_rows_are_dependent_nothing_is_proved():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 30), nn.Linear(30, 1)).double()  # linear in x: rank at most 2 of x's span
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    y = x**2
    result = check_alignment(model, x, y, loss="squared", engine="gram")
    assert result.verdict is Verdict.FAILS
    assert any("not safely definite" in line for line in result.evidence)


def test_samples_that_repeat_another_are_left_out():
    model, x, Y = narrow()
    result = check_alignment(model, torch.cat([x, x[:1]]), np.vstack([Y, Y[:1]]), loss="squared", engine="gram")
    alone = check_alignment(model, x, Y, loss="squared", engine="gram")
    assert (result.verdict, result.rigor) == (alone.verdict, alone.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.certificate.seal == alone.certificate.seal


def test_columns_without_factors_only_add():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 1)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    result = check_alignment(model, x, np.arange(9.0), loss="squared", engine="gram")
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert any("2 parameters have no factors here (1.weight, 1.bias)" in line for line in result.evidence)
    proof = result.measured["proof"]
    assert proof["s_min_lower"] <= float(torch.linalg.svdvals(reference_jacobian(model, x))[-1])
    assert result.measured["columns_with_factors"] == 61


def test_the_models_own_float32_has_a_radius_of_its_own():
    model, x, Y = narrow()
    model, x = model.float(), x.float()
    exact = check_alignment(model, x, Y, loss="squared", engine="gram")
    same = check_alignment(model, x, Y, loss="squared", engine="gram", dtype="same")
    assert (same.verdict, same.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert same.measured["computed_in"] == "float32"
    assert same.measured["proof"]["radius"] > 1e6 * exact.measured["proof"]["radius"]
    inputs, *_ = inputs_again(same.certificate, model, x, Y, loss="squared", dtype="same")
    assert recheck(same.certificate, **inputs).verdict is Verdict.HOLDS


def test_a_radius_beyond_the_smallest_singular_value_is_refused():
    model, x, Y = narrow()
    smallest = float(torch.linalg.svdvals(reference_jacobian(model, x))[-1])
    result = check_alignment(model, x, Y, loss="squared", engine="gram", tolerance=2 * smallest)
    assert any("exceeds the proved" in line for line in result.evidence)
    assert result.certificate is None or result.certificate.claim != "factored-membership"


def test_the_gram_matrix_is_tried_unasked_where_it_is_cheaper(monkeypatch):
    model, x, Y = narrow()
    monkeypatch.setattr("alignver.checks.alignment.gram_first", lambda *sizes, **options: True)
    result = check_alignment(model, x, Y, loss="squared", budget_seconds=0.0)
    assert result.certificate.claim == "factored-membership"
    for options in ({"certify": False}, {"method": "svd"}, {"engine": "dense"}):
        again = check_alignment(model, x, Y, loss="squared", **options)
        assert again.certificate is None or again.certificate.claim != "factored-membership"
    y = Y.ravel(order="F")
    options = {"rule": "golub", "tolerance": None, "dtype": "float64", "chunk_size": None, "required": False}
    attempt = prove_by_factors(model, x, y, plan=Plan("dense", "", 0, 10.0), **options)
    assert attempt.result is None
    assert attempt.reason.startswith("the layers' factors would take")


def certified(**changes) -> tuple[object, tuple[nn.Module, torch.Tensor, np.ndarray]]:
    model, x, Y = narrow()
    result = check_alignment(model, x, Y, loss="squared", engine="gram")
    return result.certificate, (model, x, Y)


def test_another_model_or_other_data_are_refused():
    certificate, (model, x, Y) = certified()
    need = "the same code, weights, seed and dtype"
    for other, inputs in (
        (narrow(seed=1)[0], x),
        (model, 1.001 * x),
        (model, x[:5]),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double(), x),
        (copy.deepcopy(model).requires_grad_(False), x),
    ):
        for p in list(other.parameters())[-1:]:
            p.requires_grad_(True)
        with pytest.raises(InvalidInput, match=need):
            inputs_again(certificate, other, inputs, Y[: len(inputs)], loss="squared")
    inputs, *_ = inputs_again(certificate, model, x, Y + 1, loss="squared")
    assert recheck(certificate, **inputs).verdict is Verdict.FAILS  # y has another digest
    with pytest.raises(InvalidInput):
        inputs_again(certificate, model, x, Y, loss="cross_entropy")


def test_factors_that_differ_by_rounding_are_measured_against_the_ball():
    certificate, (model, x, Y) = certified()
    for relative, words in ((1e-16, "is covered"), (1e-10, "nothing is proved about this model")):
        data = {k: v * (1 + relative) if k in ("A0", "B1") else v for k, v in certificate.data.items()}
        data["A1"] = data["A1"].copy()
        data["A1"].flat[0] = np.nextafter(data["A1"].flat[0], np.inf)
        other = seal(certificate.claim, certificate.method, {"y": Y.ravel(order="F")}, data, certificate.constants)
        inputs, notes, covered = inputs_again(other, model, x, Y, loss="squared")
        assert words in notes[0]
        assert covered is (relative == 1e-16)
        assert recheck(other, **inputs).verdict is Verdict.HOLDS


@pytest.mark.parametrize("lost", ["ball", "layers", "samples", "outputs"])
def test_certificates_that_lack_something_are_refused(lost):
    certificate, (model, x, Y) = certified()
    constants = {k: v for k, v in certificate.constants.items() if k != lost}
    other = seal(certificate.claim, certificate.method, {"y": Y.ravel(order="F")}, certificate.data, constants)
    with pytest.raises(InvalidInput, match="without the constants of its claim"):
        inputs_again(other, model, x, Y, loss="squared")
    inputs, *_ = inputs_again(certificate, model, x, Y, loss="squared")
    assert recheck(other, **inputs).verdict is Verdict.FAILS


def test_certificates_of_other_kinds():
    model, x, Y = narrow()
    dense = check_alignment(model, x, Y, loss="squared", engine="dense")
    inputs, notes, _ = inputs_again(dense.certificate, model, x, Y, loss="squared")
    assert "computed again" in notes[0]
    assert recheck(dense.certificate, **inputs).verdict is Verdict.HOLDS
    streamed = check_alignment(model, x, Y, loss="squared", engine="streamed")
    inputs, *_ = inputs_again(streamed.certificate, model, x, Y, loss="squared")
    assert recheck(streamed.certificate, **inputs).verdict is Verdict.HOLDS
    with pytest.raises(InvalidInput, match="one of this model and these data"):
        inputs_again(dense.certificate, nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double(), x, Y, loss="squared")
    rank = seal("rank", "shape", {"A": np.eye(2)}, {}, {"rank": 2})
    with pytest.raises(InvalidInput, match="check_alignment made"):
        inputs_again(rank, model, x, Y, loss="squared")
