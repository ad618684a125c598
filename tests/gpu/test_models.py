"""Models on the device: matrices, verdicts and features as on the CPU, the model untouched and where it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.experiments.networks import fully_connected
from alignver.jacobians.jacobian import outputs
from alignver.jacobians.nonsmooth_points import find_nonsmooth_points
from alignver.network.feature_extraction import estimate_row_error as row_error
from alignver.network.feature_extraction import extract_features, feature_blocks, save_features
from alignver.results import Rigor, Verdict
from tests.gpu import pretend
from tests.zoo import CASES, Last, build

pytestmark = pytest.mark.gpu

CLOSE = 2.0**-40
"""Relative, in float64: sums of these networks carry fewer than 4096 roundings of 2^-53 each."""

NOT_PRETENDED = {"forward mode", "gru", "lstm"}
"""Where torch ends the process on a backend written in Python, or takes a fused cell that only real devices have."""


def for_case(name: str, device: torch.device) -> torch.device:
    return torch.device("cpu") if name in NOT_PRETENDED and device.type == pretend.NAME else device


def close(there: torch.Tensor, here: torch.Tensor) -> bool:
    return float((there.cpu() - here).norm()) <= CLOSE * float(here.norm())


def both(name: str, device: torch.device):
    """A model of the zoo in float64 on the CPU, and its copy on the device."""
    model, x = build(name, torch.float64)
    return (model, x), (copy.deepcopy(model).to(device), x.to(device))


def net(m_y: int = 2) -> nn.Module:
    return fully_connected(3, width=12, m_y=m_y, seed=5).double()


def labelled(n: int = 12):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return X, (X.sum(1) > 0).long()


@pytest.mark.parametrize("name", sorted(CASES))
def test_jacobian_and_gram(device, name):
    device = for_case(name, device)
    (model, x), (there, x_there) = both(name, device)
    before = {key: value.clone() for key, value in there.state_dict().items()}
    J, J_there = av.jacobian(model, x), av.jacobian(there, x_there)
    assert J_there.device == device
    assert close(J_there, J)
    assert close(outputs(there, x_there), outputs(model, x))
    G = av.gram(there, x_there)
    assert G.device == device
    assert close(G, J @ J.T)
    assert all(torch.equal(value, before[key]) for key, value in there.state_dict().items())
    assert all(value.device == device for value in there.state_dict().values())


@pytest.mark.parametrize("name", ["lenet", "tied embedding"])
def test_gram_of_two_sets(device, name):
    (model, x), (there, x_there) = both(name, device)
    assert close(av.gram(there, x_there, x_there[:2]), av.gram(model, x, x[:2]))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_in_eval_mode(device, kind):
    """cuDNN has no backward pass for them there: torch's own kernels take its place."""
    device = for_case(kind.__name__.lower(), device)
    model, x = Last(kind).double().eval(), torch.randn(4, 5, 3, dtype=torch.float64)
    J = av.jacobian(model, x)
    there, x_there = copy.deepcopy(model).to(device), x.to(device)
    assert close(av.jacobian(there, x_there), J)
    assert close(av.gram(there, x_there), J @ J.T)


def test_weight_normalisation_by_a_hook(device):
    """The fused kernel for float64 on CUDA is accurate to float32 only: it must not be used."""

    here = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    there = copy.deepcopy(here).to(device)
    for model in (here, there):
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(model[0])
    x = torch.randn(5, 3, dtype=torch.float64)
    assert close(av.jacobian(there, x.to(device)), av.jacobian(here, x))


@pytest.mark.parametrize("dtype", ["same", "float64"])
def test_a_float32_model(device, dtype):
    model, x = build("lenet")
    J, J_there = (
        av.jacobian(model, x, dtype=dtype),
        av.jacobian(copy.deepcopy(model).to(device), x.to(device), dtype=dtype),
    )
    limit = CLOSE if dtype == "float64" else 2.0**-12  # 2^-24 in the place of 2^-53
    assert float((J_there.cpu() - J).norm()) <= limit * float(J.norm())


def test_arrays_go_to_the_device_and_tensors_have_to_be_there(device):
    model = net().to(device)
    X, _ = labelled()
    assert av.jacobian(model, X.numpy()).device == device
    if device.type != "cpu":
        with pytest.raises(av.InvalidInput, match="device"):
            av.jacobian(model, X)


def test_operator(device):
    (model, x), (there, x_there) = both("linear", device)
    J, operator = av.jacobian(model, x), av.JacobianOperator(there, x_there)
    v = torch.linspace(-1.0, 1.0, J.shape[1], dtype=torch.float64)
    w = torch.linspace(-1.0, 1.0, J.shape[0], dtype=torch.float64)
    assert close(operator.matvec(v.to(device)), J @ v)
    assert close(operator.rmatvec(w.to(device)), J.T @ w)
    result = av.check_membership(operator, (J @ v).to(device))
    assert result.verdict is Verdict.HOLDS


@pytest.mark.parametrize("engine", ["dense", "streamed", "gram", "matrix-free"])
def test_alignment_by_every_engine(device, engine):
    X, Y = labelled(4)
    here = av.check_alignment(net(), X, Y, loss="cross_entropy", engine=engine)
    there = av.check_alignment(net().to(device), X.to(device), Y.to(device), loss="cross_entropy", engine=engine)
    assert (there.verdict, there.rigor) == (here.verdict, here.rigor)
    assert there.measured.get("rank") == here.measured.get("rank")


def test_alignment_proved_and_refuted(device):
    X, Y = labelled()
    model = net().to(device)
    proved = av.check_alignment(model, X.to(device), Y, loss="cross_entropy")
    assert (proved.verdict, proved.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    X[3] = X[7]
    Y[3] = 1 - Y[7]
    refuted = av.check_alignment(model, X.to(device), Y, loss="cross_entropy")
    assert (refuted.verdict, refuted.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert refuted.witness == av.check_alignment(net(), X, Y, loss="cross_entropy").witness


def test_a_certificate_of_the_device_is_rechecked_on_the_host(device):
    J = av.jacobian(net().to(device), labelled()[0].to(device))
    result = av.check_rank(J, rank=len(J))
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert av.recheck(result.certificate, A=J.cpu().numpy()).verdict is Verdict.HOLDS
    assert av.recheck(result.certificate, A=J).verdict is Verdict.HOLDS


def test_structure_and_analyticity(device):
    X, _ = labelled()
    assert av.check_common_structure(net().to(device), X.to(device)).verdict is Verdict.HOLDS
    relu = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).to(device)
    assert av.check_common_structure(relu, X.float().to(device)).verdict is Verdict.HOLDS
    assert av.check_analytic(net().to(device)).verdict is Verdict.HOLDS
    assert find_nonsmooth_points(relu, X.float().to(device), "float64").operations[0].total == 48


@pytest.mark.parametrize("method", ["exact", "probes"])
def test_change_of_the_representation(device, method):
    X, _ = labelled()
    model, moved = net(), net()
    with torch.no_grad():
        moved[0].weight += 0.1
    states = model.state_dict(), moved.state_dict()
    here = av.representation_change(net(), X, *states, method=method, probes=8)
    on_device = [{key: value.to(device) for key, value in state.items()} for state in states]
    there = av.representation_change(net().to(device), X.to(device), *on_device, method=method, probes=8)
    assert there.value == pytest.approx(here.value, rel=1e-10)


def test_snapshot(device):
    X, _ = labelled()
    model = net().to(device)
    snapshot = av.RepresentationSnapshot(model, X.to(device))
    with torch.no_grad():
        model[0].weight += 0.1
    assert snapshot.change().value > 0.0


def test_features(device, tmp_path):
    X, _ = labelled()
    model, there = net(), net().to(device)
    computed, wanted = extract_features(there, X.to(device), batch_size=5), extract_features(model, X, batch_size=5)
    assert isinstance(computed, np.ndarray)
    assert np.abs(computed - wanted).max() <= CLOSE * np.abs(wanted).max()
    assert len(list(feature_blocks(there, X.to(device), batch_size=5))) == 3
    stored = save_features(tmp_path / "Z.npy", there, X.to(device), batch_size=5)
    assert np.array_equal(stored, computed)
    assert row_error(net().float().to(device), X.float().to(device)) > 0.0
    assert av.check_safe_exploration(computed, add_constant=True).verdict is Verdict.HOLDS
