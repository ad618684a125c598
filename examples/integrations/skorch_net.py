"""skorch: a callback for any skorch network."""

import torch
from skorch import NeuralNetClassifier
from torch import nn

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
)
net.fit(X.numpy(), Y.numpy())
tracker = dict(net.callbacks_)["alignment"].tracker
print(tracker.history[-1])
print("Q_T from and to, by rule:", tracker.q())
