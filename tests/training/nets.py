"""Small networks and data that the training tests share."""

from __future__ import annotations

import torch
from torch import nn


def data(loss="binary_cross_entropy", n=30, m_y=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 3, generator=generator, dtype=dtype)
    if loss == "squared":
        return X, torch.randn(n, m_y, generator=generator, dtype=dtype)
    if loss == "cross_entropy" and m_y > 1:
        return X, torch.randint(0, m_y, (n,), generator=generator)
    return X, torch.randint(0, 2, (n, m_y), generator=generator)


def plain(m_y=1, dtype=torch.float64, seed=0, width=12):
    torch.manual_seed(seed)
    layers = nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, width), nn.Tanh(), nn.Linear(width, m_y)
    return nn.Sequential(*layers).to(dtype)


def noisy(m_y=1, dtype=torch.float64, seed=0):
    """Dropout draws from torch's generator, BatchNorm has buffers."""
    torch.manual_seed(seed)
    body = nn.Linear(3, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Dropout(0.3)
    return nn.Sequential(*body, nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, m_y)).to(dtype)


class Attributes(nn.Module):
    """Layers as attributes, in another order than they run, and one that does not run at all."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.unused = nn.Linear(6, 9)
        self.middle = nn.Linear(5, 6)
        self.first = nn.Linear(3, 5)

    def forward(self, x):
        return self.head(torch.relu(self.middle(torch.tanh(self.first(x)))))


class Nested(nn.Module):
    """A classifier inside a module inside a module."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleDict({"a": nn.Linear(3, 5)})
        self.rest = nn.Sequential(nn.Tanh(), nn.Sequential(nn.Linear(5, 6), nn.Softplus()), nn.Linear(6, 2))

    def forward(self, x):
        return self.rest(self.trunk["a"](x))


class InList(nn.Module):
    """Layers in a ModuleList, run in a loop with a branch on the data: torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 6), nn.Linear(6, 2)])

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


class Twice(nn.Module):
    """The last layer runs twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Skip(nn.Module):
    """The last layer gets more than an activation of the one before it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        z = torch.tanh(self.a(x))
        return self.c(z + torch.tanh(self.b(z)))


class Tied(nn.Module):
    """The weights of the last layer are those of the first."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 4)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class TwoNames(nn.Module):
    """The last layer is registered under two names, and runs under the second."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 2)
        self.all = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), self.fc)

    def forward(self, x):
        return self.all(x)


class Hidden(nn.Module):
    """The last two layers run from a plain list: replacing their attributes changes nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.run = [self.a, self.b, self.c]

    def forward(self, x):
        a, b, c = self.run
        return c(torch.tanh(b(torch.tanh(a(x)))))


class Token(nn.Module):
    """A parameter of the whole model's own, as a class token is: its call ends last, and hides no layer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x + self.token)))))


def convolutional():
    """No fully connected layer."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2))
