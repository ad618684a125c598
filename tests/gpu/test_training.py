"""Training on the device: the tracker, the wrapper in both phases, checkpoints, the paper's image runs."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import alignver as av
from alignver.errors import AlignverWarning
from alignver.experiments.conduct import Setting
from alignver.experiments.image_runs import STANDARD, WRAPPER, Effort, ImageRun, train
from alignver.experiments.image_sets import AUGMENTATIONS
from alignver.experiments.networks import resnet18
from alignver.results import Rigor, Verdict
from alignver.training import checkpoint
from alignver.training.wrapper import EEWrapper
from tests.training.nets import data, noisy, plain

pytestmark = pytest.mark.gpu


def followed(model, X, Y, **options):
    """Track three steps of gradient descent; return the tracker."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = av.AlignmentTracker(model, X, Y, loss="binary_cross_entropy", every=1, **options)
    for _ in range(3):
        tracker.update()
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(X), Y.to(X)).backward()
        optimizer.step()
    return tracker


@pytest.mark.parametrize("options", [{}, {"thorough": True, "structure": True}], ids=["plain", "thorough"])
def test_tracker(device, options, tmp_path):
    X, Y = data()
    here = followed(plain(), X, Y, **options)
    there = followed(plain().to(device), X.to(device), Y.to(device), path=tmp_path / "history.jsonl", **options)
    assert there.q() == here.q()
    for record, other in zip(there.history, here.history, strict=True):
        assert record.reason == other.reason
        assert record.loss == pytest.approx(other.loss, rel=1e-10)
        assert record.change["value"] == pytest.approx(other.change["value"], rel=1e-6, abs=1e-20)


def test_tracker_where_the_rank_is_not_full(device):
    """The CPU has a shorter way to these singular values: near a tolerance one may be UNDECIDED, never contrary."""
    X, Y = data(n=20)
    X[1] = X[0]
    Y[1] = 1 - Y[0]
    narrow = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).double()
    for model in (plain(), narrow):
        here = followed(copy.deepcopy(model), X, Y)
        there = followed(copy.deepcopy(model).to(device), X.to(device), Y.to(device))
        for record, other in zip(there.history, here.history, strict=True):
            assert record.rules["golub"]["verdict"] == other.rules["golub"]["verdict"] == "FAILS"
            assert record.rules["press"]["verdict"] != "HOLDS"


def wrapped(device, loss="binary_cross_entropy", m_y=1, model=plain, **options):
    X, Y = data(loss, m_y=m_y)
    options = {"tau": 4, "epsilon": 0.01, "seed": 3, **options}
    return EEWrapper(model(m_y).to(device), loss=loss, **options), X.to(device), Y.to(device)


@pytest.mark.parametrize("solver", [None, "newton", "lbfgs", "gd", "sgd"])
def test_wrapper_with_its_module_and_data_on_the_device(device, solver):
    collected = []
    for where in (device, torch.device("cpu")):
        wrapper, X, Y = wrapped(where, exploit_optimizer=solver, record=solver == "gd")
        wrapper.fit((X, Y), 6)
        assert all(value.device == where for value in wrapper.module.state_dict().values())
        assert wrapper.phase == "exploitation"
        assert wrapper.outputs(X).device == where
        result = wrapper.check(X, Y, tolerance=10.0)
        assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
        if solver == "gd":
            assert wrapper.check_convergence(Y)
        collected.append(wrapper)
    assert collected[0].guarantee.proved is collected[1].guarantee.proved
    for record, other in zip(collected[0].history, collected[1].history, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-6)


@pytest.mark.parametrize(("loss", "m_y"), [("squared", 2), ("cross_entropy", 3), ("binary_cross_entropy", 2)])
def test_losses_and_batches(device, loss, m_y):
    wrapper, X, Y = wrapped(device, loss, m_y)
    wrapper.fit((X, Y), 8, batch_size=7)
    assert wrapper.history[-1]["loss"] > 0.0


def test_augmentation_draws_on_the_cpu(device):
    wrapper, X, Y = wrapped(device)
    wrapper.fit((X, Y), 6, augment=lambda x, source: x + 0.01 * torch.randn(x.shape, generator=source).to(x))
    assert not wrapper.cached


@pytest.mark.parametrize("repair", ["staircase", "redraw"])
def test_repairs(device, repair):
    def dead(m_y):  # units that are all alike: no trained gates have rank n
        model = plain(m_y)
        with torch.no_grad():
            model[2].weight.zero_()
        return model

    wrapper, X, Y = wrapped(device, model=dead, repair=repair, epsilon=1e-12, tau=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlignverWarning)
        wrapper.fit((X, Y), 3)
    assert wrapper.guarantee.before is not None
    assert all(value.device == device for value in wrapper.module.state_dict().values())


@pytest.mark.parametrize("epochs", [3, 6])
def test_a_checkpoint_goes_on_where_it_was(device, epochs, tmp_path):
    def build():
        return wrapped(device, model=noisy, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))

    whole, X, Y = build()
    torch.manual_seed(2)
    whole.fit(
        (X, Y),
        9,
        on_epoch=lambda run, record: (
            checkpoint.save(run, tmp_path / "run.safetensors") if run.epochs == epochs else None
        ),
    )
    taken_up, _, _ = build()
    checkpoint.restore(taken_up, checkpoint.load(tmp_path / "run.safetensors"), X, Y)
    taken_up.fit((X, Y), 9)
    assert taken_up.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-9)
    assert all(value.device == device for value in taken_up.module.state_dict().values())


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_are_the_same_everywhere(device, name):
    x = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    here, there = (AUGMENTATIONS[name](images, torch.Generator().manual_seed(1)) for images in (x, x.to(device)))
    assert there.device == device
    differing = (there.cpu() != here).double().mean()
    assert float(differing) <= 0.01  # a pixel between two others may go either way


@pytest.mark.parametrize("method", [STANDARD, WRAPPER])
def test_an_image_run_of_the_paper(device, method):
    run = ImageRun("semeion", True, method, 0, Effort(2, 1, 2, 40), epsilon=1e-3, tau=0.5)
    outcome = train(run, Setting(device=str(device), reduced=True))
    assert len(outcome["loss"]) == 2
    assert 0.0 <= outcome["test"] <= 100.0


def test_resnet18_alignment(device):
    model = resnet18(1, 4, width=2)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(3)
    here = av.check_alignment(model, x, y, loss="cross_entropy")
    there = av.check_alignment(copy.deepcopy(model).to(device), x.to(device), y, loss="cross_entropy")
    assert (there.verdict, there.rigor) == (here.verdict, here.rigor)
