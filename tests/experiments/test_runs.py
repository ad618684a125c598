"""The runs behind the items, made tiny: what they return is what the items read, and the paper's settings are there."""

from __future__ import annotations

import math

import pytest
import torch

from alignver import InvalidInput
from alignver.experiments import fully_connected, image_runs, kappa, lenet, load, network_alignment, readings, sine_wave
from alignver.experiments.conduct import Setting, conduct
from alignver.experiments.image_runs import STANDARD, WRAPPER, Effort, ImageRun, train
from alignver.experiments.image_sets import split

TINY = Effort(4, 1, 4, 64, paper=200)


def test_fully_connected():
    first = fully_connected.run("sine wave", 0, "3-normal", epochs=2)
    assert len(first["loss"]) == len(first["error"]) == len(first["steps"]) == 3
    assert first["change"][0] == [0, 0.0]
    assert first["change"][-1][1] > 0.0
    assert set(first["looks"]) == {"press float64", "golub float64", "press float32", "golub float32"}
    assert first["looks"]["press float64"]["verdict"] == ["FAILS"] * 3  # as in Figure 1(a)
    assert fully_connected.run("sine wave", 0, "3-normal", epochs=2, change=False)["loss"] == first["loss"]


def test_the_network_itself_along_training():
    outcome = network_alignment.run("two moons", 0, "3-normal", steps=(0, 2))
    assert len(outcome["error"]) == 3
    assert outcome["verdict"] == ["HOLDS"] * 2
    assert outcome["subject"] == ["NETWORK"] * 2
    assert all(low["upper"] < 1e3 < high for low, high in zip(outcome["kappa"], outcome["shuffled"]))


def test_readings():
    outcome = readings.run("3-none", 0, epochs=2, long=20, tau=10)
    assert set(outcome["change"]) == {"two moons", "sine wave"}
    assert min(outcome["change"].values()) > 0.0
    assert all(0.0 <= error <= 1.0 for error in outcome["error"].values())


def test_kappa(monkeypatch):
    monkeypatch.setattr(kappa, "_SAMPLES", 40)
    outcome = kappa.run("semeion", 30, 0, steps=40)
    assert (outcome["verdict"], outcome["subject"]) == ("HOLDS", "NETWORK")
    assert outcome["kappa"]["lower"] <= outcome["kappa"]["upper"] < outcome["shuffled"]
    assert 0 < outcome["fitted"]["true"] < 40
    assert kappa.run("random", 10, 0, steps=1)["fitted"] == {"true": None, "shuffled": None}


def test_lenet(monkeypatch):
    monkeypatch.setattr(lenet, "_SAMPLES", 40)
    monkeypatch.setattr(lenet, "LOOKS", {"random": (0, 2), "semeion": (0, 1)})
    outcome = lenet.run("random", 1, 0, epochs=2)
    assert [look["epoch"] for look in outcome["looks"]] == [0, 2]
    assert outcome["looks"][0]["change"] == 0.0
    assert outcome["looks"][1]["change"] > 0.0
    for look in outcome["looks"]:
        assert look["answers"]["press float64"]["verdict"] == "HOLDS"  # 40 rows, 67609 columns
    monkeypatch.setattr(lenet, "_SAMPLES", 10)
    ten = lenet.run("semeion", 1, 0, epochs=1)
    assert len(ten["loss"]) == 2


@pytest.mark.parametrize("method", sine_wave.METHODS)
def test_sine_wave(method, monkeypatch):
    monkeypatch.setattr(sine_wave, "_CHANGE", 20)
    outcome = sine_wave.run(method, 0, "4-default", epochs=40, tau=30)
    assert outcome["steps"] == [0, 10, 20, 30, 40]
    assert all(math.isfinite(loss) for loss in outcome["loss"])
    steps = [step for step, _ in outcome["change"]]
    if method == sine_wave.BASE:
        assert steps == [0, 20, 40]
        return
    assert steps == [0, 20, 30, 40]  # tau among them
    assert outcome["guarantee"]["proved"] == (method != sine_wave.AS_WRITTEN)
    assert outcome["loss"][0] != pytest.approx(outcome["loss"][-1])


def test_sine_wave_explores_as_the_base_method_does_but_for_the_gates():
    parts = load("figure2").parts(Setting())
    assert len(parts) == 12
    for part in parts:
        assert (part.recipe["tau"], part.recipe["epsilon"], part.recipe["epochs"]) == (2000, 0.01, 10000)
        assert (part.recipe["rate"], part.recipe["momentum"], part.recipe["slope"]) == (0.1, 0.98, 1000.0)


@pytest.mark.parametrize(
    "run",
    [
        ImageRun("semeion", True, STANDARD, 0, TINY),
        ImageRun("semeion", True, WRAPPER, 0, TINY, 1e-3, 0.5),
        ImageRun("semeion", False, WRAPPER, 0, TINY, 1e-3, 0.5),
        ImageRun("semeion", True, WRAPPER, 0, TINY, 1e-3, 0.5, solver="lbfgs"),
        ImageRun("semeion", False, WRAPPER, 0, TINY, 1e-3, 0.5, solver="lbfgs", validation=True),
    ],
    ids=lambda run: run.key,
)
def test_images(run):
    setting = Setting()
    outcome = train(run, setting)
    assert 0.0 <= outcome["test"] <= 100.0
    assert len(outcome["loss"]) == 4
    assert all(math.isfinite(loss) for loss in outcome["loss"])
    phases = ["all layers"] if run.method == STANDARD else ["exploration", "exploitation"]
    assert list(outcome["seconds"]) == list(outcome["cpu_seconds"]) == phases
    assert outcome["samples"] == 64
    assert outcome["tests"] == 64
    if run.method == WRAPPER:
        assert outcome["guarantee"]["width"] == -(-2 * 64 // 33)  # ceil(2 n / m), m = 8 * 4 + 1
    again = train(run, setting)
    assert (again["test"], again["loss"]) == (outcome["test"], outcome["loss"])


def test_exploitation_changes_the_last_hidden_layer_alone():
    run, setting = ImageRun("semeion", True, WRAPPER, 0, TINY, 1e-3, 0.5), Setting()
    data = split("semeion", seed=0, samples=64)
    trainer = image_runs._Wrapped(run, image_runs.resnet18(1, 10, width=4), data)
    source = torch.Generator().manual_seed(0)
    with image_runs.quietly():
        for epoch in range(3):
            trainer.before(epoch, data)
            if epoch == 2:
                before = {name: p.detach().clone() for name, p in trainer.wrapper.module.named_parameters()}
            trainer.epoch(data, source)
    after = dict(trainer.wrapper.module.named_parameters())
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.hidden"]
    assert trainer.wrapper.optimizer.param_groups[0]["lr"] == 0.1  # as written, whatever is stable
    assert run.part(setting).recipe["step"] == "as written"


def test_an_image_item_from_the_start_to_the_figure(monkeypatch, tmp_path):
    monkeypatch.setattr(image_runs, "_REDUCED", {"semeion": {True: TINY}})
    outcome = conduct(load("figure4"), folder=tmp_path)
    assert outcome.missing == ()
    assert outcome.results[0].statement.startswith("Figure 4: REDUCED (4 of 200 epochs; 4 of 64 channels; 64 training")
    assert [entry["part"] for entry in outcome.made] == list(outcome.measured)
    assert all(entry["machine"]["cores"] >= 1 for entry in outcome.made)
    figure = load("figure4").draw(outcome.measured)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["standard, 1 run", "wrapper, 1 run"]


def test_splits_do_not_overlap():
    data = split("semeion", seed=3)
    assert (len(data.x), len(data.x_test)) == (1000, 593)
    rows = {image.numpy().tobytes() for image in data.x}
    assert len(rows) + len({image.numpy().tobytes() for image in data.x_test} - rows) == len(
        {image.numpy().tobytes() for image in torch.cat([data.x, data.x_test])}
    )
    held = split("semeion", seed=3, validation=True)
    assert (len(held.x), len(held.x_test)) == (800, 200)
    assert {image.numpy().tobytes() for image in held.x} <= rows
    assert {image.numpy().tobytes() for image in held.x_test} <= rows


def test_an_image_set_without_its_folder(monkeypatch):
    monkeypatch.delenv("ALIGNVER_DATA", raising=False)
    with pytest.raises(InvalidInput, match="data_folder"):
        conduct(load("table3"), Setting(seeds=1, datasets=("mnist",)))
