"""What the graph must not prove: shared memory, infinities, ranges of integers, norms of matrices."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import alignver as av
from alignver.checks.analytic import check_analytic
from alignver.checks.common_structure import check_common_structure
from alignver.errors import InvalidInput
from alignver.network import trace
from alignver.network.degrees import prove_structure, refute_structure
from alignver.network.trace import trace_model
from alignver.results import Rigor, Verdict

X = torch.ones(12, 3)


class Network(nn.Module):
    def __init__(self, function, prepare=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.a = nn.Parameter(torch.randn(4, generator=generator))
        self.t = nn.Parameter(torch.randn((), generator=generator))
        self.function = function
        if prepare is not None:
            prepare(self)
        self.eval()

    def forward(self, x):
        return self.function(self, x)


class Named(nn.Parameter):
    pass


def fixed(value):
    return lambda net: setattr(net, "c", nn.Parameter(torch.full((4,), value), requires_grad=False))


def subclass(net):
    net.p = Named(torch.ones(4))
    net.register_buffer("v", net.p.data)


def neighbours(net):
    memory = torch.randn(8)
    net.p, net.q = nn.Parameter(memory[:4], requires_grad=False), nn.Parameter(memory[4:])


def counted(net, x):
    net.count += 1
    return torch.relu(x @ net.w) if net.count > 50 else x @ net.w


class Uncopied(list):
    def __deepcopy__(self, memo):
        return self


def original(net):
    net.o = Uncopied([net])


def kept_array(net):
    net.array = np.ones(4, dtype=np.float32)
    net.p = nn.Parameter(torch.from_numpy(net.array))


NOT_ANALYTIC = {
    "a branch on the number of samples": (lambda net, x: torch.relu(x @ net.w) if len(x) > 8 else x @ net.w, None),
    "the memory of an array": (lambda net, x: torch.relu(torch.from_numpy(net.array)) * (x @ net.w), kept_array),
    "a logarithm of zero": (lambda net, x: torch.sigmoid(net.t * torch.log(torch.zeros(3))) * x, None),
    "a division by zero at these inputs": (lambda net, x: torch.sigmoid(net.t / torch.relu(x - 100.0)), None),
    "memory without a value": (lambda net, x: torch.sigmoid(torch.empty(3) * net.t) * x, None),
    "the mean of nothing": (lambda net, x: torch.exp(net.a)[:0].mean() * x, None),
    "a sum of nothing": (lambda net, x: torch.tanh(torch.logsumexp(net.a[:0], 0)) * net.t * x, None),
    "a part that the trace leaves out": (
        lambda net, x: x @ net.w + (0.0 if torch.compiler.is_exporting() else 0.02 * torch.relu(net.a)),
        None,
    ),
    "a step by a fixed infinite parameter": (lambda net, x: torch.sigmoid(net.a * net.c) * x[:, :1], fixed(math.inf)),
    "a row masked by a fixed parameter": (lambda net, x: torch.softmax(x @ net.w + net.c, -1), fixed(-math.inf)),
    "an infinite factor": (lambda net, x: torch.tanh(net.t * math.inf) * x, None),
    "division by zero": (lambda net, x: torch.sigmoid(net.t / 0.0) * x, None),
    "column sums": (lambda net, x: x * torch.linalg.norm(torch.exp(net.w), 1), None),
    "smallest singular value": (lambda net, x: x * torch.linalg.norm(torch.exp(net.w), -2), None),
    "bits read anew": (lambda net, x: x[:, :1] * net.a.view(torch.float16).float(), None),
    "bicubic": (
        lambda net, x: (
            x * torch.log(0.001 + F.interpolate((net.w**2)[None, None], scale_factor=2, mode="bicubic")).sum()
        ),
        None,
    ),
    "divisor below zero": (
        lambda net, x: x * torch.log(0.1 + F.avg_pool2d((net.w**2)[None, None], 2, divisor_override=-1)).sum(),
        None,
    ),
    "truncation": (lambda net, x: torch.log(torch.exp(net.t) * torch.sigmoid(x).long()), None),
    "threshold": (lambda net, x: torch.log(torch.exp(net.t) * F.softplus(x, 1.0, -100.0)), None),
    "a view of a parameter": (
        lambda net, x: x @ net.w @ torch.relu(net.v),
        lambda net: setattr(net, "v", net.w.t()),
    ),
    "a scalar product with a constant": (
        lambda net, x: x * torch.log(0.1 + torch.dot(torch.exp(net.a), torch.tensor([1.0, -1.0, 2.0, -2.0]))),
        None,
    ),
    "a divisor among three operands": (
        lambda net, x: torch.sigmoid(torch.addcdiv(net.t + x, net.t + x, torch.relu(x - 100.0))),
        None,
    ),
    "memory beside a tensor": (
        lambda net, x: x @ net.w * torch.relu(torch.as_strided(net.p, (4,), (1,), 4)),
        neighbours,
    ),
    "an attribute that counts": (counted, lambda net: setattr(net, "count", 0)),
    "a number read from the model itself": (lambda net, x: x @ net.w * max(net.o[0].t.item(), 0.0), original),
    "a list read from the model itself": (lambda net, x: x @ net.w * max(net.o[0].a.tolist()[0], 0.0), original),
    "a parameter of another class": (lambda net, x: torch.tanh(x @ net.w) @ torch.relu(net.v)[:, None], subclass),
}


@pytest.mark.parametrize("name", NOT_ANALYTIC)
def test_what_is_not_analytic_is_not_proved(name):
    assert check_analytic(Network(*NOT_ANALYTIC[name]), X).rigor is not Rigor.PROOF


UNDEFINED = {
    "clamped from below by a tensor": lambda net, x: torch.log(
        -torch.exp(net.t) * torch.clamp(-torch.ones(3), min=5 * torch.ones(3)) * x
    ),
    "a scale of attention": lambda net, x: F.scaled_dot_product_attention(
        x @ net.w, x @ net.w, x @ net.w, scale=math.inf
    ),
    "a row without scores": lambda net, x: torch.softmax(torch.full((3,), -math.inf), -1) * net.t * x,
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_is_not_finite_is_not_proved(name, monkeypatch):
    for x in (X, X[:4]):
        assert check_analytic(Network(UNDEFINED[name]), x).rigor is not Rigor.PROOF
    monkeypatch.setattr(trace, "require_same", lambda *args: None)  # the walk alone refuses it too
    assert check_analytic(Network(UNDEFINED[name]), X[:4]).rigor is not Rigor.PROOF


ZERO = {
    "clamped from below": lambda net, x: x @ net.w + torch.clamp(-torch.ones(4), min=torch.zeros(4)),
    "truncated": lambda net, x: x @ net.w + torch.full((4,), 0.5).long(),
    "filled with integers": lambda net, x: x @ net.w + torch.full((4,), 0.5, dtype=torch.long),
    "wrapped": lambda net, x: x @ net.w + torch.full((4,), 256).to(torch.uint8),
}


@pytest.mark.parametrize("name", ZERO)
def test_a_zero_offset_refutes_nothing(name):
    assert check_common_structure(Network(ZERO[name]), X).verdict.value != "FAILS"


def test_the_statistics_of_instance_norm_are_not_those_of_the_sample():
    def prepare(net):
        net.norm = nn.InstanceNorm1d(4, track_running_stats=True)
        net.norm.running_mean.fill_(2.0)
        net.norm.running_var.fill_(1.0 - 1e-5)

    net = Network(lambda net, x: x @ net.w + 1.0 + net.norm(torch.ones(1, 4, 2))[:, :, 0], prepare)
    assert check_common_structure(net, X).rigor is not Rigor.PROOF


def test_a_number_too_small_for_the_dtype_is_not_zero():
    net = Network(lambda net, x: x @ net.w + torch.zeros(4).fill_(1e-50))
    assert check_common_structure(net, X).verdict.value != "HOLDS"


def test_a_step_of_integers_is_not_zero():
    """Of a byte, 2 * 128 is 0; of a number it is not."""
    net = Network(lambda net, x: x @ net.w + 2 * torch.full((4,), 128, dtype=torch.uint8))
    assert check_common_structure(net, X).rigor is not Rigor.PROOF


def test_memory_beside_a_tensor_is_not_of_degree_zero():
    net = Network(
        lambda net, x: torch.as_strided(net.p, (4,), (1,), 4) * net.q * x[:, :1],
        lambda net: (neighbours(net), net.p.requires_grad_(True)),
    )
    assert prove_structure(trace_model(net, X), ["q"]) is None


def test_a_comparison_after_rounding_decides_nothing():
    """In float16, 2049 is 2048."""
    numbers = torch.tensor([2049]), torch.tensor([2048.0], dtype=torch.float16)
    net = Network(lambda net, x: x @ net.w + torch.where(numbers[0] == numbers[1], 0.0, 1.0) - 1.0)
    assert refute_structure(trace_model(net, X)) is None


@pytest.mark.parametrize("made", ["itself", "another"])
def test_a_copy_of_its_own_making_is_refused(made):
    class Own(Network):
        def __deepcopy__(self, memo):
            return self if made == "itself" else Network(lambda net, x: x @ net.w)

    net = Own(lambda net, x: torch.relu(x @ net.w))
    before = net.w.clone()
    with pytest.raises(InvalidInput, match="a copy of it has"):
        trace_model(net, X)
    assert torch.equal(net.w, before)


def test_parameters_on_one_array_are_one_leaf():
    array = np.random.default_rng(0).standard_normal(5).astype(np.float32)

    def prepare(net):
        net.p, net.q = nn.Parameter(torch.from_numpy(array[:4])), nn.Parameter(torch.from_numpy(array[1:]))

    net = Network(lambda net, x: torch.tanh((x @ net.w) * net.q) @ net.p[:, None], prepare)
    assert check_common_structure(net, X, S=["p"]).rigor is not Rigor.PROOF


def test_a_copy_that_parts_shared_memory_is_refused():
    class Parted(torch.Tensor):
        def __deepcopy__(self, memo):
            return torch.Tensor(self).clone()

    def prepare(net):
        net.v = net.a.data.as_subclass(Parted)

    with pytest.raises(InvalidInput, match="a copy does not share memory as the model does: a"):
        trace_model(Network(lambda net, x: x @ net.w @ (net.a * net.v)[:, None], prepare), X)


def test_tensors_without_memory_are_refused():
    def prepare(net):
        net.register_buffer("nowhere", torch.ones(2, device="meta"))

    with pytest.raises(InvalidInput, match="'nowhere' has no address"):
        trace_model(Network(lambda net, x: x @ net.w, prepare), X)


class Placed(nn.Module):
    """Adds a number by the place of a sample in its batch."""

    def __init__(self, table):
        super().__init__()
        self.inner, self.table = nn.Linear(1, 1), nn.Parameter(torch.tensor(table, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) + self.table[: len(x), None]


@pytest.mark.parametrize("table", [[0.1, 0.0, 0.0, 0.0], [0.0] * 4], ids=["a table", "a table of zeros"])
def test_a_sample_is_not_known_by_its_place_in_the_batch(table):
    model = Placed(table).double()
    with pytest.raises(InvalidInput, match="the sample's place in the batch"):
        av.trace_model(model, torch.ones(4, 1).double())
    result = av.check_optimality(model, X=np.ones((4, 1)), Y=np.ones(4), loss="squared", tolerance=1e-9)
    assert result.rigor is not Rigor.PROOF


def test_a_softplus_that_is_linear_early_is_not_the_softplus():
    model = nn.Sequential(nn.Linear(1, 1), nn.Softplus(threshold=1.0)).double()
    x = np.array([[0.5], [2.0], [3.0]])
    result = av.check_optimality(model, X=x, Y=np.log1p(np.exp(x[:, 0])), loss="squared", tolerance=1e-6)
    assert result.rigor is not Rigor.PROOF
    assert "threshold below 20" in result.evidence[0]


class Gained(nn.Module):
    """Adds a sigmoid, which is 0 at minus infinity, and not at a float that stands for it."""

    def __init__(self):
        super().__init__()
        self.inner, self.gain = nn.Linear(1, 1), nn.Parameter(torch.tensor(-torch.inf))

    def forward(self, x):
        return self.inner(x) + torch.sigmoid(self.gain * 1e-308)


def test_an_infinite_parameter_is_no_number():
    result = av.check_optimality(Gained().double(), X=[[1.0], [2.0]], Y=[1.0, 2.0], loss="squared", tolerance=1e-6)
    assert result.rigor is not Rigor.PROOF
    assert "the entry -inf" in result.evidence[0]


class Counted(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * self.calls


class Renormed(nn.Module):
    """A table that a lookup scales in place."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2, max_norm=0.1)

    def forward(self, x):
        return self.table(x.long()).sum(-1)


@pytest.mark.parametrize(
    ("build", "name", "need"),
    [
        (Counted, "calls", "a forward that does not modify"),
        (Renormed, "table.weight", "rows that are scaled already: model.table.max_norm = None"),
    ],
)
def test_a_forward_that_writes_is_refused_by_name(build, name, need):
    model = build().eval()
    with pytest.raises(InvalidInput, match=rf"writes to '{name}' in place; needs {need}"):
        av.check_optimality(model, X=[[1.0], [2.0]], Y=[1.0, 2.0], loss="squared", tolerance=1e-6)


class OwnDtype(nn.Module):
    """Computes in float32, whatever the dtype of its parameters."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, x):
        return self.inner(x.float())


def test_a_model_that_does_not_run_in_float64_has_a_loss():
    torch.manual_seed(0)
    model, X, Y = OwnDtype(), [[1.0], [2.0]], [1.0, 5.0]
    result = av.check_optimality(model, X=X, Y=Y, loss="squared", tolerance=1e-6)
    values = model(torch.tensor(X)).detach().double().numpy()[:, 0]
    assert result.measured["loss_as_run"] == pytest.approx(float(((values - Y) ** 2).mean()))
    assert result.verdict is not Verdict.HOLDS


class Cancelling(nn.Module):
    """A scalar product of tiny terms that cancel, moved, and scaled up: what is left is the rounding of the product."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64)[:, None])

    def forward(self, x):
        product = x @ self.w
        return torch.cat([product, product], 1)[:, :1] * 1e100 * 1e87


def test_small_radii_do_not_vanish():
    """Their squares underflow: a concatenation had the radius 0, and a loss of 5.6 was proved to be below 1e-270."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0.5, 2.0, (1, 3)), rng.uniform(0.5, 1.0, 3) * 1e-170
    w[2] = -(x[0, 0] * w[0] + x[0, 1] * w[1]) / x[0, 2]
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(x[0].tolist(), w.tolist(), strict=True))
    exact *= Fraction(1e100) * Fraction(1e87)
    model = Cancelling(w)
    for y in (model(torch.from_numpy(x)).detach().numpy(), np.array([[1.0]])):
        result = av.check_optimality(model, X=x, Y=y, loss="squared", tolerance=1e-6)
        loss = (exact - Fraction(float(y[0, 0]))) ** 2
        assert result.verdict is not Verdict.HOLDS
        assert Fraction(result.measured["loss_lower"]) <= loss <= Fraction(result.measured["loss_upper"])
