"""The commands that take ``--device``, on the device: a verdict, its certificate re-checked on the host."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.cli import main

pytestmark = pytest.mark.gpu

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, 2))
"""


@pytest.fixture
def run(device, tmp_path, monkeypatch):
    """Run a command in a folder with inputs; return its exit code."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((8, 20))
    np.save(tmp_path / "J.npy", J)
    np.save(tmp_path / "y.npy", J @ np.ones(20))
    np.save(tmp_path / "Z.npy", np.column_stack([rng.standard_normal((60, 8)), np.ones(60)]))
    np.savez(tmp_path / "train.npz", X=rng.standard_normal((12, 3)), Y=np.arange(12) % 2)
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main.run([word.replace("DEVICE", device.type) for word in words])
        return int(end.value.code or 0)

    return call


def test_matrices(run):
    assert run("check", "membership", "J.npy", "y.npy", "--backend", "torch", "--device", "DEVICE") == 0
    assert run("check", "rank", "J.npy", "--rank", "7", "--backend", "torch", "--device", "DEVICE") == 1


def test_gates(run):
    assert run("check", "exploration", "Z.npy", "--method", "gram", "--device", "DEVICE") == 0


def test_a_model(run):
    model = ("net.py:build", "--data", "train.npz", "--device", "DEVICE")
    assert run("check", "alignment", *model, "--loss", "cross_entropy", "--certificate", "proof") == 0
    # The certificate is about the J of this device: another one rounds differently.
    assert run("verify", "proof", "--model", *model, "--loss", "cross_entropy") == 0
    assert run("check", "structure", *model) == 0
    features = ("--model", "net.py:build", "--data", "train.npz", "--layer", "1", "--device", "DEVICE")
    assert run("check", "exploration", *features, "--keep-features", "kept.npy") == 0
