"""What no run can be made of is said before anything is trained; what goes wrong on the way ends it, and says where."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alignver as av
from alignver.errors import AlignverWarning, InvalidInput
from alignver.theory.losses import LogisticLoss
from alignver.training import checkpoint, gated_network
from alignver.training.loop import tau_epoch
from alignver.training.wrapper import EEWrapper
from tests.training import nets


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": nn.Tanh()}, "model: got a Tanh without parameters"),
        ({"model": "net"}, "model: got a str without parameters"),
        ({"model": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))}, "'1', a BatchNorm1d"),
        ({"loss": "hinge"}, "loss: got loss='hinge'; needs .*convex in the outputs"),
        ({"loss": LogisticLoss()}, "loss: got"),
        ({"loss": nn.L1Loss()}, "loss: got"),
        ({"loss": None}, "loss: got loss=None"),
        ({"epsilon": 0.0}, "epsilon: got epsilon=0.0; needs a positive number"),
        ({"epsilon": -1e-3}, "epsilon: got"),
        ({"epsilon": math.nan}, "epsilon: got"),
        ({"epsilon": math.inf}, "epsilon: got"),
        ({"tau": 0}, "tau: got tau=0"),
        ({"tau": -0.5}, "tau: got"),
        ({"tau": math.nan}, "tau: got"),
        ({"tau": "half"}, "tau: got"),
        ({"gate": 0.0}, "gate: got gate=0.0"),
        ({"gate": torch.tanh}, "gate: got"),
        ({"gate": torch.relu}, "gate: got"),
        ({"repair": "fix"}, "repair: got repair='fix'"),
        ({"exploit_optimizer": "sdg"}, "exploit_optimizer: got exploit_optimizer='sdg'"),
        ({"exploit_optimizer": 0.1}, "exploit_optimizer: got 0.1"),
        ({"optimizer": "adam"}, "optimizer: got 'adam'"),
    ],
)
def test_settings(changes, words):
    settings = {"model": nets.plain(), "loss": "squared", **changes}
    with pytest.raises(InvalidInput, match=words):
        EEWrapper(settings.pop("model"), **settings)


@pytest.mark.parametrize(("tau", "epochs"), [(10, 10), (11, 10), (0.01, 10), (0.99, 10), (2.5, 10), (1, 1), (5, 0)])
def test_a_tau_outside_the_run(tau, epochs):
    wrapper = EEWrapper(nets.plain(), loss="squared", tau=tau)
    with pytest.raises(InvalidInput, match=r"tau: got|epochs: got"):
        wrapper.fit(nets.data("squared"), epochs)
    assert wrapper.steps == 0


LOADER = DataLoader(TensorDataset(*nets.data("squared")), 8, shuffle=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, r"data: got None; needs \(X, Y\), or a Dataset or DataLoader"),
        (nets.data("squared")[0], "data: got (a )?Tensor; needs"),
        ((nets.data("squared")[0],), "data: got (a )?tuple of 1; needs"),
        (TensorDataset(nets.data("squared")[0]), "data: got .*TensorDataset without targets; needs"),
        (LOADER, r"data: got a loader that shuffles .*; needs .*shuffle=False, or the loader's dataset"),
    ],
)
def test_data_that_are_no_pair(data, words):
    with pytest.raises(InvalidInput, match=words):
        EEWrapper(nets.plain(), loss="squared").fit(data, 10)
    EEWrapper(nets.plain(), loss="squared").fit(LOADER.dataset, 2)  # what the last message advises


def test_taus():
    assert [tau_epoch(0.5, 10), tau_epoch(1, 2), tau_epoch(3.0, 10)] == [5, 1, 3]


@pytest.mark.parametrize(
    ("loss", "Y", "words"),
    [
        ("squared", torch.zeros(30, 2), "1 outputs of '4' for targets with 2"),
        ("squared", torch.zeros(29, 1), "Y: got shape"),
        ("squared", torch.full((30, 1), math.nan), "Y: got NaN or Inf"),
        ("squared", [["a"]] * 30, "Y: got"),
        ("binary_cross_entropy", torch.full((30, 1), 0.5), "Y: got targets"),
        ("binary_cross_entropy", torch.full((30,), 2), "Y: got targets"),
        ("cross_entropy", torch.arange(30), "1 outputs of '4' for targets with 30"),
        ("cross_entropy", torch.zeros(0), "Y: got shape"),
        ("cross_entropy", -torch.ones(30, dtype=torch.long), "Y: got targets|Y: got labels"),
    ],
)
def test_targets_that_do_not_fit(loss, Y, words):
    X, _ = nets.data()
    wrapper = EEWrapper(nets.plain(), loss=loss, tau=2)
    with pytest.raises(InvalidInput, match=words):
        wrapper.fit((X, Y), 5)
    assert not hasattr(wrapper, "module")


def test_names_of_classes():
    X, _ = nets.data()
    Y = np.array(["cat", "dog"])[np.arange(30) % 2]
    with pytest.raises(
        InvalidInput, match=r"names of classes for loss='squared'; needs their numbers: \[classes.index"
    ):
        EEWrapper(nets.plain(), loss="squared", tau=2).fit((X, Y), 5)
    wrapper = EEWrapper(nets.plain(), loss="binary_cross_entropy", tau=2).fit((X, Y), 3)
    assert wrapper.evaluate(X, Y) == wrapper.evaluate(X, np.arange(30) % 2)
    with pytest.raises(InvalidInput, match="1 names of classes for 1 output; needs each of 2 classes"):
        wrapper.evaluate(X, ["cat"] * 30)


def test_labels_that_are_bool():
    X, _ = nets.data()
    labels = torch.arange(30) % 2
    first, second = (
        EEWrapper(nets.plain(2), loss="cross_entropy", tau=2, seed=1).fit((X, Y), 3) for Y in (labels, labels.bool())
    )
    assert first.history == second.history


@pytest.mark.filterwarnings("ignore::alignver.errors.LostGuarantee")
def test_a_model_of_several_outputs_has_a_remedy():
    class Two(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return {"logits": out, "hidden": out.tanh()}

    X, Y = nets.data()
    with pytest.raises(InvalidInput, match=r"adapted\(model, X, Y, select='logits'\) or another of 'logits', 'hidden'"):
        EEWrapper(Two(3, 1), loss="squared", tau=2, width=40).fit((X, Y), 5)
    model, X, Y = av.adapted(Two(3, 1), X, Y, select="logits")
    assert len(EEWrapper(model, loss="squared", tau=2, width=40).fit((X, Y), 3).history) == 3


def test_samples_to_test_of_another_shape_are_named_before_the_training():
    X, Y = nets.data()
    wrapper = EEWrapper(nets.plain(), loss="squared", tau=2)
    with pytest.raises(InvalidInput, match=r"test: got samples of shape \(2,\); needs the shape of .*, \(3,\)"):
        wrapper.fit((X, Y), 5, test=(X[:, :2], Y))
    assert not wrapper.history


def test_a_width_that_does_not_fit_into_memory():
    X, Y = nets.data()
    wrapper = EEWrapper(nets.plain(), loss="squared", tau=2, layers=("4",), width=10**12)
    with pytest.raises(InvalidInput, match=r"width: got width=1000000000000, whose .* GB; needs at most \d+: .* GB"):
        wrapper.fit((X, Y), 5)


def test_a_width_that_makes_steps_long_is_named(monkeypatch):
    X, Y = nets.data()
    monkeypatch.setattr(gated_network, "_GATE_SECONDS", 1e-4)
    wrapper = EEWrapper(nets.plain(), loss="squared", tau=2, layers=("4",), width=1000)
    with pytest.warns(AlignverWarning, match="1000 gated units for each of 1 outputs take about 3 s in a step"):
        wrapper.fit((X, Y), 3)


def test_inputs_that_do_not_fit():
    X, Y = nets.data()
    wrapper = EEWrapper(nets.plain(), loss="squared", tau=2)
    for bad, words in (
        (X[:, :2], "needs 3 numbers for each sample"),
        (X * math.nan, "X: got nan"),
        ("x", "X: got a str"),
    ):
        with pytest.raises(InvalidInput, match=words):
            wrapper.fit((bad, Y), 5)
    for size in (0, -1, 2.5, True):
        with pytest.raises(InvalidInput, match="batch_size: got"):
            wrapper.fit((X, Y), 5, batch_size=size)


def test_pieces_in_the_wrong_order():
    X, Y = nets.data()
    wrapper = EEWrapper(nets.plain(), loss="squared", tau=2, epsilon=0.1, exploit_optimizer="gd")
    with pytest.raises(InvalidInput, match="exploit_step: got a call in the phase of exploration"):
        wrapper.exploit_step()
    with pytest.raises(InvalidInput, match="check: got a call in the phase of exploration"):
        wrapper.check(X, Y)
    wrapper.explore_step(X, Y)
    wrapper.enter_exploitation(X, Y, cache=False)
    with pytest.raises(InvalidInput, match="explore_step: got a call in the phase of exploitation"):
        wrapper.explore_step(X, Y)
    with pytest.raises(InvalidInput, match="a second call"):
        wrapper.enter_exploitation(X, Y)
    with pytest.raises(InvalidInput, match="no cached features"):
        wrapper.exploit_step()
    with pytest.raises(InvalidInput, match="no cached features"):
        wrapper.evaluate()
    with pytest.raises(InvalidInput, match="record: got record=False"):
        wrapper.training_record()


def diverging(place, phase, **options):
    """A run whose loss overflows, with a checkpoint after each epoch."""
    X, Y = nets.data("squared")
    long, short = (lambda p: torch.optim.SGD(p, lr=1e150)), (lambda p: torch.optim.SGD(p, lr=1e-3))
    first, second = (long, "gd") if phase == "exploration" else (short, lambda p: torch.optim.Adam(p, lr=1e154))
    wrapper = EEWrapper(
        nets.plain(), loss="squared", tau=4, epsilon=0.1, optimizer=first, exploit_optimizer=second, **options
    )
    wrapper.fit((X, Y), 10, on_epoch=lambda wrapper, _record: checkpoint.save(wrapper, place / "run.safetensors"))


def test_a_loss_that_overflows_stops_the_run_before_it_is_kept(tmp_path):
    with pytest.raises(InvalidInput, match=r"optimizer: got .*(step \d+ \(epoch \d+, exploitation\))") as caught:
        diverging(tmp_path, "exploitation")
    assert "a checkpoint of an epoch before this one is good" in str(caught.value)
    stored = checkpoint.load(tmp_path / "run.safetensors")
    assert stored["epochs"] >= 4
    assert all(bool(torch.isfinite(value).all()) for value in stored["network"].values())
    assert all(math.isfinite(record["loss"]) for record in stored["history"])
    epoch = int(str(caught.value).split("(epoch ")[1].split(",")[0])
    assert epoch == stored["epochs"] + 1


def test_nan_in_exploration_says_the_step(tmp_path):
    with pytest.raises(InvalidInput, match=r"(that is (nan|inf)|that are NaN or Inf) (at|after) step"):
        diverging(tmp_path, "exploration")
    if (tmp_path / "run.safetensors").exists():
        stored = checkpoint.load(tmp_path / "run.safetensors")
        assert all(bool(torch.isfinite(value).all()) for value in stored["network"].values())


def test_arrays_and_lists_are_data_too():
    X, Y = nets.data()
    wrapper = EEWrapper(nets.plain(), loss="binary_cross_entropy", tau=2, epsilon=0.1, exploit_optimizer="sgd")
    wrapper.fit((X.numpy(), Y.numpy().tolist()), 4, batch_size=8)
    other = EEWrapper(nets.plain(), loss="binary_cross_entropy", tau=2, epsilon=0.1, exploit_optimizer="sgd")
    other.fit((X, np.asarray(Y)), 4, batch_size=8)
    assert torch.equal(wrapper.module.head.hidden, other.module.head.hidden)
