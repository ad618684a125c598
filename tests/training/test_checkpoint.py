"""A run that was cut off goes on bit for bit, whatever phase, optimiser and randomness it was in."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alignver.data import archives
from alignver.errors import InvalidInput, LostGuarantee
from alignver.training import checkpoint
from alignver.training.solvers import SOLVERS
from alignver.training.wrapper import EEWrapper
from tests.training import nets

EPOCHS, TAU = 9, 4


def wrapper(solver="momentum", **options):
    defaults = {"tau": TAU, "epsilon": 0.1, "seed": 3, "record": True}
    adam = lambda p: torch.optim.Adam(p, lr=0.003)  # noqa: E731
    return EEWrapper(
        nets.noisy(2), loss="cross_entropy", optimizer=adam, exploit_optimizer=solver, **{**defaults, **options}
    )


def bits(wrapper):
    return {name: tensor.numpy().tobytes() for name, tensor in wrapper.module.state_dict().items()}


def same_history(a, b):
    return repr(a.history) == repr(b.history) and all(not math.isnan(r["loss"]) for r in a.history)


def through_disk(wrapper, path):
    checkpoint.save(wrapper, path)
    return checkpoint.load(path)


@pytest.mark.parametrize("solver", [*sorted(SOLVERS), None])
@pytest.mark.parametrize("stop", [2, TAU + 1, *(pytest.param(k, marks=pytest.mark.slow) for k in (TAU, EPOCHS - 1))])
def test_a_resumed_run_is_the_run(solver, stop, tmp_path):
    X, Y = nets.data("cross_entropy", m_y=2)
    size = 11 if solver in ("sgd", "momentum", "adam", None) else None
    file = tmp_path / "run.safetensors"

    def keep(trained, record):
        if record["epoch"] == stop:
            checkpoint.save(trained, file)

    torch.manual_seed(11)
    whole = wrapper(solver).fit((X, Y), EPOCHS, batch_size=size, on_epoch=keep)
    torch.manual_seed(99)  # dropout's generator is put back
    again = checkpoint.restore(wrapper(solver), checkpoint.load(file), X, Y)
    assert again.epochs == stop
    assert again.history == whole.history[:stop]
    again.fit((X, Y), EPOCHS, batch_size=size)
    assert bits(again) == bits(whole)
    assert same_history(again, whole)
    assert again.guarantee.sentences == whole.guarantee.sentences
    assert again.guarantee.summary() == whole.guarantee.summary()
    record, other = again.training_record(), whole.training_record()
    assert record.losses.tobytes() == other.losses.tobytes()
    assert record.inner_products.tobytes() == other.inner_products.tobytes()
    assert (record.method, record.tau) == (other.method, other.tau)
    assert [r.verdict for r in again.check_convergence(Y)] == [r.verdict for r in whole.check_convergence(Y)]


def test_a_run_with_repaired_gates_and_augmented_inputs(tmp_path):
    X, Y = nets.data("cross_entropy", m_y=2, dtype=torch.float32)

    def shifted(x, generator):
        return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def build():
        torch.manual_seed(0)
        return EEWrapper(nets.plain(2, torch.float32), loss="cross_entropy", tau=2, epsilon=1e-6, gate=1e-3, seed=3)

    stored = {}

    def keep(wrapper, record):
        stored[record["epoch"]] = copy.deepcopy(checkpoint.state(wrapper))

    with pytest.warns(LostGuarantee, match="the gates of .* units were replaced, and now it is"):
        whole = build().fit((X, Y), 6, batch_size=8, augment=shifted, on_epoch=keep)
    again = checkpoint.restore(build(), stored[4], X, Y).fit((X, Y), 6, batch_size=8, augment=shifted)
    assert not again.cached
    assert bits(again) == bits(whole)
    assert same_history(again, whole)
    assert again.guarantee.replaced == whole.guarantee.replaced != ((), ())
    assert again.guarantee.sentences == whole.guarantee.sentences


def test_runs_in_parts_are_the_run():
    X, Y = nets.data("cross_entropy", m_y=2)
    whole, parts = wrapper("accelerated"), wrapper("accelerated")
    torch.manual_seed(1)
    whole.fit((X, Y), EPOCHS)
    torch.manual_seed(1)
    for epochs in (TAU + 1, TAU + 3, EPOCHS):
        parts.fit((X, Y), epochs)
    assert bits(parts) == bits(whole)
    assert same_history(parts, whole)


_KILLED = """
import sys, torch
sys.path.insert(0, {root!r})
from alignver.training import checkpoint
from tests.training.test_checkpoint import wrapper
from tests.training import nets
X, Y = nets.data("cross_entropy", m_y=2)
torch.manual_seed(11)
def keep(own, record):
    checkpoint.save(own, {file!r})
    print(record["epoch"], flush=True)
wrapper().fit((X, Y), 100000, batch_size=11, on_epoch=keep)
"""


@pytest.mark.slow
def test_kill_9_loses_at_most_the_epoch(tmp_path):
    file = tmp_path / "run.safetensors"
    code = _KILLED.format(root=str(Path(__file__).parents[2]), file=str(file))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= TAU + 3:
            break
    time.sleep(0.05)  # into the middle of something
    os.kill(process.pid, signal.SIGKILL)
    seen = [int(line) for line in process.stdout if line.strip()]
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    stored = checkpoint.load(file)
    assert stored["epochs"] >= max([TAU + 3, *seen])
    X, Y = nets.data("cross_entropy", m_y=2)
    end = stored["epochs"] + 2
    again = checkpoint.restore(wrapper(), stored, X, Y).fit((X, Y), end, batch_size=11)
    torch.manual_seed(11)
    whole = wrapper().fit((X, Y), end, batch_size=11)
    assert bits(again) == bits(whole)
    assert same_history(again, whole)


def test_files_that_are_no_checkpoints(tmp_path):
    file = tmp_path / "run.safetensors"
    with pytest.raises(InvalidInput, match=r"checkpoint: got .*cannot be read"):
        checkpoint.load(file)
    random = np.random.default_rng(0)
    for garbage in (b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100), *map(random.bytes, [5000] * 20)):
        file.write_bytes(garbage)
        with pytest.raises(InvalidInput, match=r"checkpoint: got .*cannot be read"):
            checkpoint.load(file)
    for form in (True, False):
        torch.save({"settings": Evil()}, file, _use_new_zipfile_serialization=form)
        with pytest.raises(InvalidInput, match="cannot be read"):
            checkpoint.load(file)  # no pickle is opened
    assert not Evil.ran
    trained, (X, Y) = wrapper(), nets.data("cross_entropy", m_y=2)
    trained.explore_step(X, Y)
    checkpoint.save(trained, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="cannot be read"):
        checkpoint.load(file)
    save_file({"weights": torch.zeros(2)}, file)
    with pytest.raises(InvalidInput, match="does not hold the state of a run"):
        checkpoint.load(file)
    for document in (
        b"{}",
        b"[]",
        b"7",
        b'{"tensor": "nowhere"}',
        b'{"dict": 3}',
        b"{",
        b'{"dict": [["phase", "tau"]]}',
    ):
        tensors = {"document": torch.frombuffer(bytearray(document), dtype=torch.uint8)}
        save_file(tensors, file, metadata={"sha256": checkpoint._digest(tensors)})
        with pytest.raises(InvalidInput, match=r"cannot be read|does not hold the state of a run"):
            checkpoint.load(file)


def test_a_checkpoint_that_is_larger_than_the_memory_is_not_read(tmp_path, monkeypatch):
    save_file({"weights": torch.zeros(100)}, tmp_path / "run.safetensors")
    monkeypatch.setattr(archives, "available_memory", lambda: 300)
    with pytest.raises(InvalidInput, match=r"checkpoint: got arrays of .* GB in all"):
        checkpoint.load(tmp_path / "run.safetensors")


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def test_a_checkpoint_of_another_run():
    X, Y = nets.data("cross_entropy", m_y=2)
    trained = wrapper()
    trained.explore_step(X, Y)
    stored = checkpoint.state(trained)
    with pytest.raises(InvalidInput, match="a run with seed=3 for a wrapper with seed=4"):
        checkpoint.restore(wrapper(seed=4), stored, X, Y)
    other = EEWrapper(nets.plain(2), loss="cross_entropy", tau=TAU, epsilon=0.1, seed=3)
    with pytest.raises(InvalidInput, match="parameters of another model"):
        checkpoint.restore(other, stored, X, Y)
    with pytest.raises(InvalidInput, match="not the state of a run"):
        checkpoint.restore(wrapper(), {}, X, Y)


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    X, Y = nets.data("cross_entropy", m_y=2)
    trained, file = wrapper(), tmp_path / "run.safetensors"
    trained.explore_step(X, Y)
    checkpoint.save(trained, file)
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(InvalidInput, match="No space left"):
        checkpoint.save(trained, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    with pytest.raises(InvalidInput, match="cannot be written"):
        checkpoint.save(trained, tmp_path / "nowhere" / "run.safetensors")


def _full(_descriptor):
    raise OSError(28, "No space left on device")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_any_flipped_bit_is_seen(tmp_path):
    file = tmp_path / "run.safetensors"
    trained, (X, Y) = wrapper(), nets.data("cross_entropy", m_y=2)
    trained.explore_step(X, Y)
    checkpoint.save(trained, file)
    whole, stored = file.read_bytes(), checkpoint.load(file)
    refused = 0
    for place in [*range(0, 2000, 7), *np.random.default_rng(0).integers(len(whole), size=200)]:
        damaged = bytearray(whole)
        damaged[place] ^= 16
        file.write_bytes(damaged)
        try:
            again = checkpoint.load(file)
        except InvalidInput:
            refused += 1
        else:
            assert same(again, stored)  # it changed the name of the digest, or a space
    assert refused > 450


class Keeper(torch.optim.SGD):
    """An optimiser with a state of every kind that a checkpoint takes."""

    KINDS = {  # noqa: RUF012 - not changed
        "number": math.nan,
        "numpy": np.float32(0.1),
        "pair": (1, [2.5, None, (True, "text")]),
        "by number": {3: torch.tensor(7), -1: {}},
        "empty": torch.zeros(0, 3),
        "narrow": torch.ones(2, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j, -0.0j], dtype=torch.complex128).conj(),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "part": torch.arange(6.0)[2:4],
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }

    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]] |= self.KINDS
        return super().step(closure)


def test_every_kind_of_state_is_put_back(tmp_path):
    X, Y = nets.data("cross_entropy", m_y=2)
    trained = wrapper()
    trained._optimizer = lambda parameters: Keeper(parameters, lr=0.1)
    trained.explore_step(X, Y)
    saved = through_disk(trained, tmp_path / "run.safetensors")
    (kept,) = saved["optimizer"]["state"].values()
    assert same({**kept, "number": 0.0}, {**Keeper.KINDS, "number": 0.0})
    assert math.isnan(kept["number"])
    assert (type(kept["pair"]), type(kept["pair"][1][2])) == (tuple, tuple)
    assert kept["narrow"].dtype == torch.bfloat16
    assert saved["versions"] == trained.module.state_dict()._metadata
    assert same(saved["network"], dict(trained.module.state_dict()))


def test_a_state_that_is_no_data_is_refused_by_name(tmp_path):
    X, Y = nets.data("cross_entropy", m_y=2)
    trained, file = wrapper(), tmp_path / "run.safetensors"
    trained.explore_step(X, Y)
    parameter = trained.optimizer.param_groups[0]["params"][0]
    for value in (Evil(), {1, 2}, torch.zeros(2).to_sparse(), {None: 1}):
        trained.optimizer.state[parameter]["odd"] = value
        with pytest.raises(InvalidInput, match=r"checkpoint: got optimizer.state.0.odd, an? \w+; needs an optimiser"):
            checkpoint.save(trained, file)
    assert not list(tmp_path.iterdir())


def test_tied_weights_are_stored_once(tmp_path):
    X, Y = nets.data("cross_entropy", m_y=2)
    trained, file = wrapper(), tmp_path / "run.safetensors"
    trained.explore_step(X, Y)
    before = checkpoint.save(trained, file) or file.stat().st_size
    trained.module.register_parameter("again", trained.module.head.hidden)
    checkpoint.save(trained, file)
    assert file.stat().st_size < before + 400
    network = checkpoint.load(file)["network"]
    assert torch.equal(network["again"], network["head.hidden"])


def test_a_file_has_the_permissions_of_others(tmp_path):
    trained = wrapper()
    trained.explore_step(*nets.data("cross_entropy", m_y=2))
    checkpoint.save(trained, tmp_path / "run.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "run.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
