"""Stock layers, tied and frozen weights, and what has to be refused, beside torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.errors import InvalidInput
from alignver.kernel.failure import NotProved
from alignver.kernel.network import balls
from alignver.network.enclosures import EnclosedNetwork
from tests.kernel.network.compared import compare, leaves_of, network_of
from tests.kernel.network.test_operators import Net


class Take(nn.Module):
    """A module whose first result is taken."""

    def __init__(self, inner, *more):
        super().__init__()
        self.inner, self.more = inner, more

    def forward(self, x):
        return self.inner(*([x] if not self.more else [x, *(x for _ in self.more)]))[0]


class Tied(nn.Module):
    def __init__(self, function, *shape):
        super().__init__()
        self.W = nn.Parameter(torch.randn(shape))
        self.function = function

    def forward(self, x):
        return self.function(x, self.W)


class TwoNames(nn.Module):
    """Two Parameters on one storage."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(3, 3, bias=False, dtype=torch.float64) for _ in range(2))
        self.second.weight = nn.Parameter(self.first.weight.detach())

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Rotary(nn.Module):
    """Attention with rotary positions, RMSNorm and SwiGLU, as in recent language models."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.q, self.k, self.v = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.norm = nn.RMSNorm(4, eps=1e-6)
        self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("frequencies", 100.0 ** (-torch.arange(0, 2, 2).float() / 2))

    def turned(self, x):
        angles = torch.outer(torch.arange(x.shape[-2]).to(x.dtype), self.frequencies.to(x.dtype))
        cos, sin = torch.cos(angles).repeat(1, 2), torch.sin(angles).repeat(1, 2)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        h = self.norm(x + a.transpose(1, 2).flatten(2))
        return (self.down(F.silu(self.gate(h)) * self.up(h)) @ self.embed.weight.t())[:, -1, :2]


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, groups=1), nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 2, groups=4)
        self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x):
        x = F.silu(self.norm(self.conv(x)))
        x = self.deep(x)
        s = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return F.adaptive_avg_pool2d(x * s[:, :, None, None], 1).flatten(1)


def attention(x, W, **options):
    q, k, v = ((x @ part).unflatten(-1, (2, 2)).transpose(1, 2) for part in W)
    return F.scaled_dot_product_attention(q, k, v, **options)


MASK = torch.tensor([[True, False, True], [True, True, False], [False, False, True]])
LAYERS = {
    "LayerNorm": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (3, 4)),
    "LayerNorm of two axes": (
        nn.Sequential(nn.LayerNorm((2, 4), elementwise_affine=False), nn.Linear(4, 2)), (3, 2, 4)),
    "RMSNorm": (nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), (3, 4)),
    "GroupNorm": (nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4)), (3, 2, 4)),
    "InstanceNorm": (nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True)), (3, 2, 4)),
    "BatchNorm": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh()), (3, 4)),
    "BatchNorm without affine": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)), (3, 4)),
    "LocalResponseNorm": (nn.Sequential(nn.Conv1d(2, 4, 2), nn.LocalResponseNorm(2)), (3, 2, 4)),
    "LSTM": (Take(nn.LSTM(2, 3, 2, batch_first=True)), (3, 3, 2)),
    "LSTM in both directions": (Take(nn.LSTM(2, 2, bidirectional=True, batch_first=True, bias=False)), (3, 3, 2)),
    "GRU": (Take(nn.GRU(2, 3, batch_first=True)), (3, 3, 2)),
    "GRU in both directions": (Take(nn.GRU(2, 2, 2, bidirectional=True, batch_first=True)), (3, 2, 2)),
    "RNN": (Take(nn.RNN(2, 3, batch_first=True)), (3, 3, 2)),
    "RNN, relu": (Take(nn.RNN(2, 3, nonlinearity="relu", batch_first=True)), (3, 3, 2)),
    "LSTMCell": (Take(nn.LSTMCell(3, 2)), (3, 3)),
    "GRUCell": (nn.GRUCell(3, 2), (3, 3)),
    "MultiheadAttention": (Take(nn.MultiheadAttention(4, 2, batch_first=True), 1, 1), (3, 3, 4)),
    "TransformerEncoderLayer": (nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu"), (3, 2, 4)),
    "norm first": (
        nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, norm_first=True, activation="gelu"), (3, 2, 4)),
    "Bilinear": (Net(lambda x, W: F.bilinear(x, x, W), (2, 4, 4)), (3, 4)),
    "PReLU": (nn.Sequential(nn.Linear(4, 3), nn.PReLU()), (3, 4)),
    "GLU": (nn.Sequential(nn.Linear(4, 6), nn.GLU()), (3, 4)),
    "Upsample": (nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv1d(1, 2, 2)), (3, 1, 3)),
    "Fold": (nn.Sequential(nn.Conv2d(1, 2, 2), nn.Unfold(2), nn.Fold((3, 3), 2)), (3, 1, 4, 4)),
    "squeeze and excite": (SqueezeExcite(), (3, 1, 5, 5)),
    "weight_norm": (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh()), (3, 4)),
    "attention": (Net(attention, (3, 4, 4)), (3, 3, 4)),
    "causal attention": (Net(lambda x, W: attention(x, W, is_causal=True), (3, 4, 4)), (3, 3, 4)),
    "masked attention": (Net(lambda x, W: attention(x, W, attn_mask=MASK), (3, 4, 4)), (3, 3, 4)),
    "attention with a bias": (Net(lambda x, W, b: attention(x, W, attn_mask=b), (3, 4, 4), (3, 3)), (3, 3, 4)),
    "scaled attention": (Net(lambda x, W: attention(x, W, scale=0.3), (3, 4, 4)), (3, 3, 4)),
    "attention with a mask of -inf": (
        Net(lambda x, W: attention(x, W, attn_mask=torch.zeros(3, 3).masked_fill(~MASK, -torch.inf)), (3, 4, 4)),
        (3, 3, 4),
    ),
    "grouped queries": (
        Net(lambda x, W: F.scaled_dot_product_attention(
            (x @ W).unflatten(-1, (4, 2)).transpose(1, 2), x.unflatten(-1, (2, 2)).transpose(1, 2),
            torch.tanh(x).unflatten(-1, (2, 2)).transpose(1, 2), enable_gqa=True), (4, 8)),
        (3, 3, 4),
    ),
    "tied, transposed by linear": (Tied(lambda x, W: F.linear(torch.tanh(F.linear(x, W)), W.t()), 3, 3), (3, 3)),
    "tied, transposed": (Tied(lambda x, W: torch.tanh(x @ W) @ W.t(), 3, 4), (3, 3)),
    "tied, twice": (Tied(lambda x, W: torch.tanh(x @ W) @ W, 3, 3), (3, 3)),
    "one transpose, used twice": (
        Tied(lambda x, W: (lambda V: torch.tanh(x @ V) @ V)(W.t()), 3, 3), (3, 3)),
    "a slice of a parameter": (Tied(lambda x, W: torch.tanh(x @ W[:3]) * W[3], 4, 3), (3, 3)),
    "rows of a parameter": (Tied(lambda x, W: F.linear(torch.tanh(F.linear(x, W[:2])), W[:3, :2]), 4, 3), (3, 3)),
    "a frozen layer": (
        nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2).requires_grad_(False)), (3, 3)),
    "relu before max-pooling": (
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 1)), (3, 1, 5, 5)),
}  # fmt: skip


QUICK = ("LayerNorm", "BatchNorm", "LSTM", "weight_norm", "masked attention", "grouped queries", "a frozen layer",
         "tied, transposed by linear", "one transpose, used twice", "rows of a parameter", "squeeze and excite",
         "relu before max-pooling", "Fold")  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
)
def test_layers_are_those_of_torch(name):
    model, shape = LAYERS[name]
    torch.manual_seed(1)
    for tensor in model.buffers():
        if tensor.is_floating_point() and tensor.ndim:
            tensor.data = torch.rand_like(tensor) + 0.5
    compare(model, torch.randn(shape))


def test_tokens():
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (3, 3))
    compare(Rotary(), tokens)
    compare(nn.Sequential(nn.Embedding(7, 3, padding_idx=None), nn.Flatten(), nn.Linear(9, 2)), tokens)
    for mode in ("sum", "mean"):
        compare(nn.Sequential(nn.EmbeddingBag(7, 3, mode=mode), nn.Tanh()), tokens)


class Mask(nn.Module):
    """Attention that does not look at the tokens 0, and a mean over the others."""

    def __init__(self, other=False):
        super().__init__()
        self.other = other
        self.embed, self.W = nn.Embedding(5, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, tokens):
        x, seen = self.embed(tokens), tokens != 0
        mask = (seen.flip(0) if self.other else seen)[:, None, :]
        a = F.scaled_dot_product_attention(x @ self.W, x, x, attn_mask=mask)
        a = a.masked_fill(~seen[:, :, None], 0.0)
        return a.sum(1)


def test_masks_that_depend_on_the_sample():
    torch.manual_seed(0)
    compare(Mask(), torch.tensor([[1, 2, 0], [3, 0, 0], [4, 4, 1]]))


def test_masks_of_other_samples_are_refused(monkeypatch):
    for comparison in ("require_same_in_batches", "require_same_in_order"):  # they refuse such models as well
        monkeypatch.setattr(f"alignver.network.trace.{comparison}", lambda *_: None)
    network = network_of(Mask(other=True), torch.tensor([[1, 2, 0], [3, 0, 0], [4, 4, 1]]), 3)
    with balls.precision(64), pytest.raises(NotProved, match="sample"):
        leaves_of(network)


JOINED = {
    "the mean over the batch": lambda x, W: x @ W - (x @ W).mean(0),
    "a permutation of samples": lambda x, W: (x @ W)[[1, 0, 2]],
    "a roll over the batch": lambda x, W: x @ W + torch.roll(x, 1, 0),
    "flipped samples": lambda x, W: x @ W + x.flip(0),
    "attention across samples": lambda x, W: torch.softmax(x @ W @ x.t(), -1) @ x,
    "a cumulative sum over the batch": lambda x, W: torch.cumsum(x @ W, 0),
    "a maximum over the batch": lambda x, W: x @ W - (x @ W).amax(0),
    "a softmax over the batch": lambda x, W: torch.softmax(x @ W, 0),
    "batch statistics": lambda x, W: F.batch_norm(x @ W, None, None, training=True),
    "a product over the batch": lambda x, W: (x @ W) @ (x.t() @ x),
    "a convolution along the batch": lambda x, W: F.conv1d((x @ W).t()[:, None], W[:1, None, :3], padding=1)[:, 0].t(),
    "pairs of samples": lambda x, W: (x @ W).reshape(1, -1).unfold(1, 3, 1)[0, : len(x)],
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_samples_are_refused(name, monkeypatch):
    for comparison in ("require_same_in_batches", "require_same_in_order"):  # they refuse such models as well
        monkeypatch.setattr(f"alignver.network.trace.{comparison}", lambda *_: None)
    torch.manual_seed(0)
    network = network_of(Net(JOINED[name], (3, 3)), torch.randn(3, 3), 3)
    with balls.precision(64), pytest.raises(NotProved, match=r"sampl|batch"):
        leaves_of(network)


REFUSED = {
    "floor": lambda x, W: torch.floor(x @ W) * W[0],
    "round": lambda x, W: torch.round(x @ W) * W[0],
    "sign": lambda x, W: torch.sign(x @ W) * W[0],
    "a cast to integers": lambda x, W: (x @ W).long().double() * W[0],
    "a computed condition": lambda x, W: torch.where(x @ W > 0, x, W[0]),
    "division that rounds": lambda x, W: torch.div(x @ W, 0.3, rounding_mode="floor"),
    "a kink": lambda x, W: torch.relu(x @ (W - W)),
    "a power of a negative number": lambda x, W: torch.pow(-1.0 - (x @ W) ** 2, torch.arange(3)),
    "a power of 0": lambda x, W: torch.pow(x @ (W - W), torch.arange(3)),
    "a kink of several": lambda x, W: F.relu6(x @ (W - W)),
    "a maximum of equal numbers": lambda x, W: torch.maximum(x @ W, (x * 1.0) @ W),
    "a root of 0": lambda x, W: torch.sqrt(((x - x) @ W) ** 2),
    "infinity": lambda x, W: (x @ W) / (1 + torch.full((3,), torch.inf, dtype=x.dtype)),
    "a row without an entry": lambda x, W: torch.softmax(
        (x @ W).masked_fill(torch.ones(3, dtype=torch.bool), -torch.inf), -1),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_decided_is_refused(name):
    torch.manual_seed(0)
    with pytest.raises((NotProved, InvalidInput)), balls.precision(64):
        leaves_of(network_of(Net(REFUSED[name], (3, 3)), torch.randn(3, 3)))


def test_two_parameters_on_one_storage_are_refused():
    with balls.precision(64), pytest.raises(NotProved, match="shares memory"):
        leaves_of(EnclosedNetwork.of(TwoNames().eval(), torch.randn(3, 3, dtype=torch.float64)))
