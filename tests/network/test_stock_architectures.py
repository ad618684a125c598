"""Stock architectures in small: the last affine layer enters linearly, and smooth networks are analytic, by proof."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.kernel.network.analytic import walk
from alignver.network.degrees import prove_structure
from alignver.network.trace import trace_model


def mlp(*activations: nn.Module) -> nn.Module:
    layers: list[nn.Module] = []
    for activation in activations:
        layers += [nn.Linear(6, 6), activation]
    return nn.Sequential(*layers, nn.Linear(6, 2))


def conv(*middle: nn.Module, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *middle, nn.Flatten(), nn.LazyLinear(2))


class Of(nn.Module):
    """Modules by name, and a forward pass of them."""

    def __init__(self, forward, **modules) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def residual(s, x):
    return s.o((x + s.b(F.gelu(s.a(x)))).flatten(1))


def gpt(tied: bool) -> nn.Module:
    def run(s, idx):
        h = s.e(idx) + s.p(torch.arange(idx.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(idx.shape[1])
        h = s.n(h + s.a(h, h, h, attn_mask=mask, need_weights=False)[0])
        return F.linear(h, s.e.weight if tied else s.o.weight).flatten(1)

    parts = {"e": nn.Embedding(7, 8), "p": nn.Embedding(9, 8), "n": nn.LayerNorm(8)}
    return Of(run, **parts, a=nn.MultiheadAttention(8, 2, batch_first=True), o=nn.Linear(8, 7, bias=False))


def rotary(s, x):
    q, k, v = s.qkv(x).chunk(3, -1)
    t = torch.arange(x.shape[1], dtype=torch.float32)[:, None]
    q, k = (torch.cat([h[..., :3] * t.cos() - h[..., 3:] * t.sin(), h[..., 3:]], -1) for h in (q, k))
    return s.o(F.scaled_dot_product_attention(q, k, v, is_causal=True)).flatten(1)


VECTOR, IMAGE, SEQUENCE = torch.randn(3, 6), torch.randn(3, 3, 8, 8), torch.randn(3, 5, 6)
TOKENS = torch.arange(15).reshape(3, 5) % 7
SMOOTH = (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.Mish, nn.LogSigmoid, nn.Tanhshrink)
BENT = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.ReLU6, nn.PReLU)

MODELS = {
    **{kind.__name__: (lambda kind=kind: mlp(kind(), kind()), VECTOR, True) for kind in SMOOTH},
    **{kind.__name__: (lambda kind=kind: mlp(nn.Tanh(), kind()), VECTOR, False) for kind in BENT},
    "layer norm": (lambda: mlp(nn.LayerNorm(6), nn.GELU()), VECTOR, True),
    "rms norm": (lambda: mlp(nn.RMSNorm(6), nn.SiLU()), VECTOR, True),
    "batch norm": (lambda: mlp(nn.BatchNorm1d(6), nn.Tanh()), VECTOR, True),
    "softmax": (lambda: mlp(nn.Softmax(-1), nn.LogSoftmax(-1)), VECTOR, True),
    "bottleneck": (lambda: nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 6)), VECTOR, True),
    "frozen features": (lambda: nn.Sequential(mlp(nn.ReLU()).requires_grad_(False), nn.Linear(2, 2)), VECTOR, True),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 2)),
        VECTOR, False),
    "spectral norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 2)),
        VECTOR, False),
    "siren": (lambda: Of(lambda s, x: s.o(torch.sin(30 * s.a(x))), a=nn.Linear(6, 8), o=nn.Linear(8, 2)), VECTOR, True),
    "gated": (lambda: Of(lambda s, x: s.o(F.glu(s.a(x))), a=nn.Linear(6, 8), o=nn.Linear(4, 2)), VECTOR, True),
    "swiglu": (
        lambda: Of(lambda s, x: s.o(F.silu(s.a(x)) * s.b(x)), a=nn.Linear(6, 8), b=nn.Linear(6, 8), o=nn.Linear(8, 2)),
        VECTOR, True),
    "soft mixture": (
        lambda: Of(lambda s, x: s.o((s.g(x).softmax(-1)[:, None] * s.a(x).reshape(3, 6, 2)).sum(-1)),
                   g=nn.Linear(6, 2), a=nn.Linear(6, 12), o=nn.Linear(6, 2)), VECTOR, True),
    "radial functions": (
        lambda: Of(lambda s, x: s.o(torch.exp(-((x[:, None] - s.a.weight) ** 2).sum(-1))),
                   a=nn.Linear(6, 4, bias=False), o=nn.Linear(4, 2)), VECTOR, True),
    "cosine features": (
        lambda: Of(lambda s, x: s.o(torch.cat([s.a(x).sin(), s.a(x).cos()], -1)), a=nn.Linear(6, 4), o=nn.Linear(8, 2)),
        VECTOR, True),
    "bilinear": (
        lambda: Of(lambda s, x: s.o(s.a(x, x).tanh()), a=nn.Bilinear(6, 6, 4), o=nn.Linear(4, 2)), VECTOR, True),
    "reused layer": (
        lambda: Of(lambda s, x: s.o(s.a(s.a(x).tanh()).tanh()), a=nn.Linear(6, 6), o=nn.Linear(6, 2)), VECTOR, True),
    "root parameter": (
        lambda: Of(lambda s, x: s.o((s.a(x) + s.c).tanh()), a=nn.Linear(6, 4), c=nn.Parameter(torch.ones(4)),
                   o=nn.Linear(4, 2)), VECTOR, True),
    "convolution": (lambda: conv(nn.Softplus(), nn.AvgPool2d(2)), IMAGE, True),
    "max pooling": (lambda: conv(nn.Tanh(), nn.MaxPool2d(2)), IMAGE, False),
    "group norm": (lambda: conv(nn.GroupNorm(2, 4), nn.SiLU()), IMAGE, True),
    "instance norm": (lambda: conv(nn.InstanceNorm2d(4), nn.GELU()), IMAGE, True),
    "depthwise": (lambda: conv(nn.Conv2d(4, 4, 3, groups=4), nn.GELU(), nn.Conv2d(4, 8, 1)), IMAGE, True),
    "transposed": (lambda: conv(nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Tanh()), IMAGE, True),
    "upsampling": (lambda: conv(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Tanh()), IMAGE, True),
    "squeeze and excite": (
        lambda: Of(lambda s, x: s.o((s.a(x) * s.g(s.a(x).mean((2, 3)))[:, :, None, None].sigmoid()).mean((2, 3))),
                   a=nn.Conv2d(3, 4, 3), g=nn.Linear(4, 4), o=nn.Linear(4, 2)), IMAGE, True),
    "residual": (
        lambda: Of(residual, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 3, 3, padding=1), o=nn.Linear(192, 2)),
        IMAGE, True),
    **{kind.__name__: (
        lambda kind=kind: Of(lambda s, x: s.o(s.r(x)[0][:, -1]), r=kind(6, 4, batch_first=True), o=nn.Linear(4, 2)),
        SEQUENCE, True) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
    "encoder": (
        lambda: Of(lambda s, x: s.o(s.r(x).mean(1)), o=nn.Linear(6, 2),
                   r=nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", batch_first=True)), SEQUENCE, True),
    "rotary": (lambda: Of(rotary, qkv=nn.Linear(6, 18), o=nn.Linear(6, 2)), SEQUENCE, True),
    "mixer": (
        lambda: Of(lambda s, x: s.o(s.b(s.a(s.n(x).mT).mT).tanh().mean(1)), n=nn.LayerNorm(6), a=nn.Linear(5, 5),
                   b=nn.Linear(6, 6), o=nn.Linear(6, 2)), SEQUENCE, True),
    "deep sets": (
        lambda: Of(lambda s, x: s.o(s.a(x).tanh().sum(1)), a=nn.Linear(6, 4), o=nn.Linear(4, 2)), SEQUENCE, True),
    "bag of words": (lambda: nn.Sequential(nn.EmbeddingBag(7, 4), nn.Tanh(), nn.Linear(4, 2)), TOKENS, True),
    "text": (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Tanh(), nn.Linear(20, 2)), TOKENS, True),
    "untied gpt": (lambda: gpt(False), TOKENS, True),
    "tied gpt": (lambda: gpt(True), TOKENS, True),
}  # fmt: skip
SUBSETS = {"untied gpt": {"o.weight"}, "tied gpt": {"n.weight", "n.bias"}, "frozen features": {"1.weight", "1.bias"}}
SUBSETS["encoder"] = {"o.weight", "o.bias"}


@pytest.mark.parametrize("name", MODELS)
def test_stock_architecture(name):
    torch.manual_seed(0)
    build, x, smooth = MODELS[name]
    model = build().eval()
    with torch.no_grad():
        model(x)  # lazy layers take their shape
    traced = trace_model(model, x)
    proof = prove_structure(traced)
    assert proof is not None
    last = [key for key, _ in model.named_parameters()][-1].rpartition(".")[0]
    expected = SUBSETS.get(name) or {key for key, _ in model.named_parameters() if key.rpartition(".")[0] == last}
    assert set(proof.names) == expected
    assert (not walk(traced.graph)[1]) is smooth
