"""Small models of every kind that a Jacobian is easily wrong on, each with inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from alignver.experiments.networks import fully_connected, lenet

Case = tuple[nn.Module, torch.Tensor]


class Last(nn.Module):
    """A recurrent layer, its last output through a linear one."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.core = kind(3, 4, batch_first=True, **options)
        self.out = nn.Linear(4 * (2 if options.get("bidirectional") else 1), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(x)[0][:, -1])


class TiedEmbedding(nn.Module):
    """Integer inputs; the output layer shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.table(x).mean(1))))


class Reused(nn.Module):
    """One layer used three times, and reachable under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.same = self.layer
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.same(torch.tanh(self.layer(torch.tanh(self.layer(x)))))))


class Listed(nn.Module):
    """Layers in a ModuleList and weights in a ParameterDict and a ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
        self.scales = nn.ParameterList([torch.randn(3), torch.randn(3)])
        self.more = nn.ParameterDict({"shift": torch.randn(3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, scale in zip(self.layers, self.scales):
            x = torch.sin(layer(x)) * scale + self.more["shift"]
        return x


class Branching(nn.Module):
    """Control flow on the data: vmap cannot do it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.left(row) if float(row.sum()) > 0 else self.right(row).sin() for row in x])


class Attention(nn.Module):
    """A transformer block over a short sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.block(x).mean(1))


class Counting(nn.Module):
    """Caches what it computed, as a plain attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.calls = 0
        self.seen: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x)
        self.last = self.layer(x)
        return self.last.squeeze()


def batch_norm_net() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 2))
    with torch.no_grad():
        net(torch.randn(8, 1, 6, 6))  # in train mode, so that the running statistics are not the trivial ones
    return net.eval()


def frozen_half() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return net


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


def single_output() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1), nn.Flatten(0))


def wide_output() -> nn.Module:
    """More outputs than parameters: forward mode."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x * self.a[0]) + self.a[1] ** 2 * x

    return Outer()


def _r(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


CASES: dict[str, Callable[[], Case]] = {
    "linear": lambda: (nn.Linear(3, 2), _r(5, 3)),
    "mlp": lambda: (fully_connected(3, width=8, m_y=2, seed=3), _r(5, 3)),
    "lenet": lambda: (lenet(side=10, classes=3, seed=1), _r(4, 10, 10)),
    "relu in place first": lambda: (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), _r(5, 3)),
    "layer norm": lambda: (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)), _r(5, 3)),
    "group norm": lambda: (nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten()), _r(3, 2, 5)),
    "batch norm in eval mode": lambda: (batch_norm_net(), _r(5, 1, 6, 6)),
    "gru": lambda: (Last(nn.GRU), _r(4, 5, 3)),
    "lstm": lambda: (Last(nn.LSTM, num_layers=2, bidirectional=True), _r(3, 4, 3)),
    "rnn": lambda: (Last(nn.RNN), _r(4, 5, 3)),
    "tied embedding": lambda: (TiedEmbedding(), torch.randint(7, (5, 3))),
    "reused and aliased": lambda: (Reused(), _r(4, 3)),
    "lists of modules and parameters": lambda: (Listed(), _r(4, 3)),
    "control flow on data": lambda: (Branching(), _r(6, 3)),
    "attention": lambda: (Attention(), _r(3, 4, 8)),
    "attention in eval mode": lambda: (Attention().eval(), _r(3, 4, 8)),
    "frozen half": lambda: (frozen_half(), _r(5, 3)),
    "weight norm": lambda: (weight_normed(), _r(5, 3)),
    "one output, no axis": lambda: (single_output(), _r(5, 3)),
    "forward mode": lambda: (wide_output(), _r(4, 6)),
    "caching": lambda: (Counting(), _r(4, 3)),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        model, x = CASES[name]()
    return model.to(dtype), x.to(dtype) if x.is_floating_point() else x
