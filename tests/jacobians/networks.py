"""Networks on which a layer-wise Gram matrix is easily wrong, each with inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Case = tuple[nn.Module, torch.Tensor]


def _r(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


class From(nn.Module):
    """A forward pass written as a function of the module's parts."""

    def __init__(self, forward: Callable[..., torch.Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


class Doubling(nn.Linear):
    """A linear layer that is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + F.linear(x * x, self.weight * 2.0)


class Squaring(nn.Linear):
    """A linear layer that never calls linear."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,oi->no", x, self.weight**2) + self.bias


class Residual(nn.Module):
    """A pre-activation block."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False) if stride > 1 or inside != outside else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.relu(self.norm1(x))
        out = self.conv2(self.relu(self.norm2(self.conv1(z))))
        out += x if self.short is None else self.short(z)
        return out


def resnet18(width: int = 2) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False)]
    inside = width
    for stage in range(4):
        for block in range(2):
            layers.append(Residual(inside, width << stage, 2 if stage and not block else 1))
            inside = width << stage
    head = [nn.BatchNorm2d(inside), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 3)]
    net = nn.Sequential(*layers, *head)
    with torch.no_grad():
        net(_r(8, 3, 8, 8))
    return net.eval()


def _tied(first: nn.Module, second: nn.Module) -> nn.Module:
    second.weight = first.weight
    return second


def tied_linear() -> Case:
    first = nn.Linear(4, 4)
    second = _tied(first, nn.Linear(4, 4))
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 2)), _r(5, 4)


def tied_and_turned() -> Case:
    """One matrix as an encoder and, transposed, as the decoder."""
    layer = nn.Linear(5, 3, bias=False)
    return From(lambda self, x: torch.tanh(self.layer(x)) @ self.layer.weight, layer=layer), _r(4, 5)


def tied_everywhere() -> Case:
    """A parameter that is the weight of a linear layer, a table and a shift."""
    table = nn.Embedding(6, 4, padding_idx=1)
    head = _tied(table, nn.Linear(4, 6, bias=False))

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(x) + self.table.weight[2]).sum(1))

    return From(forward, table=table, head=head), torch.randint(6, (5, 3))


def bias_is_weight() -> Case:
    """One vector as the bias of a layer and the scale of a norm."""
    layer, norm = nn.Linear(3, 4), nn.LayerNorm(4)
    norm.weight = layer.bias
    return nn.Sequential(layer, norm, nn.Tanh(), nn.Linear(4, 2)), _r(5, 3)


def _sequence_first(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return self.block(x.transpose(0, 1)).mean(0)


def _merged(inner: bool) -> Callable[..., torch.Tensor]:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        n, T, f = x.shape
        rows = x.transpose(0, 1).reshape(n * T, f) if inner else x.reshape(n * T, f)
        z = torch.tanh(self.layer(rows))
        z = z.view(T, n, -1).transpose(0, 1) if inner else z.view(n, T, -1)
        return self.out(z.flatten(1))

    return forward


def _attend(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    query = self.query.expand(len(x), -1, -1)
    return self.attention(query, x, x, need_weights=False)[0].flatten(1)


def _routed(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Send each sample through one of two layers, in batches of changing size."""
    out = x.new_zeros(len(x), 2)
    for layer, selected in ((self.left, x.sum(1) > 0), (self.right, x.sum(1) <= 0)):
        if bool(selected.any()):
            out[selected] = layer(x[selected])
    return out


def _packed(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, [4] * len(x), batch_first=True)
    return self.core(packed)[1][0]


def _nothing() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has nothing to initialise
        return nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2)), _r(4, 3)


NETWORKS: dict[str, Callable[[], Case]] = {
    "conv1d, stride and dilation": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), nn.Tanh(), nn.Flatten()),
        _r(4, 2, 9),
    ),
    "conv2d, groups": lambda: (
        nn.Sequential(nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(120, 2)),
        _r(3, 4, 5, 5),
    ),
    "conv2d, depthwise": lambda: (
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2)),
        _r(4, 3, 5, 5),
    ),
    "conv2d, circular": lambda: (
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(32, 2)),
        _r(3, 1, 4, 4),
    ),
    "conv2d, reflected": lambda: (
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2)),
        _r(3, 1, 4, 4),
    ),
    "conv2d, same": lambda: (
        nn.Sequential(nn.Conv2d(1, 2, (2, 4), padding="same", dilation=(1, 2)), nn.Flatten(), nn.Linear(40, 2)),
        _r(3, 1, 4, 5),
    ),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)),
        _r(3, 1, 4, 3, 4),
    ),
    "convolution transposed": lambda: (
        nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2)),
        _r(3, 1, 3, 3),
    ),
    "convolution used twice": lambda: (
        From(lambda self, x: self.c(torch.tanh(self.c(x))).flatten(1), c=nn.Conv1d(2, 2, 3)),
        _r(4, 2, 7),
    ),
    "resnet-18, pre-activation": lambda: (resnet18(), _r(3, 3, 8, 8)),
    "a scale and a shift of one number": lambda: (
        From(
            lambda self, x: self.out(torch.tanh(x * self.a + self.b)),
            out=nn.Linear(3, 2),
            a=nn.Parameter(_r(1)),
            b=nn.Parameter(_r(1)),
        ),
        _r(4, 3),
    ),
    "norms": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, 2),
            nn.GroupNorm(2, 4),
            nn.Tanh(),
            nn.InstanceNorm2d(4, affine=True),
            nn.Conv2d(4, 3, 2),
            nn.LayerNorm((4, 4)),
            nn.Tanh(),
            nn.RMSNorm(4),
            nn.Flatten(),
            nn.Linear(48, 2),
        ),
        _r(3, 2, 6, 6),
    ),
    "batch norm on a sequence": lambda: (
        nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).eval(),
        _r(5, 3, 4),
    ),
    "tied linear": tied_linear,
    "tied and turned": tied_and_turned,
    "tied everywhere": tied_everywhere,
    "a bias that is a scale": bias_is_weight,
    "table with padding": lambda: (
        nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(12, 2)),
        torch.randint(5, (6, 4)),
    ),
    "linear on sequences": lambda: (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten(), nn.Linear(10, 2)),
        _r(4, 5, 3),
    ),
    "as many positions as samples": lambda: (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten(), nn.Linear(8, 2)),
        _r(4, 4, 3),
    ),
    "sequence first": lambda: (
        From(_sequence_first, block=nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)),
        _r(5, 3, 4),
    ),
    "sequence first, as many positions as samples": lambda: (
        From(_sequence_first, block=nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)),
        _r(5, 5, 4),
    ),
    "positions merged into samples": lambda: (
        From(_merged(False), layer=nn.Linear(3, 2), out=nn.Linear(8, 2)),
        _r(5, 4, 3),
    ),
    "samples merged into positions": lambda: (
        From(_merged(True), layer=nn.Linear(3, 2), out=nn.Linear(8, 2)),
        _r(5, 4, 3),
    ),
    "attention to a learnt query": lambda: (
        From(_attend, attention=nn.MultiheadAttention(4, 2, batch_first=True), query=nn.Parameter(_r(1, 2, 4))),
        _r(3, 3, 4),
    ),
    "positional embedding": lambda: (
        From(
            lambda self, x: self.out((x + self.shift) * self.scale).flatten(1),
            shift=nn.Parameter(_r(1, 4, 3)),
            scale=nn.Parameter(_r(3)),
            out=nn.Linear(3, 2),
        ),
        _r(5, 4, 3),
    ),
    "a linear layer that is none": lambda: (nn.Sequential(Doubling(3, 4), nn.Tanh(), nn.Linear(4, 2)), _r(5, 3)),
    "a linear layer that never calls linear": lambda: (
        nn.Sequential(Squaring(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        _r(5, 3),
    ),
    "weights used past their module": lambda: (
        From(lambda self, x: self.a(x) + x @ self.a.weight.T + self.a.bias**2, a=nn.Linear(3, 2)),
        _r(5, 3),
    ),
    "bilinear": lambda: (
        From(lambda self, x: self.b(x, torch.sin(x)), b=nn.Bilinear(3, 3, 2)),
        _r(5, 3),
    ),
    "routed": lambda: (From(_routed, left=nn.Linear(3, 2), right=nn.Linear(3, 2)), _r(7, 3)),
    "packed sequence": lambda: (From(_packed, core=nn.GRU(3, 2, batch_first=True)), _r(3, 4, 3)),
    "gru without biases": lambda: (
        From(lambda self, x: self.core(x)[1][-1], core=nn.GRU(3, 2, num_layers=2, bias=False, batch_first=True)),
        _r(4, 5, 3),
    ),
    "lstm, sequence first": lambda: (
        From(lambda self, x: self.core(x.transpose(0, 1))[1][1][0], core=nn.LSTM(3, 2)),
        _r(4, 5, 3),
    ),
    "lstm with projections": lambda: (
        From(lambda self, x: self.core(x)[0][:, -1], core=nn.LSTM(3, 4, proj_size=2, batch_first=True)),
        _r(3, 3, 3),
    ),
    "rnn of relu": lambda: (
        From(lambda self, x: self.core(x)[0].flatten(1), core=nn.RNN(3, 2, nonlinearity="relu", batch_first=True)),
        _r(4, 3, 3),
    ),
    "spectral norm": lambda: (
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).eval(),
        _r(4, 3),
    ),
    "orthogonal": lambda: (
        nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)),
        _r(4, 3),
    ),
    "weight never used": lambda: (From(lambda self, x: self.a(x), a=nn.Linear(3, 2), b=nn.Linear(3, 2)), _r(4, 3)),
    "a layer of nothing": _nothing,
    "output by output": lambda: (
        From(
            lambda self, x: torch.stack([layer(x).squeeze(1) for layer in self.heads], 1),
            heads=nn.ModuleList([nn.Linear(3, 1) for _ in range(4)]),
        ),
        _r(4, 3),
    ),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        model, x = NETWORKS[name]()
    return model.to(dtype), x.to(dtype) if x.is_floating_point() else x
