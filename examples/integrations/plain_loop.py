"""A plain training loop: call update() at the beginning of each step, and once after the loop."""

import torch
from torch import nn

import alignver as av

torch.manual_seed(0)
X, Y = torch.randn(60, 4), torch.arange(60) % 3
net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
tracker = av.AlignmentTracker(net, X, Y, loss="cross_entropy", every=10)
for _ in range(100):
    tracker.update()  # theta^t
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(X), Y).backward()
    optimizer.step()
tracker.update()
print(tracker.history[-1])
print("Q_T from and to, by rule:", tracker.q())
