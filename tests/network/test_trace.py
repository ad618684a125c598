"""What a trace sees: memory, hooks, detach, custom backward passes; and what it refuses by name."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.checks.analytic import check_analytic
from alignver.checks.common_structure import check_common_structure
from alignver.errors import InvalidInput
from alignver.limits import OutOfTime, time_limit
from alignver.network.trace import trace_model
from alignver.results import Rigor, Verdict
from tests.reference import fingerprint

X = torch.linspace(-1.0, 2.0, 24).reshape(8, 3)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class Net(nn.Module):
    """A hidden layer, an output layer, one more matrix, and a function of all three."""

    def __init__(self, function, prepare=lambda net: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.o, self.w = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.randn(3, 2))
        self.function = function
        prepare(self)
        self.eval()

    def forward(self, x):
        return self.function(self, x)


def head(net, x):
    return net.o(torch.tanh(net.l(x)))


def second(net):
    net.v = nn.Parameter(net.w.data)


def view(net):
    net.v = net.w.data[0]  # a plain attribute


def buffer(value):
    return lambda net: net.register_buffer("z", torch.full((2,), value))


def on_w(net):
    net.register_buffer("z", net.w.data[0])


def frozen(net):
    net.o.bias.requires_grad_(False)


def table(**options):
    def prepare(net):
        net.e = nn.Embedding(5, 2, **options)

    return prepare


def index(x):
    return x[:, 0].abs().long() % 5


PROVED = {
    "a zero buffer": (lambda s, x: head(s, x) + s.z, buffer(0.0), ("o.weight", "o.bias"), ""),
    "a custom backward below": (lambda s, x: s.o(Straight.apply(s.l(x))), None, ("o.weight", "o.bias"), "Straight"),
    "detach": (lambda s, x: s.o(torch.tanh(s.l(x)).detach()), None, ("o.weight", "o.bias"), "detach"),
    "padding_idx": (lambda s, x: s.e(index(x)) + 0.0 * head(s, x), table(padding_idx=0), ("e.weight",), "padding_idx"),
    "memory that is filled": (lambda s, x: torch.empty(len(x), 2).copy_(head(s, x)), None, ("o.weight", "o.bias"), ""),
    "a condition": (lambda s, x: torch.where(s.w[0, 0] > 0, head(s, x), s.o(s.l(x))), None, ("o.weight", "o.bias"), ""),
    "a temperature": (lambda s, x: head(s, x) / s.w[0, 0], None, ("o.weight", "o.bias"), ""),
    "a step of constants": (lambda s, x: head(s, x) * torch.tensor(3.5).floor(), None, ("o.weight", "o.bias"), ""),
    "an in-place sum": (lambda s, x: torch.zeros(len(x), 2).add_(head(s, x)), None, ("o.weight", "o.bias"), ""),
}


@pytest.mark.parametrize("name", PROVED)
def test_the_last_layer_is_proved(name):
    function, prepare, S, hidden = PROVED[name]
    model = Net(function, prepare or (lambda net: None))
    before = fingerprint(model)
    result = check_common_structure(model, X)
    assert fingerprint(model) == before
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF), result
    assert result.measured["S"] == S
    assert any("autograd" in sentence and hidden in sentence for sentence in result.evidence) is bool(hidden)


UNPROVED = {
    "a second Parameter on one storage": (lambda s, x: torch.tanh(x @ s.w) @ s.v[:2], second),
    "a plain view of a parameter": (lambda s, x: x @ s.w * torch.tanh(s.v), view),
    "a buffer on a parameter": (lambda s, x: x @ s.w + torch.tanh(s.z), on_w),
    "a custom backward at the end": (lambda s, x: Straight.apply(s.o(s.l(x))), None),
    "a straight-through estimator": (lambda s, x: (h := s.o(s.l(x))) + (h.sign() - h).detach(), None),
}


@pytest.mark.parametrize("name", UNPROVED)
def test_what_autograd_cannot_decide_is_undecided(name):
    function, prepare = UNPROVED[name]
    result = check_common_structure(Net(function, prepare or (lambda net: None)), X)
    assert (result.verdict, result.code) == (Verdict.UNDECIDED, "structure-not-autograd"), result


@pytest.mark.parametrize(
    ("function", "prepare"),
    [(lambda s, x: head(s, x) + s.z, buffer(1.0)), (lambda s, x: torch.sigmoid(head(s, x)), None)],
)
def test_an_offset_refutes_every_subset(function, prepare):
    result = check_common_structure(Net(function, prepare or (lambda net: None)), X)
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: torch.div(head(s, x), 2, rounding_mode="floor"),
        lambda s, x: head(s, x) / s.o.weight.norm(),
        lambda s, x: head(s, x) + x[:, :2],
        lambda s, x: head(s, x) ** 2,
    ],
)
def test_no_proof_of_what_is_not_linear(function):
    result = check_common_structure(Net(function), X, S=["o"])
    assert result.verdict is not Verdict.HOLDS
    assert result.rigor is not Rigor.PROOF


def test_a_frozen_bias_spoils_the_last_layer():
    result = check_common_structure(Net(head, frozen), X, S=["o.weight"])
    assert result.verdict is Verdict.FAILS


REFUSED = {
    # torch 2.6 refuses it too, without the name
    "max_norm": (lambda s, x: s.e(index(x)) + head(s, x), table(max_norm=1.0), "e.weight|a mutation"),
    "a number from a parameter": (lambda s, x: head(s, x) * float(s.w.sum()), None, "data-dependent"),
    "numpy": (lambda s, x: torch.from_numpy(torch.tanh(s.l(x)).detach().numpy()), None, "numpy"),
    "control flow": (lambda s, x: head(s, x) if bool(x.sum() > 0) else -head(s, x), None, "data-dependent"),
    "two outputs": (lambda s, x: (head(s, x), x), None, "2 tensors"),
    "large integers": (lambda s, x: head(s, x) + (x[:, :2].long() + 2**60), None, "2\\*\\*53"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_named(name):
    function, prepare, word = REFUSED[name]
    with pytest.raises(InvalidInput, match=f"(?i){word}") as refused:
        trace_model(Net(function, prepare or (lambda net: None)), X)
    assert refused.value.argument == "model"


@pytest.mark.parametrize(("shift", "same"), [(0.0, True), (1e-2, False)])
def test_rounding_errors_are_told_from_other_functions_in_float64(shift, same):
    """Where large numbers cancel, outputs in float32 differ between batches by more than a few roundings."""

    def function(net, x):
        z = head(net, x)
        if len(x) > 4:  # 0 in real arithmetic, 0.03 in float32
            return z + ((1e6 * z + 0.3) - 1e6 * z - 0.3) + shift
        return z

    if same:
        traced = trace_model(Net(function), X)
        assert traced.evaluate(X[:4]).dtype == torch.float32
        return
    with pytest.raises(InvalidInput, match="differ between a batch of 8 samples and batches of 4"):
        trace_model(Net(function), X)


def test_a_closure_over_the_model_is_that_parameter():
    def prepare(net):
        w = net.w
        net.call = lambda x: torch.relu(x @ w)

    try:
        result = check_analytic(Net(lambda s, x: s.call(x), prepare))
    except InvalidInput:
        return
    assert result.verdict is Verdict.UNDECIDED


def test_dropout_that_draws_proves_nothing():
    result = check_analytic(Net(lambda s, x: F.dropout(head(s, x))))
    assert result.verdict is Verdict.UNDECIDED
    assert "random" in result.reason


class Branching(nn.Linear):
    """A model at which torch's tracer logs, and which prints, while another thread works."""

    def forward(self, x):
        print("in the model")
        if not self.met.is_set():
            self.met.set()
            self.go.wait(30)
        return super().forward(x if x.sum() > 0 else -x)


def test_another_thread_prints_and_logs_while_a_model_is_traced(capfd, caplog):
    model = Branching(3, 2)
    model.met, model.go = threading.Event(), threading.Event()
    before = sys.stdout, sys.stderr, list(logging.getLogger("torch").handlers), logging.root.manager.disable

    def speak():
        model.met.wait(30)
        print("heard", flush=True)
        print("heard too", file=sys.stderr, flush=True)
        logging.getLogger("program").warning("logged")
        model.go.set()

    other = threading.Thread(target=speak)
    other.start()
    with pytest.raises(InvalidInput, match="data-dependent"):
        trace_model(model, torch.ones(2, 3))
    other.join()
    assert capfd.readouterr() == ("heard\n", "heard too\n")
    assert [record.getMessage() for record in caplog.records] == ["logged"]
    assert before == (sys.stdout, sys.stderr, logging.getLogger("torch").handlers, logging.root.manager.disable)


def test_two_threads_that_trace_leave_streams_and_warnings_as_they_were():
    before = sys.stdout, sys.stderr, list(warnings.filters)
    threads = [
        threading.Thread(target=trace_model, args=(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.ones(2, 3)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == (sys.stdout, sys.stderr, list(warnings.filters))


def test_the_wait_for_another_trace_ends_at_the_limit():
    model = Branching(3, 2)
    model.met, model.go = threading.Event(), threading.Event()

    def trace():
        with contextlib.suppress(InvalidInput):
            trace_model(model, torch.ones(2, 3))

    other = threading.Thread(target=trace)
    other.start()
    model.met.wait(30)
    try:
        with pytest.raises(OutOfTime, match="another thread"), time_limit(0.5):
            trace_model(nn.Linear(3, 2), torch.ones(2, 3))
    finally:
        model.go.set()
        other.join()
    assert trace_model(nn.Linear(3, 2), torch.ones(2, 3)).graph.nodes
