"""A training loop of another library that takes an optimiser: a hook counts its steps."""

import torch
from torch import nn

import alignver as av
from alignver.training.callbacks import optimizer_hook


def external_loop(net, X, Y, optimizer):
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()


torch.manual_seed(0)
X, Y = torch.randn(60, 4), torch.arange(60) % 3
net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
with optimizer_hook(optimizer, av.AlignmentTracker(net, X, Y, loss="cross_entropy", every=5)) as tracker:
    external_loop(net, X, Y, optimizer)
print(tracker.history[-1])
print("Q_T from and to, by rule:", tracker.q())
