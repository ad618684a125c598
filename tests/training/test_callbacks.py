"""The tracker in other people's loops: it sees the right steps, and their training does not notice it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alignver.training.callbacks as callbacks
from alignver.checks.alignment_evaluator import AlignmentEvaluator
from alignver.errors import InvalidInput, MissingDependency
from alignver.report.history import History
from alignver.training.tracker import AlignmentTracker

SIZE, BATCH, EPOCHS = 12, 4, 2  # three steps an epoch
OPTIONS = {"loss": "cross_entropy", "mode": "eval"}


def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(SIZE, 3, generator=g), torch.randint(0, 2, (SIZE,), generator=g)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 2))


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def seen(tracker):
    return [(record.step, record.epoch) for record in tracker.history]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lbfgs"])
def test_a_hook_on_an_optimiser(kind):
    def train(watched):
        net, (x, y) = network(), data()
        optimizer = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
            "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
            "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3),
        }[kind](net.parameters())

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        if not watched:
            for _ in range(4):
                optimizer.step(closure)
            return net, None
        with callbacks.optimizer_hook(optimizer, AlignmentTracker(net, x, y, every=3, **OPTIONS)) as tracker:
            for _ in range(4):
                optimizer.step(closure)
        optimizer.step(closure)  # outside of the block: not counted
        assert not optimizer._optimizer_step_post_hooks
        return None, tracker

    _, tracker = train(True)
    assert [step for step, _ in seen(tracker)] == [0, 3, 4]


def test_a_hook_leaves_the_training_alone():
    nets = []
    for watched in (False, True):
        net, (x, y) = network(), data()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def steps(net=net, x=x, y=y, optimizer=optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()

        if watched:
            with callbacks.optimizer_hook(optimizer, AlignmentTracker(net, x, y, **OPTIONS)):
                steps()
        else:
            steps()
        nets.append(net)
    assert same(*nets)


def steps_of(net, optimizer, count):
    x, y = data()
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        yield


def runs(tracker):
    return [(record.run, record.step, record.epoch) for record in tracker.history]


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 2))


def watch(deferred, net, count, step=0, epoch=0):
    deferred.begin(net, step, epoch)
    for done, _ in enumerate(steps_of(net, torch.optim.SGD(net.parameters(), lr=0.5), count), step + 1):
        deferred.step(done, net)
    deferred.end_epoch()
    deferred.end()


def test_a_second_training_is_watched_anew():
    x, y = data()
    deferred = callbacks.Deferred(x, y, loss="cross_entropy", every=2)
    one, two = plain(), plain(1)
    watch(deferred, one, 4)
    watch(deferred, two, 3)
    tracker = deferred.tracker
    assert runs(tracker) == [(0, 0, 0), (0, 2, 0), (0, 4, 0), (1, 0, 0), (1, 2, 0), (1, 3, 1)]
    assert tracker.model is two
    loss = float(nn.functional.cross_entropy(two(x), y).detach())
    assert tracker.history[-1].loss == pytest.approx(loss, rel=1e-6)
    first = tracker.history[3]
    assert first.change["value"] == pytest.approx(0.0, abs=1e-18)  # theta^0 is that of the second model
    assert tracker.q()["golub"] == tuple(sum(r.rules["golub"]["verdict"] in v for r in tracker.history[3:]) for v in (
        ("FAILS",), ("FAILS", "UNDECIDED")
    ))  # fmt: skip
    watch(deferred, two, 2)  # the same model from step 0
    assert runs(tracker)[-2:] == [(2, 0, 0), (2, 2, 0)]


def test_a_training_that_goes_on_is_one_run():
    deferred = callbacks.Deferred(*data(), loss="cross_entropy", every=1)
    net = plain()
    watch(deferred, net, 2)
    watch(deferred, net, 1, step=2, epoch=1)
    assert runs(deferred.tracker) == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 3, 1)]


def test_a_resumed_training_has_its_own_counts_and_no_theta_0():
    deferred = callbacks.Deferred(*data(), loss="cross_entropy", every="2 epochs")
    net = plain()
    watch(deferred, net, 3, step=12, epoch=4)
    assert runs(deferred.tracker)[0] == (0, 12, 4)
    watch(deferred, net, 3, step=15, epoch=5)
    assert runs(deferred.tracker)[-1] == (0, 18, 6)
    assert all(record.change is None for record in deferred.tracker.history)


def test_a_model_that_is_rebuilt_during_a_training_is_watched_from_then_on():
    x, y = data()
    deferred = callbacks.Deferred(x, y, loss="cross_entropy", every=1)
    net = plain()
    deferred.begin(net)
    rebuilt = plain(2)
    deferred.step(1, rebuilt)
    assert runs(deferred.tracker) == [(0, 0, 0), (0, 1, 0)]
    loss = float(nn.functional.cross_entropy(rebuilt(x), y).detach())
    assert deferred.tracker.history[-1].loss == pytest.approx(loss, rel=1e-6)


def test_other_sizes_begin_another_history_and_are_refused_by_a_file(tmp_path):
    x, y = data()
    wider = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 2))
    deferred = callbacks.Deferred(x, y, loss="cross_entropy", every=1)
    watch(deferred, plain(), 1)
    watch(deferred, wider, 1)
    assert runs(deferred.tracker)[0] == (1, 0, 0)
    assert deferred.tracker.history.config["d"] == 3 * 12 + 12 + 24 + 2
    filed = callbacks.Deferred(x, y, loss="cross_entropy", every=1, path=tmp_path / "h.jsonl")
    watch(filed, plain(), 1)
    watch(filed, plain(1), 1)
    assert History.read(tmp_path / "h.jsonl") == filed.tracker.history
    with pytest.raises(InvalidInput, match=r"h\.jsonl, of another configuration: d 62 there, 74 here"):
        filed.begin(wider)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), AssertionError(), KeyError("x"), MemoryError()])
def test_an_error_inside_an_evaluation_is_recorded_and_the_training_goes_on(error, monkeypatch):
    x, y = data()
    net = plain()
    tracker = AlignmentTracker(net, x, y, loss="cross_entropy", every=1)

    def fails(self):
        raise error

    with callbacks.optimizer_hook(torch.optim.SGD(net.parameters(), lr=0.1), tracker):
        monkeypatch.setattr(AlignmentEvaluator, "evaluate", fails)
        tracker.update()
        monkeypatch.undo()
    tracker.update()
    verdicts = [record.rules["golub"]["verdict"] for record in tracker.history]
    assert verdicts[1] == "UNDECIDED"
    assert verdicts[2] != "UNDECIDED"
    assert tracker.history[1].reason.startswith(f"no check: {type(error).__name__}")


def test_a_second_block_of_a_hook_goes_on_with_the_count():
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = AlignmentTracker(net, *data(), loss="cross_entropy", every=1)
    for count in (2, 1):
        with callbacks.optimizer_hook(optimizer, tracker):
            list(steps_of(net, optimizer, count))
    assert [step for step, _ in seen(tracker)] == [0, 1, 2, 3]


@pytest.mark.slow  # importing it takes seconds
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    made = []

    def train(*watching, max_epochs=EPOCHS, checkpoint=None, **options):
        module = Module()
        loader = DataLoader(TensorDataset(*data()), batch_size=BATCH, shuffle=True)
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on loaders and logging
            trainer = lightning.Trainer(
                max_epochs=max_epochs,
                callbacks=list(watching),
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
                **options,
            )
            trainer.fit(module, loader, ckpt_path=checkpoint)
        made.append((trainer, module))
        return module

    every = {"select": lambda module: module.net, **OPTIONS}
    by_step = callbacks.LightningCallback(*data(), every=2, path=tmp_path / "h.jsonl", **every)
    by_epoch = callbacks.LightningCallback(*data(), **every)
    assert by_step.tracker is None
    assert same(train().net, train(by_step, by_epoch).net)
    assert [step for step, _ in seen(by_step.tracker)] == [0, 2, 4, 6]
    assert seen(by_epoch.tracker) == [(0, 0), (3, 1), (6, 2)]
    assert History.read(tmp_path / "h.jsonl") == by_step.tracker.history
    train(by_epoch)  # another module
    assert seen(by_epoch.tracker) == [(0, 0), (3, 1), (6, 2)] * 2
    made[-1][0].save_checkpoint(tmp_path / "c.ckpt")
    resumed = callbacks.LightningCallback(*data(), every=1, **every)
    train(resumed, max_epochs=EPOCHS + 1, checkpoint=tmp_path / "c.ckpt")
    assert seen(resumed.tracker) == [(6, 2), (7, 2), (8, 2), (9, 2)]
    accumulated = callbacks.LightningCallback(*data(), every=1, **every)
    train(accumulated, accumulate_grad_batches=3)
    assert [step for step, _ in seen(accumulated.tracker)] == [0, 1, 2]


@pytest.mark.slow  # importing it takes seconds
def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    ids = torch.randint(0, 30, (SIZE, 6), generator=torch.Generator().manual_seed(2))
    labels = data()[1]

    def train(*watching):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
        )
        model = transformers.BertForSequenceClassification(config)
        rows = [{"input_ids": i, "labels": label} for i, label in zip(ids, labels)]
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own
            trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=list(watching))
            trainer.train()
        return model

    by_step = callbacks.TrainerCallback(ids, labels, every=2, change="off", **OPTIONS)
    by_epoch = callbacks.TrainerCallback(ids, labels, change="off", **OPTIONS)
    assert same(train(), train(by_step, by_epoch))
    assert [step for step, _ in seen(by_step.tracker)] == [0, 2, 4, 6]
    assert seen(by_epoch.tracker) == [(0, 0), (3, 1), (6, 2)]
    assert all(record.reason and not record.reason.startswith("no check") for record in by_step.tracker.history)


def test_skorch():
    skorch = pytest.importorskip("skorch")
    from sklearn.base import clone

    x, y = data()

    def train(*watching, fit="fit"):
        torch.manual_seed(4)
        net = skorch.NeuralNetClassifier(
            network,
            criterion=nn.CrossEntropyLoss,
            lr=0.1,
            max_epochs=EPOCHS,
            batch_size=BATCH,
            train_split=None,
            verbose=0,
            iterator_train__shuffle=True,
            callbacks=[(f"watching{k}", callback) for k, callback in enumerate(watching)],
        )
        net.initialize()
        torch.manual_seed(5)
        net.partial_fit(x.numpy(), y.numpy())
        return net

    by_step = callbacks.SkorchCallback(x, y, loss="cross_entropy", every=2, options={"mode": "eval"})
    by_epoch = callbacks.SkorchCallback(x, y, loss="cross_entropy", options={"mode": "eval"})
    watched = train(by_step, by_epoch)
    assert same(train().module_, watched.module_)
    steps, epochs = (dict(watched.callbacks_)[f"watching{k}"].tracker for k in range(2))
    assert [step for step, _ in seen(steps)] == [0, 2, 4, 6]
    assert seen(epochs) == [(0, 0), (3, 1), (6, 2)]
    watched.partial_fit(x.numpy(), y.numpy())
    assert seen(epochs)[-1] == (12, 4)
    again = clone(watched)
    again.fit(x.numpy().astype(np.float32), y.numpy())
    assert seen(dict(again.callbacks_)["watching1"].tracker) == [(0, 0), (3, 1), (6, 2)]


def test_a_library_that_is_missing_is_named(monkeypatch):
    for module in list(sys.modules):
        if module.partition(".")[0] == "lightning":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(vars(callbacks), "LightningCallback", raising=False)
    with pytest.raises(MissingDependency, match="integrations"):
        callbacks.LightningCallback  # noqa: B018 - looked up, and refused


def test_names():
    assert set(callbacks.__all__) <= set(dir(callbacks))
    with pytest.raises(AttributeError, match="Keras"):
        callbacks.Keras  # noqa: B018


EXAMPLES = {
    "plain_loop": "torch",
    "optimizer": "torch",
    "lightning_trainer": "lightning",
    "hugging_face_trainer": "transformers",
    "skorch_net": "skorch",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(name, tmp_path):
    folder = Path(__file__).parents[2] / "examples" / "integrations"
    assert {script.stem for script in folder.glob("*.py")} == set(EXAMPLES)
    pytest.importorskip(EXAMPLES[name])
    script = folder / f"{name}.py"
    command = [sys.executable, str(script), str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").exists() == ("Source" in script.read_text())
    assert "HOLDS" in done.stdout
    assert "no check" not in done.stdout
