"""One call that asks everything: the answers, their order, the limits, and what a part that cannot be asked does."""

from __future__ import annotations

import html
import time

import pytest
import torch
from torch import nn

import alignver as av
from alignver.checks import model as of_model
from alignver.jacobians.prepare import inputs_again
from alignver.network import trace
from tests import zoo
from tests.reference import fingerprint

NAMES = ["model", "data", "structure", "analytic", "alignment", "exploration", "optimality"]


def problem(width: int = 16, n: int = 12) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, width), nn.Softplus(), nn.Linear(width, 2))
    return net, torch.randn(n, 3), torch.arange(n) % 2


def test_every_question_has_an_answer_and_the_overview_is_that_of_alignment():
    net, X, Y = problem()
    before = fingerprint(net)
    report = av.check_model(net, X, Y, loss="cross_entropy", max_seconds=None)
    assert fingerprint(net) == before
    assert [result.name for result in report.results] == NAMES
    overview, alignment = report["model"], report["alignment"]
    assert (overview.verdict, overview.rigor, overview.subject) == ("HOLDS", "PROOF", "NETWORK")
    assert overview.certificate is alignment.certificate
    assert overview.reason.startswith(
        "the model can represent these targets at its parameters: proved about the network"
    )
    assert overview.measured["checks"]["structure"]["code"] == "structure-proved"
    assert overview.measured["kappa"] == alignment.measured["kappa"]
    assert "24 rows and 210 columns" in overview.evidence[0]
    assert len(overview.evidence) == len(NAMES)  # the sizes, and a sentence for each question
    assert report["exploration"].evidence[0] == "z: the output of '1' and the constant 1, for '2', which has 16 units"
    assert report["exploration"].subject == "NETWORK"
    inputs, _, covered = inputs_again(overview.certificate, net, X, Y, loss="cross_entropy")
    assert covered
    assert av.recheck(overview.certificate, **inputs).verdict == "HOLDS"


def test_the_answers_are_those_of_the_single_checks():
    net, X, Y = problem()
    report = av.check_model(net, X, Y, loss="cross_entropy", max_seconds=None)
    alone = {
        "data": av.check_data(X, Y, loss="cross_entropy"),
        "structure": av.check_common_structure(net, X),
        "analytic": av.check_analytic(net, X),
        "alignment": av.check_alignment(net, X, Y, loss="cross_entropy"),
        "exploration": av.check_safe_exploration(net, X=X, layer="1", width=16),
    }
    for name, result in alone.items():
        answer = report[name]
        assert (answer.verdict, answer.rigor, answer.subject) == (result.verdict, result.rigor, result.subject), name
    loss = float(nn.functional.cross_entropy(net(X), Y).detach())
    assert report["optimality"].measured["loss_as_run"] == pytest.approx(loss, rel=1e-6)


def test_the_model_is_traced_once_for_the_jacobian_the_features_and_the_loss(monkeypatch):
    counted = []
    exported = trace._exported

    def count(*args):
        counted.append(args)
        return exported(*args)

    monkeypatch.setattr(trace, "_exported", count)
    net, X, Y = problem()
    av.check_model(net, X, Y, loss="cross_entropy", max_seconds=None)
    assert len(counted) == 3


def test_data_that_conflict_come_first():
    net, X, Y = problem()
    X[3], Y[3], Y[7] = X[7], 0, 1
    overview = av.check_model(net, X, Y, loss="cross_entropy", max_seconds=None)["model"]
    assert (overview.verdict, overview.subject) == ("FAILS", "DATA")
    assert overview.reason.startswith("no model can represent these targets: samples 3 and 7 have equal inputs")
    assert overview.next_steps[0] == "look at these samples, and drop or relabel one of each pair"


def test_too_few_parameters_are_counted_in_the_first_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    X, Y = torch.randn(12, 3), torch.arange(12) % 2
    overview = av.check_model(net, X, Y, loss="cross_entropy", max_seconds=None)["model"]
    assert overview.verdict == "FAILS"
    assert "14 parameters are fewer than the 24 entries" in overview.next_steps[0]
    assert overview.next_steps[0].endswith("every target needs rank 24, which is 10 more")


def test_a_fitted_model_is_optimal_at_the_tolerance():
    net = nn.Linear(1, 1).double()
    with torch.no_grad():
        net.weight.fill_(2.0)
        net.bias.fill_(1.0)
    X = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    report = av.check_model(net, X, 2.0 * X + 1.0, loss="squared", max_seconds=None)
    assert report["optimality"].verdict == "HOLDS"
    moved = av.check_model(net, X, 2.0 * X + 1.1, loss="squared", gap=0.005, max_seconds=None)["optimality"]
    assert (moved.verdict, moved.rigor, moved.subject) == ("FAILS", "PROOF", "NETWORK")
    assert moved.measured["loss_as_run"] == pytest.approx(0.01)


def test_a_model_without_a_graph_gets_the_other_answers():
    _, X, Y = problem(n=4)
    report = av.check_model(zoo.Branching(), X, Y, loss="cross_entropy", max_seconds=None)
    assert [result.name for result in report.results] == NAMES
    assert report["analytic"].code == "analytic-untraced"
    assert report["structure"].code.startswith("structure-")
    assert report["alignment"].code != "alignment-refused"
    exploration = report["exploration"]
    assert (exploration.verdict, exploration.code) == ("UNDECIDED", "exploration-refused")
    assert any("layer=" in step for step in report["model"].next_steps)


def test_features_before_one_linear_layer_and_inputs_as_features():
    torch.manual_seed(0)
    X, Y = torch.randn(10, 4), torch.arange(10) % 2
    one = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    assert (
        "the output of '0'"
        in av.check_model(one, X, Y, loss="cross_entropy", max_seconds=None)["exploration"].evidence[0]
    )
    two = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    report = av.check_model(two, X, Y, loss="cross_entropy", max_seconds=None)
    assert "z: the input of the model" in report["exploration"].evidence[0]
    assert report["exploration"].verdict == "HOLDS"
    named = av.check_model(two, X, Y, loss="cross_entropy", layer="1", max_seconds=None)["exploration"]
    assert named.evidence[0] == "z: the output of '1' and the constant 1"


def test_at_the_limit_the_rest_is_undecided(monkeypatch):
    net, X, Y = problem()

    def slow(*args, **kwargs):
        time.sleep(0.4)
        return structure(*args, **kwargs)

    structure = of_model.by_graph
    monkeypatch.setattr(of_model, "by_graph", slow)
    av.check_model(net, X, Y, loss="cross_entropy", max_seconds=None)  # imports
    began = time.perf_counter()
    report = av.check_model(net, X, Y, loss="cross_entropy", max_seconds=0.3)
    assert time.perf_counter() - began < 10.0
    assert report["data"].verdict == "HOLDS"
    alignment = report["alignment"]
    assert (alignment.verdict, alignment.code) == ("UNDECIDED", "alignment-out-of-time")
    assert report["model"].verdict == "UNDECIDED"
    assert any("max_seconds" in step for step in report["model"].next_steps)


@pytest.mark.parametrize(("name", "value"), [("max_seconds", 0.0), ("max_seconds", -1), ("max_memory", 0), ("gap", 0)])
def test_limits_that_make_no_sense_are_named_before_any_work(name, value):
    net, X, Y = problem()
    with pytest.raises(av.InvalidInput, match=name):
        av.check_model(net, X, Y, loss="cross_entropy", **{name: value})


def test_a_report_in_one_line_and_for_a_notebook():
    report = av.Report((av.check_rank([[1.0, 0.0], [0.0, 1.0]]),))
    assert repr(report) == "<Report rank: HOLDS>"
    assert report._repr_html_() == f"<pre>{html.escape(str(report['rank']))}</pre>"
    with pytest.raises(KeyError, match="alignment"):
        report["alignment"]


def test_a_layer_that_names_nothing_is_refused_before_any_question(monkeypatch):
    net, X, Y = problem()
    monkeypatch.setattr(of_model, "_Questions", None)
    with pytest.raises(av.InvalidInput, match=r"layer: got '9'; needs the name of a submodule, such as "):
        av.check_model(net, X, Y, loss="cross_entropy", layer="9")
