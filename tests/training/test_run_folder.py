"""A run folder: what an ended run leaves is enough to go on bit for bit, and nothing in it is ever lost or mixed up."""

from __future__ import annotations

import hashlib
import json
import math
import resource

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import alignver as av
from alignver.errors import InvalidInput
from alignver.results import Report
from alignver.training import checkpoint
from alignver.training.run_folder import RunFolder, certificate_inputs, require_vacant
from alignver.training.wrapper import EEWrapper

EPOCHS, TAU = 8, 4
SETTINGS = {"seed": 3, "X": {"sha256": "0" * 64}, "lr": 0.1}


class Ended(Exception):
    """What stands here for a signal."""


def network() -> nn.Module:
    torch.manual_seed(3)
    # Dropout draws from the global generator, BatchNorm has buffers: both have to travel with a checkpoint.
    return nn.Sequential(
        nn.Linear(3, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 2)
    )


def wrapper(**changes) -> EEWrapper:
    options = {"loss": "cross_entropy", "tau": TAU, "exploit_optimizer": "momentum", "seed": 3, **changes}
    return EEWrapper(network(), **options)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(5)
    X = torch.randn(30, 3, generator=generator)
    return X, (X[:, 0] * X[:, 1] > 0).long()


def contents(path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.rglob("*") if file.is_file()}


def outcome(place, wrapper: EEWrapper):
    return (place / "history.jsonl").read_bytes(), {
        k: v.numpy().tobytes() for k, v in wrapper.module.state_dict().items()
    }


def run(place, data, *, end: int | None = None, every: int = 1, batch_size: int | None = 7, **changes) -> EEWrapper:
    """Begin or take up a run; end it after an epoch if asked to."""

    def on_epoch(trained, record):
        if trained.epochs == end:
            raise Ended

    trained = wrapper(**changes)
    begun = (place / "config.json").exists()
    folder = RunFolder.open(place, every=every) if begun else RunFolder.create(place, SETTINGS, every=every)
    with folder:
        folder.fit(trained, data, EPOCHS, batch_size=batch_size, on_epoch=on_epoch)
    return trained


@pytest.mark.parametrize("changes", [{}, {"exploit_optimizer": "lbfgs"}, {"exploit_optimizer": None}], ids=str)
def test_a_run_goes_on_bit_for_bit_from_every_epoch(tmp_path, data, changes):
    size = None if changes.get("exploit_optimizer") == "lbfgs" else 7
    whole = outcome(tmp_path / "whole", run(tmp_path / "whole", data, batch_size=size, **changes))
    place = tmp_path / "parts"
    for end in (2, TAU, TAU + 1, EPOCHS - 1):  # in either phase and at both sides of tau, one process after the other
        torch.manual_seed(end)  # a new process has another state of the global generator
        with pytest.raises(Ended):
            run(place, data, end=end, batch_size=size, **changes)
    assert outcome(place, run(place, data, batch_size=size, **changes)) == whole


def test_checkpoints_now_and_then_repeat_the_epochs_since(tmp_path, data):
    whole = outcome(tmp_path / "whole", run(tmp_path / "whole", data))
    place = tmp_path / "parts"
    with pytest.raises(Ended):
        run(place, data, end=7, every=3)
    assert len((place / "history.jsonl").read_text().splitlines()) == 7
    trained = wrapper()
    with RunFolder.open(place, every=3) as folder:
        assert folder.restore(trained, data) == 6
        assert len(folder.history) == 6
        folder.fit(trained, data, EPOCHS, batch_size=7)
    assert outcome(place, trained) == whole


def test_the_state_at_tau_is_kept(tmp_path, data):
    run(tmp_path / "run", data, every=3)
    stored = checkpoint.load(tmp_path / "run" / "checkpoint-tau.safetensors")
    assert (stored["phase"], stored["epochs"]) == ("exploration", TAU)
    known = json.loads((tmp_path / "run" / "guarantee.json").read_text())
    assert known["samples"] == 30
    assert known["sentences"]


def test_what_was_known_at_tau_survives_a_resume(tmp_path, data):
    place = tmp_path / "run"
    with pytest.raises(Ended):
        run(place, data, end=TAU + 2)
    before = (place / "guarantee.json").read_bytes()
    wrapper = run(place, data)
    assert wrapper.guarantee is not None
    assert (place / "guarantee.json").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda history: history + b'{"epoch": 4, "phase": "expl',  # torn
        lambda history: history + b'{"epoch": 4}\n{"epoch": 5}\n',  # epochs that no checkpoint knows of
        lambda history: b"".join(history.splitlines(keepends=True)[::2]),  # a hole
    ],
)
def test_the_history_is_put_in_order(tmp_path, data, damage):
    whole = outcome(tmp_path / "whole", run(tmp_path / "whole", data))
    place = tmp_path / "parts"
    with pytest.raises(Ended):
        run(place, data, end=3)
    history = place / "history.jsonl"
    history.write_bytes(damage(history.read_bytes()))
    assert outcome(place, run(place, data)) == whole


def test_the_history_is_plain_json(tmp_path, data):
    X, _ = data
    run(tmp_path / "run", (X, X[:, :2]), loss="squared")
    records = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
    assert [record["phase"] for record in records] == ["exploration"] * TAU + ["exploitation"] * (EPOCHS - TAU)
    assert all(record["error"] is None and math.isfinite(record["gap"]) for record in records)


def test_other_settings_are_refused_with_what_differs(tmp_path):
    RunFolder.create(tmp_path / "run", SETTINGS).close()
    before = contents(tmp_path / "run")
    with RunFolder.open(tmp_path / "run") as folder:
        folder.require(dict(SETTINGS))
        with pytest.raises(av.InvalidInput) as refused:
            folder.require({"seed": 4, "X": {"sha256": "f" * 64, "file": "x.npz"}, "lr": 0.1, "new": True})
    for words in (
        "seed 3 there, 4 here",
        "X sha256 00000000... there, x.npz sha256 ffffffff... here",
        "new null there",
    ):
        assert words in str(refused.value)
    assert "lr" not in str(refused.value)
    assert contents(tmp_path / "run") == before


def test_a_run_begins_in_a_folder_of_its_own(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "run", SETTINGS).close()
    for name, words in (("file", "not a folder"), ("full", "other files"), ("run", "resume")):
        with pytest.raises(av.InvalidInput, match=words):
            RunFolder.create(tmp_path / name, SETTINGS)
    require_vacant(tmp_path / "new")
    require_vacant(tmp_path / "empty")
    with pytest.raises(av.InvalidInput, match=r"without config\.json"):
        RunFolder.open(tmp_path / "full")


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ('{"format": 99}', "unknown format")])
def test_a_damaged_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(av.InvalidInput, match=words):
        RunFolder.open(tmp_path)


def test_one_process_at_a_time(tmp_path):
    with (
        RunFolder.create(tmp_path / "run", SETTINGS),
        pytest.raises(av.InvalidInput, match="another process is working"),
    ):
        RunFolder.open(tmp_path / "run")
    RunFolder.open(tmp_path / "run").close()


class Exploding(torch.optim.SGD):
    """Makes a parameter infinite in its sixth step, after a loss that was finite."""

    def step(self, closure=None):
        self.taken = getattr(self, "taken", 0) + 1
        super().step(closure)
        if self.taken == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.inf)


def test_parameters_that_are_not_finite_are_never_kept(tmp_path, data):
    place = tmp_path / "run"
    with pytest.raises(av.InvalidInput, match=r"NaN or Inf after step 5 \(epoch 6, exploration\)"):
        run(place, data, batch_size=None, tau=7, optimizer=lambda parameters: Exploding(parameters, lr=0.01))
    stored = checkpoint.load(place / "checkpoint.safetensors")
    assert stored["epochs"] == 5
    assert all(bool(torch.isfinite(tensor).all()) for tensor in stored["network"].values())
    assert len((place / "history.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("file", ["history", "checkpoint"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, data, file):
    place = tmp_path / "run"
    whole = outcome(tmp_path / "whole", run(tmp_path / "whole", data))
    with pytest.raises(Ended):
        run(place, data, end=3)
    limit = (place / "history.jsonl").stat().st_size + 10 if file == "history" else 4096
    before = contents(place)["checkpoint.safetensors"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(av.InvalidInput, match=rf"{file}[-.a-z]*, which cannot be written"):
            run(place, data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(place)["checkpoint.safetensors"] == before
    assert not list(place.glob("*.part"))
    assert outcome(place, run(place, data)) == whole


def test_a_run_of_an_earlier_version_is_refused_and_left_alone(tmp_path, data):
    place = tmp_path / "run"
    with pytest.raises(Ended):
        run(place, data, end=3)
    (place / "checkpoint.safetensors").rename(place / "checkpoint.pt")
    before = contents(place)
    with pytest.raises(InvalidInput, match=r"checkpoint\.pt of an earlier version, a pickle, which is never opened"):
        run(place, data)
    assert contents(place) == before


def test_another_model_does_not_fit(tmp_path, data):
    place = tmp_path / "run"
    with pytest.raises(Ended):
        run(place, data, end=2)
    other = EEWrapper(nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 2)), loss="cross_entropy", tau=TAU, seed=3)
    with RunFolder.open(place) as folder, pytest.raises(av.InvalidInput, match="parameters of another model"):
        folder.fit(other, data, EPOCHS)


def test_what_is_kept_at_the_end_checks_again(tmp_path, data):
    place = tmp_path / "run"
    trained = wrapper(exploit_optimizer="lbfgs")
    with RunFolder.create(place, SETTINGS) as folder:
        folder.fit(trained, data, EPOCHS)
        assert folder.report is None
        result = trained.check(*data)
        assert (result.verdict, result.rigor) == (av.Verdict.HOLDS, av.Rigor.PROOF)
        folder.finish(trained, data, Report((result,)))
        assert folder.report is not None
        assert folder.report.results[0] == result
    with np.load(place / "inputs.npz", allow_pickle=False) as archive:
        inputs = dict(archive)
    certificate = av.load_certificate(place / "certificate")
    assert av.recheck(certificate, **inputs).verdict is av.Verdict.HOLDS
    inputs["parameters"] = inputs["parameters"] + 1e-3
    assert av.recheck(certificate, **inputs).verdict is av.Verdict.FAILS
    from safetensors.torch import load_model

    fresh = wrapper()
    load_model(fresh.prepare(*data), place / "model.safetensors")
    assert torch.equal(fresh.outputs(data[0]), trained.outputs(data[0]))


def test_the_certificate_is_about_the_saved_model_and_the_named_data(tmp_path, data):
    place = tmp_path / "run"
    trained = wrapper(exploit_optimizer="lbfgs")
    with RunFolder.create(place, SETTINGS, sources={"data": "train.npz"}) as folder:
        folder.fit(trained, data, EPOCHS)
        folder.finish(trained, data, Report((trained.check(*data),)))
    sources = []

    def read(source):
        sources.append(source)
        return tuple(part.numpy() for part in data)

    inputs, notes = certificate_inputs(place, read)
    assert sources == ["train.npz"]
    assert "parameters are read from" in notes[0]
    assert notes[-1] == "x and Y are read from train.npz, X as float32"
    assert av.recheck(place / "certificate", **inputs).verdict is av.Verdict.HOLDS
    assert av.recheck(place / "certificate", **certificate_inputs(place)[0]).verdict is av.Verdict.HOLDS
    flipped = certificate_inputs(place, lambda source: (data[0].flip(0).numpy(), data[1].numpy()))[0]
    assert "x is not the input" in av.recheck(place / "certificate", **flipped).reason
    with torch.no_grad():
        trained.module.head.output.add_(1e-3)
    save_model(trained.module, str(place / "model.safetensors"))
    other, _ = certificate_inputs(place, read)
    assert "parameters is not the input" in av.recheck(place / "certificate", **other).reason
    with pytest.raises(av.InvalidInput, match="without certificate"):
        certificate_inputs(tmp_path)


class Tied(nn.Module):
    """Uses one parameter in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.z, self.a = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 10)
        self.z.weight, self.last = self.first.weight, nn.Linear(10, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.a(torch.tanh(self.z(torch.tanh(self.first(x)))))))


@pytest.mark.filterwarnings("ignore::alignver.errors.LostGuarantee")
@pytest.mark.parametrize("of", ["layers of their own", "tied layers"])
def test_a_certificate_is_not_verified_with_other_weights_than_the_saved_ones(tmp_path, data, of):
    """Every parameter comes from the weights: none is taken from the inputs that lie beside the certificate."""
    torch.manual_seed(3)
    net = Tied() if of == "tied layers" else network()
    trained, place = EEWrapper(net, loss="cross_entropy", tau=TAU, exploit_optimizer="newton"), tmp_path / "run"
    with RunFolder.create(place, SETTINGS) as folder:
        folder.fit(trained, data, EPOCHS)
        folder.finish(trained, data)
    assert av.recheck(place / "certificate", **certificate_inputs(place)[0]).verdict is av.Verdict.HOLDS
    state = load_file(place / "model.safetensors")
    with safe_open(place / "model.safetensors", "pt") as stored:
        metadata = stored.metadata()
    for name in (name for name in state if not name.endswith(("frozen", "num_batches_tracked"))):
        save_file({**state, name: state[name] + 1.0}, place / "model.safetensors", metadata)
        again = av.recheck(place / "certificate", **certificate_inputs(place)[0])
        assert "parameters is not the input" in again.reason
    for name, _ in trained.module.named_parameters():
        if name in state:  # of tied parameters the first is saved
            rest = {other: tensor for other, tensor in state.items() if other != name}
            for changed in (rest, {**rest, name: state[name][:1] * 7}, {**rest, name: state[name].reshape(-1, 1)}):
                save_file(changed, place / "model.safetensors", metadata)
                with pytest.raises(av.InvalidInput, match=f"weights without the parameter {name}"):
                    certificate_inputs(place)


@pytest.mark.parametrize("every", [0, True, 1.5])
def test_every_is_a_count(tmp_path, every):
    with pytest.raises(av.InvalidInput, match="every"):
        RunFolder.create(tmp_path / "run", SETTINGS, every=every)
