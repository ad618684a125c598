"""Which parameters enter the outputs linearly, and models where none do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alignver.checks.common_structure import check_common_structure
from alignver.checks.model import check_model
from alignver.checks.structure import check_structure, indicator
from alignver.errors import InvalidInput
from alignver.kernel import verify
from alignver.results import CheckResult, Rigor, Subject, Verdict
from tests import zoo
from tests.reference import fingerprint, reference_jacobian


class Papers(nn.Module):
    """The counterexample of the paper: theta^4 - 10 theta^2 + 6 theta + 100."""

    def __init__(self, theta: float = 1.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.theta
        return (t**4 - 10 * t**2 + 6 * t + 100).expand(len(x))


# Where f = theta f' by accident: -3 theta^4 + 10 theta^2 + 100 = 0.
ACCIDENT = float(((10 + 1300**0.5) / 6) ** 0.5)


@pytest.mark.parametrize("theta", [1.0, 0.0, -2.0, ACCIDENT])
@pytest.mark.parametrize("S", [None, ["theta"], []])
def test_the_papers_counterexample_fails(theta, S):
    result = check_common_structure(Papers(theta), torch.zeros(3, 1), S=S)
    assert (result.verdict, result.rigor, result.code) == (Verdict.FAILS, Rigor.PROOF, "structure-offset")
    assert result.witness["theta"] == 0.0
    assert verify(result.certificate, {}).verdict is Verdict.HOLDS


class Unseen(Papers):
    """The same function, with a step that is no analytic operation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.sign(1 + self.theta**2)


@pytest.mark.parametrize("S", [None, ["theta"], []])
def test_the_probes_refute_it_as_well(S):
    result = check_common_structure(Unseen(), torch.zeros(3, 1), S=S)
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.NUMERICAL)
    assert result.witness is not None


def test_one_theta_where_it_holds_by_accident_is_not_enough():
    result = check_common_structure(Unseen(ACCIDENT), torch.zeros(3, 1), S=["theta"])
    assert result.measured["residuals"]["the model's theta"] < 1e-14
    assert result.verdict is Verdict.FAILS


LAST = {
    "linear": ("weight", "bias"),
    "mlp": ("6.weight", "6.bias"),
    "lenet": ("8.weight", "8.bias"),
    "relu in place first": ("1.weight", "1.bias"),
    "layer norm": ("3.weight", "3.bias"),
    "group norm": ("1.weight", "1.bias"),
    "batch norm in eval mode": ("4.weight", "4.bias"),
    "gru": ("out.weight", "out.bias"),
    "lstm": ("out.weight", "out.bias"),
    "rnn": ("out.weight", "out.bias"),
    "reused and aliased": ("out.weight", "out.bias"),
    "attention": ("out.weight", "out.bias"),
    "attention in eval mode": ("out.weight", "out.bias"),
    "frozen half": ("2.weight", "2.bias"),
    "weight norm": ("2.weight", "2.bias"),
    "one output, no axis": ("2.weight", "2.bias"),
    "caching": ("layer.weight", "layer.bias"),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_layer_is_found(name):
    model, x = zoo.build(name)
    before = fingerprint(model)
    result = check_common_structure(model, x)
    assert fingerprint(model) == before
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.measured["S"] == LAST[name]
    assert result.measured["everywhere"] is (name != "weight norm")
    again = verify(result.certificate, {})
    assert (again.verdict, again.subject) == (Verdict.HOLDS, Subject.NETWORK)
    assert CheckResult.from_dict(result.to_dict()) == result


@pytest.mark.parametrize("name", sorted(set(zoo.CASES) - set(LAST)))
def test_models_without_the_structure(name):
    """An embedding tied to the output, a shift used twice, a sine at the end of a branch or of the model."""
    model, x = zoo.build(name)
    before = fingerprint(model)
    result = check_common_structure(model, x)
    assert fingerprint(model) == before
    assert result.verdict is Verdict.FAILS


def test_the_tied_embedding_has_weights_that_are_not_an_indicator():
    """f = (J theta on the table) - (J theta on the mixing matrix): by a loop of autograd.grad."""
    model, x = zoo.build("tied embedding")
    J = reference_jacobian(model, x)
    table, mix = model.table.weight.detach().double().reshape(-1), model.mix.weight.detach().double().reshape(-1)
    f = model.double()(x).detach().T.reshape(-1)
    products = J[:, : len(table)] @ table, J[:, len(table) : len(table) + len(mix)] @ mix
    assert float((products[0] - products[1] - f).norm()) < 1e-12 * float(f.norm())
    assert float((products[0] - f).norm()) > 0.1 * float(f.norm())


class Heads(nn.Module):
    """A sum of two linear heads on different depths, and an output scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(3, 2), nn.Linear(5, 2, bias=False)
        self.body, self.table = nn.Linear(3, 5), nn.Embedding(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.late(torch.tanh(self.body(x))) + self.early(x) + self.table(x[:, 0].long().abs() % 4)


def test_a_sum_of_heads_is_found():
    torch.manual_seed(0)
    result = check_common_structure(Heads(), 3 * torch.randn(20, 3))
    assert result.verdict is Verdict.HOLDS
    assert set(result.measured["S"]) == {"early.weight", "early.bias", "late.weight", "table.weight"}


def test_homogeneous_networks_have_several_and_the_last_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = torch.randn(6, 3)
    assert check_common_structure(model, x).measured["S"] == ("2.weight",)
    assert check_common_structure(model, x, S=["0.weight"]).verdict is Verdict.HOLDS
    both = check_common_structure(model, x, S=["0", "2"])  # J theta = 2 f
    assert both.verdict is Verdict.FAILS


class Entries(nn.Module):
    """Only the first half of a vector is the output's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * self.w[2:]) @ self.w[:2]


def test_single_entries_are_found_in_a_small_model():
    torch.manual_seed(0)
    result = check_common_structure(Entries(), torch.randn(9, 2))
    assert result.verdict is Verdict.HOLDS
    assert result.measured["S"] == ("w[0]", "w[1]")


def test_a_large_model_without_whole_tensors_is_undecided():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 2), nn.Tanh())
    result = check_common_structure(model, torch.randn(10, 20))
    assert result.verdict is Verdict.UNDECIDED
    assert "single entries are not searched" in result.reason


def test_squares_have_weights_of_a_half():
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.a**2

    result = check_common_structure(Square(), torch.randn(5, 2))
    assert result.verdict is Verdict.FAILS
    assert "0.5" in result.reason


def test_names_of_parameters_modules_and_aliases():
    model, x = zoo.build("reused and aliased")
    assert check_common_structure(model, x, S=["out"]).verdict is Verdict.HOLDS
    assert check_common_structure(model, x, S=["same"]).measured["S"] == ("layer.weight", "layer.bias")
    assert check_common_structure(model, x, S=["out.weight"]).verdict is Verdict.FAILS


def test_a_frozen_head_is_no_part_of_theta_and_is_mentioned():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    result = check_common_structure(model, torch.randn(30, 3))
    assert result.verdict is not Verdict.HOLDS
    assert "frozen, so not a part of theta: 2.weight, 2.bias" in result.evidence


def test_the_models_own_dtype_and_a_tolerance_of_ones_own():
    model, x = zoo.build("mlp")
    single = check_common_structure(model, x, dtype="same")
    assert single.verdict is Verdict.HOLDS
    assert single.measured["computed_in"] == "float32"
    assert single.tolerance.value > 1e-6
    loose = check_common_structure(model, x, S=["4"], tolerance=1e3)
    assert loose.verdict is Verdict.HOLDS
    assert loose.tolerance.rule == "given"


def test_outputs_that_overflow_elsewhere():
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([200.0, 1.0], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a[1] * torch.exp(self.a[0] * x[:, 0])

    result = check_common_structure(Steep(), [[2.0], [3.0]], S=["a"])
    assert result.verdict is not Verdict.HOLDS


def test_the_same_seed_gives_the_same_thetas():
    model, x = zoo.build("mlp")
    first, second, other = (check_common_structure(model, x, S=["0"], seed=seed) for seed in (1, 1, 2))
    assert first.measured == second.measured
    assert list(first.measured["residuals"].values())[1:] != list(other.measured["residuals"].values())[1:]


@pytest.mark.parametrize(
    ("options", "argument", "word"),
    [
        ({"S": ["2.wieght"]}, "S", "2.weight"),
        ({"S": "2.weight"}, "S", "sequence"),
        ({"S": [3]}, "S", "sequence"),
        ({"S": ["1"]}, "S", "no trainable parameter"),
        ({"S": ["0.weight"]}, "S", "frozen"),
        ({"seed": -1}, "seed", "integer"),
        ({"tolerance": -1.0}, "tolerance", "tolerance"),
        ({"dtype": "int8"}, "dtype", "float64"),
    ],
)
def test_bad_options(options, argument, word):
    model, x = zoo.build("frozen half")
    with pytest.raises(InvalidInput, match=word) as refused:
        check_common_structure(model, x, **options)
    assert refused.value.argument == argument


@pytest.mark.parametrize(
    ("model", "X", "argument"),
    [
        (None, torch.zeros(2, 3), "model"),
        (nn.ReLU(), torch.zeros(2, 3), "model"),
        (nn.GRU(3, 2), torch.zeros(2, 3), "model"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.zeros(2, 3), "model"),
        (nn.Linear(3, 2), torch.zeros(0, 3), "X"),
        (nn.Linear(3, 2), [[float("nan")] * 3], "X"),
    ],
)
def test_bad_input(model, X, argument):
    with pytest.raises(InvalidInput) as refused:
        check_common_structure(model, X)
    assert refused.value.argument == argument


# The arrays part, which knows no torch.


def test_arrays_of_any_namespace(backend, rng):
    f = rng.standard_normal((4, 2))
    assert check_structure([backend(f)], [backend(f)], terms=3).verdict is Verdict.HOLDS
    assert check_structure([backend(f)], [backend(f + 1e-3)], terms=3).verdict is Verdict.FAILS


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0.0, Verdict.HOLDS), (1e-15, Verdict.HOLDS), (1e-10, Verdict.UNDECIDED), (1e-6, Verdict.FAILS)],
)
def test_between_rounding_and_refutation(change, verdict):
    f = np.ones((3, 1))
    result = check_structure([f, f], [f, f + change], terms=2)
    assert result.verdict is verdict
    assert all(bound.satisfied for bound in result.bounds)


@pytest.mark.parametrize(
    ("change", "verdict"), [(5e-12, Verdict.HOLDS), (5e-11, Verdict.UNDECIDED), (2e-10, Verdict.FAILS)]
)
def test_a_given_tolerance_stands_over_a_factor_of_ten(change, verdict):
    f = np.ones((3, 1))
    assert check_structure([f], [f + change], terms=2, tolerance=1e-11).verdict is verdict


def test_magnitudes_widen_what_counts_as_rounding():
    f, p = np.full((1, 1), 1e-3), np.full((1, 1), 1e-3 + 1e-13)
    assert check_structure([f], [p], terms=100).verdict is Verdict.UNDECIDED
    assert check_structure([f], [p], terms=100, magnitudes=[1e3]).verdict is Verdict.HOLDS


def test_zero_outputs_hold():
    assert check_structure([np.zeros((2, 1))], [np.zeros((2, 1))], terms=0).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("outputs", "products", "options", "argument"),
    [
        ([], [], {}, "products"),
        ([np.ones((2, 1))], [], {}, "products"),
        ([np.ones((2, 1))], [np.ones((1, 2))], {}, "products[0]"),
        ([np.ones(2)], [np.ones(2)], {}, "outputs[0]"),
        ([np.full((1, 1), np.nan)], [np.ones((1, 1))], {}, "outputs[0]"),
        ([np.ones((1, 1))], [np.ones((1, 1))], {"terms": -1}, "terms"),
        ([np.ones((1, 1))], [np.ones((1, 1))], {"magnitudes": [1.0, 2.0]}, "magnitudes"),
        ([np.ones((1, 1))], [np.ones((1, 1))], {"labels": []}, "labels"),
        ([np.ones((1, 1))], [np.ones((1, 1))], {"computed_in": "float8"}, "computed_in"),
        ([np.ones((1, 1))], [np.ones((1, 1))], {"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_bad_arrays(outputs, products, options, argument):
    with pytest.raises(InvalidInput) as refused:
        check_structure(outputs, products, **{"terms": 1, **options})
    assert refused.value.argument == argument


def test_indicators(rng):
    G = rng.standard_normal((12, 5))
    computed = indicator(G, G[:, 1] + G[:, 3])
    assert computed.subset() == (1, 3)
    assert computed.unique
    doubled = np.column_stack([G, G[:, 1]])
    again = indicator(doubled, G[:, 1] + G[:, 3])
    assert again.subset() == (1, 3)
    assert not again.unique
    assert indicator(G, rng.standard_normal(12)).residual > 1e-3
    assert indicator(np.zeros((3, 2)), np.zeros(3)).subset() == ()


def test_a_model_without_second_derivatives_is_refused():
    """torch.cdist has neither a forward mode nor a second backward pass."""

    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return torch.cdist(x, self.centres)

    model, x = Distances(), torch.ones(5, 3)
    with pytest.raises(InvalidInput, match="neither a forward mode nor second derivatives"):
        check_common_structure(model, x)
    assert check_model(model, x, torch.zeros(5, 4), loss="squared")["structure"].code == "structure-refused"
