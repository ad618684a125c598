"""skorch: a verdict before the training, a callback for any skorch network, a verdict and a page after it."""

import sys
from pathlib import Path

import torch
from skorch import NeuralNetClassifier
from torch import nn

import alignver as av
from alignver.report.html import page
from alignver.report.source import Source
from alignver.training.callbacks import SkorchCallback

torch.manual_seed(0)
X, Y = torch.randn(60, 4), torch.arange(60) % 3
net = NeuralNetClassifier(
    nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3)),
    criterion=nn.CrossEntropyLoss,
    lr=0.1,
    max_epochs=5,
    train_split=None,
    verbose=0,
    callbacks=[("alignment", SkorchCallback(X, Y, loss="cross_entropy"))],
).initialize()
print(av.check_model(net.module_, X, Y, loss="cross_entropy")["model"])

net.partial_fit(X.numpy(), Y.numpy())
tracker = dict(net.callbacks_)["alignment"].tracker
print(tracker.history[-1])
print("Q_T from and to, by rule:", tracker.q())

print(av.check_alignment(net.module_, X, Y, loss="cross_entropy"))
if len(sys.argv) > 1:  # a page with the verdicts along the training
    Path(sys.argv[1]).write_text(page(Source("skorch", tracked=tracker.history)), encoding="utf-8")
