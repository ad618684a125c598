"""How many small networks are decided with a proof about the network itself, and whether a proof is ever wrong.

    python benchmarks/network_zoo.py [WORD ...]

Networks of many kinds, each at few samples (more parameters than outputs) and at many (fewer). Every answer about the
network is compared with the singular values of autograd's Jacobian in float64, where these are clear: a proof against
them is wrong. WORDs select networks by their names. The exit code is 1 for a wrong proof, or if fewer than nine in ten
cases are decided.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import alignver as av

CLEAR = 1e-7  # of the largest singular value, and of the targets
SHARE = 0.9


class Of(nn.Module):
    """A function of the inputs and of some modules."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


class Last(nn.Module):
    """The last output of a recurrent layer through a linear one."""

    def __init__(self, core, width):
        super().__init__()
        self.core, self.out = core, nn.Linear(width, 1)

    def forward(self, x):
        return self.out(self.core(x)[0][:, -1])


class Tied(nn.Module):
    """One matrix in two layers, the second time transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(3, 4), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(torch.tanh(torch.tanh(self.first(x)) @ self.first.weight))


def dense(activation, *, width=5, bias=True):
    return lambda: nn.Sequential(nn.Linear(3, width, bias=bias), activation(), nn.Linear(width, 1))


def image(*parts):
    return lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), *(part() for part in parts), nn.Flatten(),
                                 nn.LazyLinear(1))  # fmt: skip


def series(*parts):
    return lambda: nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), *(part() for part in parts), nn.Flatten(),
                                 nn.LazyLinear(1))  # fmt: skip


def normed(norm):
    return lambda: nn.Sequential(nn.Linear(3, 6), norm(), nn.Tanh(), nn.Linear(6, 1))


def frozen(make, count):
    def made():
        model = make()
        for parameter in list(model.parameters())[:count]:
            parameter.requires_grad_(False)
        return model

    return made


def scaled(make, factor):
    def made():
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= factor
        return model

    return made


def statistics():
    norm = nn.BatchNorm1d(6)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    return norm


def copied_units():
    model = dense(nn.Tanh)()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
    return model


def dead_units():
    model = dense(nn.ReLU)()
    with torch.no_grad():
        model[0].bias[:2] = -50.0
    return model


def attend(causal):
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    mask = torch.full((4, 4), -torch.inf).triu(1) if causal else None
    return Of(lambda x, a, out: out(a(x, x, x, attn_mask=mask, need_weights=False)[0].mean(1)), layer, nn.Linear(4, 1))


MAPS = {
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "softplus 100": lambda: nn.Softplus(100),
    "gelu": nn.GELU, "gelu tanh": lambda: nn.GELU("tanh"), "silu": nn.SiLU, "mish": nn.Mish, "elu": nn.ELU,
    "selu": nn.SELU, "celu": lambda: nn.CELU(0.7), "relu": nn.ReLU, "leaky relu": nn.LeakyReLU, "prelu": nn.PReLU,
    "relu6": nn.ReLU6, "hardtanh": nn.Hardtanh, "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish,
    "softshrink": lambda: nn.Softshrink(0.2), "hardshrink": lambda: nn.Hardshrink(0.2), "tanhshrink": nn.Tanhshrink,
    "threshold": lambda: nn.Threshold(0.1, 0.0), "softsign": nn.Softsign, "logsigmoid": nn.LogSigmoid,
    "sin": lambda: Of(torch.sin), "cosh": lambda: Of(torch.cosh), "sinh": lambda: Of(torch.sinh),
    "exp": lambda: Of(torch.exp), "exp2": lambda: Of(torch.exp2), "softmax": lambda: nn.Softmax(-1),
    "log softmax": lambda: nn.LogSoftmax(-1), "square": lambda: Of(torch.square), "glu": lambda: Of(
        lambda x: F.glu(torch.cat([x, x.flip(-1)], -1))), "normalize": lambda: Of(lambda x: F.normalize(x, dim=-1)),
}  # fmt: skip
VECTORS = {
    **{name: dense(activation) for name, activation in MAPS.items()},
    "linear": lambda: nn.Linear(3, 1),
    "two outputs": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
    "deep linear": lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)),
    "four layers": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4),
                                         nn.Tanh(), nn.Linear(4, 1)),
    "layer norm": normed(lambda: nn.LayerNorm(6)), "layer norm, no eps": normed(lambda: nn.LayerNorm(6, eps=0.0)),
    "group norm": normed(lambda: nn.GroupNorm(2, 6)), "batch norm": normed(statistics),
    "batch norm, initial": normed(lambda: nn.BatchNorm1d(6)), "rms norm": normed(lambda: nn.RMSNorm(6, eps=1e-6)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.Tanh(),
                                         nn.Linear(5, 1)),
    "tied": Tied, "frozen first layer": frozen(dense(nn.Tanh), 2), "frozen weight": frozen(dense(nn.Tanh), 1),
    "saturated": scaled(dense(nn.Tanh), 30.0), "saturated relu": scaled(dense(nn.ReLU), 30.0),
    "tiny weights": scaled(dense(nn.Tanh), 1e-5), "copied units": copied_units, "dead units": dead_units,
    "residual": lambda: Of(lambda x, f, out: out(x + torch.tanh(f(x))), nn.Linear(3, 3), nn.Linear(3, 1)),
    "bilinear": lambda: Of(lambda x, b: b(x, torch.tanh(x)), nn.Bilinear(3, 3, 1)),
    "two biases": lambda: Of(lambda x, f, g, out: out(torch.tanh(f(x) + g(x))), nn.Linear(3, 4), nn.Linear(3, 4),
                             nn.Linear(4, 1)),
    "low rank": lambda: Of(lambda x, f, g, out: out(torch.tanh(x @ (f.weight.T @ g.weight.T))), nn.Linear(3, 2),
                           nn.Linear(2, 4), nn.Linear(4, 1)),
}  # fmt: skip
IMAGES = {
    "convolution": image(), "max pooling": image(lambda: nn.MaxPool2d(2)),
    "average pooling": image(lambda: nn.AvgPool2d(2)),
    "adaptive pooling": image(lambda: nn.AdaptiveAvgPool2d(2)),
    "strided": image(lambda: nn.Conv2d(2, 2, 2, 2), nn.Tanh),
    "groups": image(lambda: nn.Conv2d(2, 2, 3, groups=2), nn.GELU),
    "transposed": image(lambda: nn.ConvTranspose2d(2, 1, 2, 2), nn.Tanh),
    "batch norm 2d": image(lambda: nn.BatchNorm2d(2), nn.SiLU), "instance norm": image(lambda: nn.InstanceNorm2d(2)),
    **{f"{mode} padding": image(lambda mode=mode: nn.Conv2d(2, 1, 3, padding=1, padding_mode=mode), nn.Tanh)
       for mode in ("reflect", "replicate", "circular")},
    "upsampling": image(lambda: nn.Upsample(scale_factor=2), lambda: nn.Conv2d(2, 1, 3), nn.Tanh),
    "local response": image(lambda: nn.LocalResponseNorm(2)), "pixel shuffle": image(
        lambda: nn.Conv2d(2, 4, 1), lambda: nn.PixelShuffle(2), nn.Tanh),
}  # fmt: skip
SEQUENCES = {
    "rnn": lambda: Last(nn.RNN(4, 3, batch_first=True), 3), "gru": lambda: Last(nn.GRU(4, 3, batch_first=True), 3),
    "lstm": lambda: Last(nn.LSTM(4, 3, batch_first=True), 3), "attention": lambda: attend(False),
    "causal attention": lambda: attend(True),
    "transformer": lambda: Of(lambda x, t, out: out(t(x).mean(1)), nn.TransformerEncoderLayer(
        4, 2, 8, batch_first=True, dropout=0.0, activation="gelu"), nn.Linear(4, 1)),
    "pooled tokens": lambda: Of(lambda x, f, out: out(torch.logsumexp(f(x), 1)), nn.Linear(4, 3), nn.Linear(3, 1)),
}  # fmt: skip
SERIES = {
    "convolution 1d": series(nn.Tanh),
    "dilated 1d": series(nn.Tanh, lambda: nn.Conv1d(3, 2, 2, dilation=2), nn.Tanh),
}
FAMILIES = [(VECTORS, (3,)), (IMAGES, (2, 6, 6)), (SEQUENCES, (4, 4)), (SERIES, (2, 7))]


def cases(words):
    for family, shape in FAMILIES:
        for name, make in family.items():
            if words and not any(word in name for word in words):
                continue
            for kind in ("few", "many", "close"):
                torch.manual_seed(0)
                model = make().eval()
                few, many = (5, 90) if shape != (2, 6, 6) else (4, 140)
                X = torch.randn(many if kind == "many" else few, *shape)
                if kind == "close":  # two inputs differ by little
                    X[1] = X[0] + 1e-5 * torch.randn(shape)
                with torch.no_grad():
                    columns = model(X).shape[1]
                yield f"{name}, {kind}", model, X, torch.randn(len(X), columns, dtype=torch.float64)


def truth(model, X, Y):
    """Return whether vec(Y) is in the column space of autograd's Jacobian in float64; None unless its rank is full."""
    model, X = model.double(), X.double()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    part = {name: model.get_parameter(name).detach() for name in names}
    rows = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (X,)).T.reshape(-1))(part)
    J = torch.cat([rows[name].reshape(Y.numel(), -1) for name in names], 1).detach().numpy()
    y = Y.T.reshape(-1).numpy()
    U, s, _ = np.linalg.svd(J, full_matrices=False)
    if s[-1] <= CLEAR * s[0]:
        return None
    return len(J) <= J.shape[1] or bool(np.linalg.norm(y - U @ (U.T @ y)) <= CLEAR * np.linalg.norm(y))


def main(words):
    counts, wrong, left, began = Counter(), [], [], time.perf_counter()
    for name, model, X, Y in cases(words):
        result = av.check_alignment(model, X, Y, loss="squared", budget_seconds=20.0)
        decided = result.subject.value in ("NETWORK", "DATA") and result.rigor.value == "PROOF"
        counts[decided] += 1
        if not decided:
            left.append(
                f"{name}: {next((line for line in result.evidence if 'about the network' in line), result.reason)}"
            )
            print("undecided", left[-1], flush=True)
            continue
        expected = truth(model, X, Y)
        if expected is not None and expected != (result.verdict.value == "HOLDS"):
            wrong.append(name)
            print(f"WRONG {name}: {result.verdict.value}, {result.reason}", flush=True)
    total = sum(counts.values())
    share = counts[True] / total
    print(f"{counts[True]} of {total} cases decided about the network ({share:.0%}), {len(wrong)} wrong, "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    return bool(wrong) or share < SHARE


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main(sys.argv[1:]))
