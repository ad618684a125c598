"""check_optimality of torch modules: the loss of the network in real arithmetic, beside the one as it runs."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.checks.network_optimality import better_parameters
from alignver.errors import InvalidInput
from alignver.network.enclosed_loss import inputs_again
from alignver.results import CheckResult, Rigor, Subject, Verdict
from alignver.theory.losses import sample_loss
from tests.reference import fingerprint


def line(dtype=torch.float32, weight=2.0, bias=1.0):
    net = nn.Linear(1, 1).to(dtype)
    with torch.no_grad():
        net.weight.fill_(weight)
        net.bias.fill_(bias)
    return net


def check(net, X, Y, loss="squared", tolerance=1e-3, **options):
    return av.check_optimality(net, X=X, Y=Y, loss=loss, tolerance=tolerance, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gap_is_that_of_the_parameters_as_they_are(dtype):
    X, Y = torch.tensor([[0.5], [1.0], [2.0]]), np.array([1.2, 1.1, 1.7])
    net = line(dtype, weight=0.3, bias=1.1)
    before = fingerprint(net)
    result = check(net, X, Y, tolerance=1.0)
    assert fingerprint(net) == before
    assert (result.verdict, result.rigor, result.subject) == (Verdict.HOLDS, Rigor.PROOF, Subject.NETWORK)
    assert result.code == "optimality-network-below"
    w, b = (mpmath.mpf(float(p.detach().double())) for p in (net.weight, net.bias))
    with mpmath.workdps(50):
        pairs = zip(X.flatten().tolist(), Y.tolist(), strict=True)
        exact = sum((w * mpmath.mpf(x) + b - mpmath.mpf(y)) ** 2 for x, y in pairs) / 3
        assert result.measured["loss_lower"] <= exact <= result.measured["loss_upper"] <= result.measured["gap_upper"]
    assert result.measured["gap_upper"] == pytest.approx(float(exact), rel=1e-2)
    assert result.measured["loss_as_run"] == pytest.approx(float(exact), rel=0.2)
    assert f"as it runs, in {str(dtype)[6:]}" in str(result)
    assert CheckResult.from_dict(result.to_dict()).verdict is Verdict.HOLDS
    targets = Y[:, None]
    inputs, _ = inputs_again(result.certificate, net, X, targets)
    assert av.recheck(result.certificate, **inputs).verdict is Verdict.HOLDS


def test_rounded_inputs_are_told():
    assert "rounded to the dtype" not in str(check(line(), [[0.5]], [2.0]))
    assert "rounded to the dtype" in str(check(line(), [[0.1]], [1.2]))


def test_better_parameters_refute_with_a_certificate():
    X, Y = torch.linspace(-1.0, 1.0, 9)[:, None], np.linspace(-3.0, 1.0, 9)
    result = check(line(), X, Y, tolerance=1e-6)
    assert (result.verdict, result.rigor, result.subject) == (Verdict.FAILS, Rigor.PROOF, Subject.NETWORK)
    assert result.witness["kind"] == "better parameters"
    assert 3.9 < result.measured["gap_lower"] <= 4.0  # the bias is 2 too large
    inputs, _ = inputs_again(result.certificate, line(), X, Y[:, None])
    assert av.recheck(result.certificate, **inputs).verdict is Verdict.HOLDS
    frozen = line().requires_grad_(False)
    undecided = check(frozen, X, Y, tolerance=1e-6)
    assert (undecided.verdict, undecided.rigor) == (Verdict.UNDECIDED, Rigor.NUMERICAL)
    assert "no better parameters were found" in undecided.reason
    assert undecided.measured["gap_upper"] >= 4.0


@pytest.mark.parametrize("loss", ["squared", "binary_cross_entropy", "cross_entropy"])
def test_better_parameters_are_better(loss):
    torch.manual_seed(0)
    net, X = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(20, 2)
    Y = np.eye(3)[np.arange(20) % 3]
    values = better_parameters(net, X, Y, loss, seconds=20.0)
    assert set(values) == {name for name, _ in net.named_parameters()}
    other = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(torch.from_numpy(values[name]).view_as(p))
    named = sample_loss(loss, 3)
    losses = [named.values(model(X.to(p.dtype)).detach().double().numpy(), Y).mean()
              for model in (net, other) for p in [next(model.parameters())]]  # fmt: skip
    assert losses[1] < 0.9 * losses[0]
    assert set(better_parameters(net, X, Y, loss, seconds=0.0)) == set(values)  # the first ones, after no time


def test_the_gap_is_measured_from_what_the_data_allow():
    X, Y = [[0.0], [0.0], [1.0]], [0.0, 2.0, 3.0]
    result = check(line(), X, Y, tolerance=1e-9)
    assert result.verdict is Verdict.HOLDS  # the loss is 2/3, and no function of x has a smaller one
    assert result.measured["infimum_lower"] == pytest.approx(2 / 3)
    assert "samples 0 and 1 have equal inputs and different targets" in str(result)


def test_training_errors_are_counted():
    net = line(weight=10.0, bias=0.0)
    result = check(net, [[1.0], [-1.0], [2.0]], [1, 0, 0], loss="binary_cross_entropy", tolerance=10.0)
    assert result.measured["training_errors"] == 1
    assert not result.bounds[1].satisfied
    assert result.measured["loss_lower"] == pytest.approx(20.0 / 3, rel=1e-3)


class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = line()

    def forward(self, x):
        return self.inner(x) if bool((x > 0).any()) else -self.inner(x)


def test_without_a_graph_the_loss_as_it_runs_is_numerical():
    near = check(Asking(), [[1.0], [2.0]], [3.0, 5.001])
    assert (near.verdict, near.rigor, near.code) == (Verdict.HOLDS, Rigor.NUMERICAL, "optimality-run-below")
    assert "nothing is proved about the network" in near.evidence[0]
    assert "cannot be traced" in near.evidence[0]
    far = check(Asking(), [[1.0], [2.0]], [3.0, 6.0])
    assert (far.verdict, far.rigor, far.code) == (Verdict.UNDECIDED, Rigor.NUMERICAL, "optimality-run-above")
    assert "would take about" in check(line(), [[1.0]], [3.0], budget_seconds=0.0).evidence[0]
    bare = check(line(), [[1.0]], [3.0], certify=False)
    assert (bare.rigor, bare.certificate) == (Rigor.NUMERICAL, None)


def test_bad_input_is_named():
    net, X, Y = line(), [[1.0]], [3.0]
    for options, word in (
        ({"Y": None}, "Y: got nothing"),
        ({"X": None}, "X: got nothing"),
        ({"loss": "hinge"}, "loss: got loss='hinge'"),
        ({"Y": [1.0, 2.0]}, "Y: got"),
        ({"X": [[math.nan]]}, "X: got nan"),
        ({"budget_seconds": -1.0}, "budget_seconds"),
        ({"weights": np.ones((1, 1, 1))}, "weights with a module"),
    ):
        with pytest.raises(InvalidInput, match=word):
            av.check_optimality(net, **{"X": X, "Y": Y, "loss": "squared", "tolerance": 1.0, **options})
    with pytest.raises(InvalidInput, match="an Exploitation"):
        av.check_optimality("net", X=X, Y=Y, loss="squared", tolerance=1.0)
    with torch.no_grad():
        net.bias.fill_(math.inf)
    with pytest.raises(InvalidInput, match="NaN or Inf"):
        check(net, X, Y)
    deep = nn.Sequential(nn.Linear(1, 4), nn.Unflatten(1, (2, 2)))
    with pytest.raises(InvalidInput, match="a row of outputs per sample"):
        check(deep, X, Y)
    with pytest.raises(InvalidInput, match="X: got dtype int64; needs floating-point numbers for Linear"):
        check(line(), [[1], [2]], [3.0, 5.0])


class Formed(nn.Linear):
    """A line, and a function of what it gives."""

    def __init__(self, function):
        super().__init__(1, 1)
        self.function = function

    def forward(self, x):
        return self.function(super().forward(x))


@pytest.mark.parametrize("function", [torch.Tensor.to_sparse, lambda y: y * 1j], ids=["sparse", "complex"])
def test_outputs_that_are_no_dense_real_tensor_are_refused(function):
    with pytest.raises(InvalidInput, match="needs a model that returns a dense tensor of real numbers"):
        check(Formed(function), [[1.0]], [3.0])


class Single(nn.Linear):
    """Accepts float32 only."""

    def forward(self, x):
        assert x.dtype == torch.float32
        return super().forward(x)


def test_a_search_for_better_parameters_may_fail():
    assert check(Single(1, 1), [[1.0], [2.0]], [3.0, 5.0]).verdict is Verdict.UNDECIDED


def test_the_scale_of_the_loss_is_told():
    """torch's losses also divide by the number of outputs, or do not divide by that of samples."""
    net, X, Y = nn.Linear(2, 3), torch.eye(2), torch.ones(2, 3)
    said = "the sum over its 3 outputs: a mean over them, as torch's, is 3 times smaller"
    assert all(said in str(check(net, X, Y, nn.MSELoss(), certify=certify)) for certify in (True, False))
    assert said not in str(check(net, X, [0, 1], nn.CrossEntropyLoss()))
    with pytest.raises(InvalidInput, match=r"loss: got MSELoss with reduction='sum'; needs reduction='mean'"):
        check(net, X, Y, nn.MSELoss(reduction="sum"))
