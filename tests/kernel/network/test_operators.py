"""Every operator with a rule, in many forms of its arguments, beside torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.kernel.network.compared import compare


class Net(nn.Module):
    """A function of x and of a few parameters, of the given shapes."""

    def __init__(self, function, *shapes, positive=False):
        super().__init__()
        draws = [torch.rand(s) + 0.5 if positive else torch.randn(s) for s in shapes]
        self.p = nn.ParameterList([nn.Parameter(draw.double()) for draw in draws])
        self.function = function

    def forward(self, x):
        return self.function(x, *self.p)


def net(function, *shapes, x=(3, 4), positive=False):
    return function, shapes, x, positive


def entries(function, positive=False):
    """A function of entries, after a layer."""
    return net(lambda x, W: function(x @ W if not positive else x * x + W * W), (4, 4) if not positive else (4,))


def windows(function, size=6, channels=1, axes=2):
    """A function of an image, made of the parameters."""
    shape = (channels, *(size for _ in range(axes)))
    return net(lambda x, W: function(torch.tanh(x + W)), shape, x=(3, *shape))


ENTRYWISE = {
    "sigmoid": entries(torch.sigmoid),
    "tanh": entries(torch.tanh),
    "silu": entries(F.silu),
    "mish": entries(F.mish),
    "exp": entries(torch.exp),
    "expm1": entries(torch.expm1),
    "log": entries(torch.log, True),
    "log1p": entries(torch.log1p, True),
    "sqrt": entries(torch.sqrt, True),
    "rsqrt": entries(torch.rsqrt, True),
    "reciprocal": entries(torch.reciprocal, True),
    "sin": entries(torch.sin),
    "cos": entries(torch.cos),
    "erf": entries(torch.erf),
    "atan": entries(torch.atan),
    "relu": entries(torch.relu),
    "abs": entries(torch.abs),
    "relu6": entries(lambda x: F.relu6(4 * x)),
    "hardswish": entries(lambda x: F.hardswish(2 * x)),
    "hardtanh": entries(lambda x: F.hardtanh(x, -0.5, 0.25)),
    "sinh": entries(torch.sinh),
    "cosh": entries(torch.cosh),
    "logsigmoid": entries(F.logsigmoid),
    "softplus": entries(lambda x: F.softplus(x, beta=3, threshold=1e9)),
    "gelu": entries(F.gelu),
    "gelu tanh": entries(lambda x: F.gelu(x, approximate="tanh")),
    "elu": entries(lambda x: F.elu(x, alpha=0.7)),
    "selu": entries(F.selu),
    "celu": entries(lambda x: F.celu(x, alpha=3.0)),
    "leaky_relu": entries(lambda x: F.leaky_relu(x, 0.3)),
    "clamp": entries(lambda x: x.clamp(-0.3, 0.4)),
    "clamp_min": entries(lambda x: x.clamp(min=0.1)),
    "clamp_max": entries(lambda x: x.clamp(max=0.1)),
    "pow 3": entries(lambda x: x**3),
    "pow -2": entries(lambda x: x**-2),
    "pow 0.5": entries(lambda x: x**0.5, True),
    "pow -1.5": entries(lambda x: x**-1.5, True),
    "powers of numbers": entries(lambda x: torch.tensor([0.5, 1.0, 2.0, 3.5], dtype=x.dtype) ** x),
    "powers by numbers": entries(lambda x: x ** torch.tensor([-1.5, 0.0, 1.0, 2.5], dtype=x.dtype), True),
    "powers by integers": entries(lambda x: x ** torch.arange(4), True),
    "pow 0": entries(lambda x: x**0 * x),
    "square": entries(torch.square),
    "neg": entries(torch.neg),
    "softsign": entries(F.softsign),
    "tanhshrink": entries(F.tanhshrink),
    "threshold": entries(lambda x: F.threshold(x, 0.1, 20.0)),
    "exponential of a base": entries(lambda x: 3.0**x),
    "exp2": entries(torch.exp2),
    "log2": entries(torch.log2, True),
    "log10": entries(torch.log10, True),
    "asinh": entries(torch.asinh),
    "tan": entries(torch.tan),
    "erfc": entries(torch.erfc),
}
ARITHMETIC = {
    "add alpha": net(lambda x, a, b: torch.add(x * a, b, alpha=3), (4,), (1, 4)),
    "sub alpha": net(lambda x, a, b: torch.sub(x * a, b, alpha=-2.5), (4,), (4,)),
    "rsub": net(lambda x, a: torch.rsub(x * a, 2.0, alpha=3), (4,)),
    "number minus": net(lambda x, a: 2 - x * a, (4,)),
    "number over": net(lambda x, a: 2 / (3 + torch.tanh(x * a)), (4,)),
    "over number": net(lambda x, a: (x * a) / 7, (4,)),
    "quotient": net(lambda x, a, b: (x * a) / (3 + torch.tanh(x * b)), (4,), (4,)),
    "quotient of the parameters": net(lambda x, a, b: x * (a / (3 + torch.tanh(b))), (4,), (4,)),
    "broadcast": net(lambda x, a, b: (x[:, :, None] * a + b * x[:, None, :]).flatten(1),
                     (4, 1), (1, 4)),
    "products of parameters": net(lambda x, a, b: x @ (a @ torch.tanh(b)), (4, 5), (5, 4)),
    "addcmul": net(lambda x, a, b: torch.addcmul(x, a, x * b, value=0.7), (4,), (4,)),
    "addcdiv": net(lambda x, a, b: torch.addcdiv(x, a, 3 + torch.tanh(x * b), value=0.7), (4,), (4,)),
    "lerp": net(lambda x, a, b: torch.lerp(x * a, x + b, 0.3), (4,), (4,)),
    "lerp of tensors": net(lambda x, a, b: torch.lerp(x * a, x + b, torch.sigmoid(a)), (4,), (4,)),
    "matmul": net(lambda x, W: x @ W, (4, 5)),
    "matmul of vectors": net(lambda x, w: x @ w, (4,)),
    "shared times owned": net(lambda x, W: (W @ x[:, :, None])[:, :, 0], (5, 4)),
    "batched": net(lambda x, W: torch.matmul(x[:, None, None, :], W)[:, :, 0], (3, 4, 2)),
    "batched on both sides": net(lambda x, W: torch.matmul(x.reshape(-1, 2, 1, 2), W).flatten(1), (2, 2, 3)),
    "several leading axes": net(lambda x, W: torch.matmul(x.reshape(-1, 1, 2, 1, 2), W).flatten(1), (3, 2, 2, 2)),
    "owned times owned": net(lambda x, W: torch.bmm((x @ W)[:, :, None], torch.tanh(x @ W)[:, None, :]), (4, 3)),
    "addmm": net(lambda x, b, W: torch.addmm(b, x, W, beta=0.5, alpha=-2), (5,), (4, 5)),
    "baddbmm": net(lambda x, b, W: torch.baddbmm(b.expand(len(x), 1, 3), x[:, None], W.expand(len(x), 4, 3),
                                                 beta=0.5, alpha=3), (3,), (4, 3)),
    "outer": net(lambda x, a, b: x @ torch.outer(a, b), (4,), (3,)),
    "mv": net(lambda x, W, v: x * torch.mv(W, v), (4, 3), (3,)),
    "linear of three axes": net(lambda x, W, b: F.linear(x, W, b), (5, 4), (5,), x=(3, 2, 4)),
    "bilinear form": net(lambda x, W, b: F.bilinear(x, torch.tanh(x), W, b), (3, 4, 4), (3,)),
    "einsum attention": net(lambda x, W: torch.einsum("bhqd,bhkd->bhqk", x * W, torch.tanh(x)), (3, 4), x=(3, 2, 3, 4)),
    "einsum shared": net(lambda x, W: torch.einsum("bi,oi->bo", x, W), (5, 4)),
    "einsum transposed": net(lambda x, W: torch.einsum("oi,bi->ob", W, x).t(), (5, 4)),
    "einsum heads": net(lambda x, W: torch.einsum("bnc,hcd->bhnd", x, W), (2, 4, 3), x=(3, 2, 4)),
    "einsum of one": net(lambda x, W: torch.einsum("bij->bj", x * W), (2, 4), x=(3, 2, 4)),
    "einsum of three": net(lambda x, U, V: torch.einsum("bi,ij,jk->bk", x, U, V), (4, 3), (3, 2)),
    "einsum sums one operand": net(lambda x, W: torch.einsum("bij,k->bk", x, W), (4,), x=(3, 2, 4)),
    "einsum with an ellipsis": net(lambda x, W: torch.einsum("...i,oi->...o", x, W), (5, 4), x=(3, 2, 4)),
    "outer product by einsum": net(lambda x, W: torch.einsum("bi,bj->bij", x * W, torch.tanh(x)), (4,)),
}  # fmt: skip
MOVED = {
    "permute": net(lambda x, W: (x * W).permute(0, 2, 1), (2, 4), x=(3, 2, 4)),
    "batch axis last": net(lambda x, W: (W @ x.t()).t(), (5, 4)),
    "batch axis in the middle": net(lambda x, W: (x.permute(1, 0, 2) @ W).transpose(0, 1), (4, 2), x=(3, 2, 4)),
    "flatten": net(lambda x, W: torch.flatten(x * W, 1, 2), (2, 3, 4), x=(3, 2, 3, 4)),
    "unflatten": net(lambda x, W: (x * W).unflatten(-1, (2, -1)), (4,)),
    "squeeze": net(lambda x, W: (x * W)[:, None].squeeze(1), (4,)),
    "slices": net(lambda x, W: (x * W)[:, -3:-1] + (x * W)[:, ::2], (4,)),
    "negative select": net(lambda x, W: (x * W).select(-1, -2), (4,)),
    "narrow": net(lambda x, W: (x * W).narrow(-1, -3, 2), (4,)),
    "split": net(lambda x, W: torch.cat((x * W).split([1, 3], -1)[::-1], 1), (4,)),
    "split evenly": net(lambda x, W: torch.cat((x * W).split(3, -1)[::-1], 1), (4,)),
    "chunk": net(lambda x, W: torch.stack((x * W).chunk(2, -1), -1), (4,)),
    "chunk unevenly": net(lambda x, W: torch.cat((x * W).chunk(3, -1)[::-1], -1), (5,), x=(3, 5)),
    "tensor_split": net(lambda x, W: torch.cat((x * W).tensor_split(3, -1)[::-1], -1), (5,), x=(3, 5)),
    "unbind": net(lambda x, W: torch.stack((x * W).unbind(-1)[::-1], -1), (4,)),
    "cat": net(lambda x, W: torch.cat([x * W, x, W.expand(len(x), 4)], -1), (4,)),
    "stack": net(lambda x, W: torch.stack([x * W, x], -2), (4,)),
    "class token": net(lambda x, t, W: torch.cat([t.expand(len(x), 1, 4), x], 1) @ W, (1, 1, 4), (4, 3), x=(3, 2, 4)),
    "expand": net(lambda x, W: (x * W)[:, None].expand(-1, 3, -1), (4,)),
    "repeat": net(lambda x, W: (x * W).repeat(1, 2), (4,)),
    "tile": net(lambda x, W: (x * W).tile(2), (4,)),
    "repeat_interleave": net(lambda x, W: (x * W).repeat_interleave(2, 1), (4,)),
    "flip": net(lambda x, W: (x * W).flip(-1), (4,)),
    "roll": net(lambda x, W: torch.roll(x * W, (1, 2), (1, 2)), (3, 4), x=(3, 3, 4)),
    "rot90": net(lambda x, W: torch.rot90(x * W, 1, (1, 2)), (3, 4), x=(3, 3, 4)),
    "diagonal": net(lambda x, W: torch.diagonal(x * W, 1, -2, -1), (3, 4), x=(3, 3, 4)),
    "tril": net(lambda x, W: x @ torch.tril(W, -1), (4, 4)),
    "triu": net(lambda x, W: torch.triu(x * W, 1), (3, 4), x=(3, 3, 4)),
    "diag_embed": net(lambda x, W: torch.diag_embed(x * W), (4,)),
    "unfold": net(lambda x, W: (x * W).unfold(-1, 2, 1), (4,)),
    "movedim": net(lambda x, W: torch.movedim(x * W, -1, 1), (3, 4), x=(3, 3, 4)),
    "pad": net(lambda x, W: F.pad(x * W, (1, 2, 0, 1)), (3, 4), x=(3, 3, 4)),
    "pad with a number": net(lambda x, W: F.pad(x * W, (1, 2), value=0.7), (4,)),
    "negative pad": net(lambda x, W: F.pad(x * W, (-1, 2)), (4,)),
    "reflect": net(lambda x, W: F.pad(x * W, (1, 2), mode="reflect"), (3, 4), x=(3, 3, 4)),
    "replicate": net(lambda x, W: F.pad(x * W, (1, 2, 3, 0), mode="replicate"), (1, 3, 4), x=(3, 1, 3, 4)),
    "circular": net(lambda x, W: F.pad(x * W, (1, 2, 2, 0), mode="circular"), (1, 3, 4), x=(3, 1, 3, 4)),
    "pixel_shuffle": net(lambda x, W: F.pixel_shuffle(x * W, 2), (8, 2, 3), x=(3, 8, 2, 3)),
    "pixel_unshuffle": net(lambda x, W: F.pixel_unshuffle(x * W, 2), (2, 4, 2), x=(3, 2, 4, 2)),
    "channel_shuffle": net(lambda x, W: F.channel_shuffle(x * W, 3), (6, 2, 1), x=(3, 6, 2, 1)),
    "index": net(lambda x, W: (x * W)[:, [2, 0, 2]], (4,)),
    "index_select": net(lambda x, W: (x * W).index_select(1, torch.tensor([3, 3, 1])), (4,)),
    "gather": net(lambda x, W: (x * W).gather(1, torch.tensor([[3, 0]]).expand(len(x), 2)), (4,)),
    "where": net(lambda x, W: torch.where(torch.tensor([True, False, True, False]), x * W, torch.tanh(W)), (4,)),
    "where a number": net(lambda x, W: torch.where(torch.tensor([True, False, True, False]), x * W, 0.3), (4,)),
    "masked_fill": net(lambda x, W: (x * W).masked_fill(torch.tensor([True, False, True, False]), 0.3), (4,)),
    "samples and back": net(lambda x, W: torch.flip(torch.flip(x, (0,)) * W, (0,)), (4,)),
}  # fmt: skip
REDUCED = {
    "sum": net(lambda x, W: (x * W).sum((1, 2)), (2, 4), x=(3, 2, 4)),
    "sum keepdim": net(lambda x, W: (x * W).sum((-1, 1), keepdim=True), (2, 4), x=(3, 2, 4)),
    "sum of the parameters": net(lambda x, W: x * W.sum(), (4,)),
    "mean": net(lambda x, W: (x * W).mean(-2), (2, 4), x=(3, 2, 4)),
    "mean of the parameters": net(lambda x, W: x * W.mean(), (4,)),
    "cumsum": net(lambda x, W: torch.cumsum(x * W, -1), (2, 4), x=(3, 2, 4)),
    "var": net(lambda x, W: (x * W).var(-1), (4,)),
    "var uncorrected": net(lambda x, W: (x * W).var(-1, correction=0, keepdim=True), (4,)),
    "std": net(lambda x, W: (x * W).std((1, 2)), (2, 4), x=(3, 2, 4)),
    "prod": net(lambda x, W: (x * W).prod(-1), (4,)),
    "norm": net(lambda x, W: (x * W).norm(dim=-1), (4,)),
    "norm 1": net(lambda x, W: (x * W).norm(p=1, dim=-1, keepdim=True), (4,)),
    "normalize": net(lambda x, W: F.normalize(x * W, dim=-1), (4,)),
    "cosine_similarity": net(lambda x, W: F.cosine_similarity(x, W[None], dim=-1), (4,)),
    "amax": net(lambda x, W: (x * W).amax(-1), (4,)),
    "amin": net(lambda x, W: (x * W).amin((1, 2), keepdim=True), (2, 4), x=(3, 2, 4)),
    "max along an axis": net(lambda x, W: (x * W).max(-1).values, (4,)),
    "minimum": net(lambda x, W: torch.minimum(x * W, x + W), (4,)),
    "maximum": net(lambda x, W: torch.maximum(x * W, x + W), (4,)),
    "logsumexp": net(lambda x, W: torch.logsumexp(x * W, (1, 2)), (2, 4), x=(3, 2, 4)),
    "logsumexp keepdim": net(lambda x, W: torch.logsumexp(x * W, -1, keepdim=True), (4,)),
    "softmax": net(lambda x, W: torch.softmax(x * W, 1), (2, 4), x=(3, 2, 4)),
    "log_softmax": net(lambda x, W: torch.log_softmax(x * W, -1), (4,)),
    "softmin": net(lambda x, W: F.softmin(x * W, -1), (4,)),
    "softmax of the parameters": net(lambda x, W: x * torch.softmax(W, 0), (4,)),
    "glu": net(lambda x, W: F.glu(x * W, -1), (4,)),
    "prelu": net(lambda x, W, a: F.prelu(x * W, a), (3, 4), (3,), x=(3, 3, 4)),
    "prelu of one": net(lambda x, W, a: F.prelu(x * W, a), (4,), (1,)),
}  # fmt: skip
POOLED = {
    "avg": windows(lambda x: F.avg_pool2d(x, 2)),
    "avg overlapping": windows(lambda x: F.avg_pool2d(x, 3, 1, 1)),
    "avg without padding counted": windows(lambda x: F.avg_pool2d(x, (3, 2), (2, 3), 1, count_include_pad=False)),
    "avg ceil": windows(lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True)),
    "avg ceil and padding": windows(lambda x: F.avg_pool2d(x, 3, 3, 1, ceil_mode=True)),
    "avg ceil, padding not counted": windows(
        lambda x: F.avg_pool2d(x, 4, 3, 2, ceil_mode=True, count_include_pad=False)),
    "avg divisor": windows(lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5)),
    "avg 1d": windows(lambda x: F.avg_pool1d(x, 3, 2, 1, True), axes=1),
    "avg 3d": windows(lambda x: F.avg_pool3d(x, (1, 2, 3)), size=4, channels=1, axes=3),
    "max": windows(lambda x: F.max_pool2d(x, 2)),
    "max overlapping": windows(lambda x: F.max_pool2d(x, 3, 1, 1)),
    "max dilated": windows(lambda x: F.max_pool2d(x, 3, 2, 1, dilation=2)),
    "max ceil": windows(lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True)),
    "max ceil and padding": windows(lambda x: F.max_pool2d(x, (3, 2), 3, 1, ceil_mode=True)),
    "max 1d": windows(lambda x: F.max_pool1d(x, 3, 2, 1), axes=1),
    "max 3d": windows(lambda x: F.max_pool3d(x, 2), size=4, channels=1, axes=3),
    "adaptive": windows(lambda x: F.adaptive_avg_pool2d(x, (2, 5))),
    "adaptive to one": windows(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive, an axis as it is": windows(lambda x: F.adaptive_avg_pool2d(x, (None, 4)), size=5),
    "adaptive to more": windows(lambda x: F.adaptive_avg_pool2d(x, 7), size=5),
    "adaptive 1d": windows(lambda x: F.adaptive_avg_pool1d(x, 4), axes=1),
    "adaptive 3d": windows(lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), size=4, channels=1, axes=3),
    "adaptive max": windows(lambda x: F.adaptive_max_pool2d(x, (2, 4)), size=5),
    "nearest": windows(lambda x: F.interpolate(x, scale_factor=2), size=3, channels=1),
    "nearest to a size": windows(lambda x: F.interpolate(x, size=(5, 7)), size=3, channels=1),
    "bilinear": windows(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), size=3, channels=1),
    "bilinear by corners": windows(lambda x: F.interpolate(x, size=(5, 4), mode="bilinear", align_corners=True), size=3,
                                   channels=1),
    "linear": windows(lambda x: F.interpolate(x, size=7, mode="linear"), size=3, axes=1),
    "im2col": windows(lambda x: F.unfold(x, (3, 2), 1, (1, 0), 2), size=5, channels=2),
    "col2im": windows(lambda x: F.fold(F.unfold(x, 2), (5, 5), 2), size=5, channels=2),
}  # fmt: skip


def convolution(x, layer):
    return layer, x


CONVOLUTIONS = {
    "1d": convolution((3, 4, 7), nn.Conv1d(4, 6, 3, stride=2, padding=1)),
    "2d": convolution((3, 4, 6, 5), nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=2)),
    "3d": convolution((3, 2, 4, 3, 3), nn.Conv3d(2, 2, 2, padding=1, groups=2)),
    "same": convolution((3, 2, 6, 5), nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2))),
    "valid": convolution((3, 2, 6), nn.Conv1d(2, 3, 2, padding="valid", stride=2)),
    "depthwise": convolution((3, 4, 5, 5), nn.Conv2d(4, 8, 3, groups=4, bias=False)),
    "reflect": convolution((3, 2, 5, 5), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
    "replicate": convolution((3, 2, 5, 5), nn.Conv2d(2, 2, 3, padding=2, padding_mode="replicate")),
    "circular": convolution((3, 2, 5, 5), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
    "padding beyond the kernel": convolution((3, 1, 2, 2), nn.Conv2d(1, 2, 2, padding=3)),
    "transposed 1d": convolution((3, 4, 5), nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1)),
    "transposed 2d": convolution((3, 2, 2, 2), nn.ConvTranspose2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 0), groups=2,
                                                                  dilation=(1, 2), output_padding=(1, 2))),
    "transposed 3d": convolution((3, 2, 2, 3, 2), nn.ConvTranspose3d(2, 2, 2, stride=2, bias=False)),
    "transposed, cut": convolution((3, 2, 6), nn.ConvTranspose1d(2, 2, 2, padding=2)),
}  # fmt: skip
QUICK = ("same", "depthwise", "padding beyond the kernel", "transposed 1d", "transposed 2d")
ALL = {**ENTRYWISE, **ARITHMETIC, **MOVED, **REDUCED, **POOLED}


def test_all_functions_of_entries_in_one_network():
    torch.manual_seed(0)
    functions = [function for function, shapes, *_ in ENTRYWISE.values() if len(shapes[0]) == 2]
    compare(
        Net(lambda x, W: torch.cat([f(x, W) for f in functions], 1), (2, 1)), torch.randn(2, 2, dtype=torch.float64)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_values_and_gradients_are_those_of_torch(name):
    torch.manual_seed(0)
    function, shapes, x, positive = ALL[name]
    compare(Net(function, *shapes, positive=positive), torch.randn(x, dtype=torch.float64))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONVOLUTIONS]
)
def test_convolutions_are_those_of_torch(name):
    torch.manual_seed(0)
    layer, x = CONVOLUTIONS[name]
    compare(nn.Sequential(layer, nn.Tanh()), torch.randn(x, dtype=torch.float64))
