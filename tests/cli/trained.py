"""A network and data for runs of ``alignver train``, and the run that its tests share."""

from __future__ import annotations

import numpy as np

NET = """
import os, time, torch
from torch import nn

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(float(os.environ.get("NAP", "0")))
        return x

def build():
    return nn.Sequential(
        nn.Linear(2, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.1), Slow(), nn.Linear(12, 10), nn.Tanh(),
        nn.Linear(10, 1),
    )

def other():
    return nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 1))
"""
EPOCHS, TAU = 12, 6
RUN = ["net.py:build", "--data", "train.npz", "--loss", "binary_cross_entropy", "--epochs", str(EPOCHS)]
RUN += ["--tau", str(TAU), "--batch-size", "10", "--exploit-optimizer", "momentum", "--tolerance", "0.7"]

QUICK = ["net.py:other", "--data", "train.npz", "--loss", "binary_cross_entropy", "--epochs", "2", "--tau", "1"]


def written(folder):
    """Put the model and the data into a folder."""
    random = np.random.default_rng(1)
    X = random.standard_normal((40, 2))
    np.savez(folder / "train.npz", X=X, Y=(X[:, 0] * X[:, 1] > 0).astype(int))
    np.savez(folder / "other.npz", X=X, Y=(X[:, 0] > 0).astype(int))
    (folder / "net.py").write_text(NET)
    return folder
