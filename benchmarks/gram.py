"""av.gram compared with other methods for a full Gram matrix (empirical NTK): times, ratios and relative errors.

    python benchmarks/gram.py [--rounds 5] [--threads 2] [case ...]

The other methods are nngeometry and torchjd from PyPI (the extra ``bench``; ``pip install --no-deps nngeometry
torchjd`` omits torchvision), and the contraction of Jacobians from torch's tutorial on neural tangent kernels,
implemented below. The methods take turns in one process. A turn consists of as many calls as fit into a fifth of a
second, at least one, and is represented by its mean. The ratio is computed from medians over the rounds. Every result
is compared with J J^T from a float64 loop of ``autograd.grad``. A result with a relative error above 1e-6 (float64) or
1e-3 (float32) is marked as wrong, and no ratio is computed from it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import time
import warnings

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from alignver.experiments.networks import lenet
from alignver.jacobians.gram import gram

WRONG = {torch.float64: 1e-6, torch.float32: 1e-3}
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}
TURN = 0.2


class Tied(nn.Module):
    """An embedding table that is also the weight of the output layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.mix = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.mix(self.table(x).mean(1)))


class TiedLinear(nn.Module):
    """One weight in two linear layers, each with its own bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 10)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Reused(nn.Module):
    """One linear layer that is applied three times."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(128, 128), nn.Linear(128, 10)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return self.out(x)


class Transformer(nn.Module):
    """Two encoder layers over 16 positions of 32 features."""

    def __init__(self):
        super().__init__()
        layers = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(32, 10)

    def forward(self, x):
        return self.out(self.layers(x).mean(1))


class Residual(nn.Module):
    """A pre-activation block."""

    def __init__(self, inside, outside, stride, norm):
        super().__init__()
        self.norm1, self.norm2 = norm(inside), norm(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False) if stride > 1 or inside != outside else None

    def forward(self, x):
        z = torch.relu(self.norm1(x))
        shortcut = x if self.short is None else self.short(z)
        return self.conv2(torch.relu(self.norm2(self.conv1(z)))) + shortcut


def resnet(norm, width=8):
    layers, inside = [nn.Conv2d(3, width, 3, 1, 1, bias=False)], width
    for stage in range(4):
        for block in range(2):
            layers.append(Residual(inside, width << stage, 2 if stage and not block else 1, norm))
            inside = width << stage
    head = [norm(inside), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10)]
    return nn.Sequential(*layers, *head)


def mlp():
    return nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))


def group_norm(channels):
    return nn.GroupNorm(4, channels)


CASES = {
    "mlp float64": (mlp, lambda: torch.randn(64, 784), torch.float64),
    "mlp float32": (mlp, lambda: torch.randn(64, 784), torch.float32),
    "lenet": (lenet, lambda: torch.randn(128, 1, 16, 16), torch.float64),
    "tied table": (Tied, lambda: torch.randint(64, (16, 8)), torch.float64),
    "tied linear": (TiedLinear, lambda: torch.randn(64, 128), torch.float64),
    "reused": (Reused, lambda: torch.randn(64, 128), torch.float64),
    "transformer": (Transformer, lambda: torch.randn(32, 16, 32), torch.float64),
    "resnet": (lambda: resnet(group_norm), lambda: torch.randn(16, 3, 16, 16), torch.float64),
    "resnet batch norm": (lambda: resnet(nn.BatchNorm2d), lambda: torch.randn(16, 3, 16, 16), torch.float64),
}


def reference(model, x):
    """Return J J^T, output-major, from a loop of autograd.grad in float64."""
    wide = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    parameters = list(wide.parameters())
    J = torch.empty((x.shape[0] * wide(x[:1]).shape[1], sum(p.numel() for p in parameters)), dtype=torch.float64)
    for i in range(len(x)):
        out = wide(x[i : i + 1])[0]
        for j in range(len(out)):
            gradients = torch.autograd.grad(out[j], parameters, retain_graph=True, materialize_grads=True)
            J[j * len(x) + i] = torch.cat([g.reshape(-1) for g in gradients])
    return J @ J.T


def alignver(model, x):
    return gram(model, x, dtype="same")


def tutorial(model, x):
    """Return the Jacobian contraction of the tutorial 'Neural Tangent Kernels', compute='full'."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def single(params, sample):
        return functional_call(model, params, (sample.unsqueeze(0),)).squeeze(0)

    jac1 = [j.flatten(2) for j in vmap(jacrev(single), (None, 0))(params, x).values()]
    jac2 = [j.flatten(2) for j in vmap(jacrev(single), (None, 0))(params, x).values()]
    result = torch.stack([torch.einsum("Naf,Mbf->NMab", j1, j2) for j1, j2 in zip(jac1, jac2)]).sum(0)
    n, _, m, _ = result.shape
    return result.permute(2, 0, 3, 1).reshape(n * m, n * m)


def nngeometry(model, x):
    from nngeometry import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    G = GramMatrix(model, DataLoader(TensorDataset(x.clone()), batch_size=len(x))).to_torch()
    return G.reshape(G.shape[0] * G.shape[1], -1)


def torchjd(model, x):
    from torchjd.autogram import Engine

    engine = Engine(model, batch_dim=0)
    out = model(x)
    n, m = out.shape
    G = engine.compute_gramian(out)
    return G.reshape(n, m, n, m).permute(1, 0, 3, 2).reshape(n * m, n * m).detach()


CONTENDERS = {f.__name__: f for f in (alignver, tutorial, nngeometry, torchjd)}


def present(name):
    return name in ("alignver", "tutorial") or importlib.util.find_spec(name) is not None


def turn(contender, model, x):
    """Return the mean time of the calls that fit into TURN seconds, at least one."""
    calls, began = 0, time.perf_counter()
    while True:
        contender(model, x)
        calls, spent = calls + 1, time.perf_counter() - began
        if spent * (calls + 1) / calls > TURN:
            return spent / calls


def contend(case, rounds):
    build, inputs, dtype = CASES[case]
    torch.manual_seed(0)
    model, x = build().eval().to(dtype), inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    wanted = reference(model, x)
    print(
        f"\n{case}: {str(dtype)[6:]}, n = {len(x)}, N = {len(wanted)}, d = {sum(p.numel() for p in model.parameters())}"
    )
    errors, times = {}, {}
    for name, f in CONTENDERS.items():
        if not present(name):
            print(f"  {name:<12} not installed")
            continue
        try:  # also serves as the warm-up
            found = f(copy.deepcopy(model), x)
            errors[name] = float((found.double() - wanted).norm() / wanted.norm())
            times[name] = []
        except Exception as error:
            print(f"  {name:<12} refuses: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:90]}")
    for _ in range(rounds):
        for name, each in times.items():
            each.append(turn(CONTENDERS[name], copy.deepcopy(model), x))
    medians = {name: statistics.median(each) for name, each in times.items()}
    right = [name for name in medians if name != "alignver" and errors[name] <= WRONG[dtype]]
    best = min(right, key=medians.__getitem__, default=None)
    for name, each in times.items():
        mark = "" if errors[name] <= WRONG[dtype] else "  WRONG"
        ratio = medians[name] / medians["alignver"]
        print(
            f"  {name:<12}{medians[name] * 1e3:>10.1f} ms  ({min(each) * 1e3:.1f} to {max(each) * 1e3:.1f})"
            f"{ratio:>9.1f} x  error {errors[name]:.1e}{mark}"
        )
    lines = [
        (f"relative error {errors['alignver']:.1e}, at most {LIMIT[dtype]:.0e}", errors["alignver"] <= LIMIT[dtype])
    ]
    if best:
        least = {"lenet": 5.0}.get(case, 1.0)
        ratio = medians[best] / medians["alignver"]
        lines.append(
            (f"{ratio:.1f} times faster than {best}, the fastest correct peer; at least {least:.0f}", ratio >= least)
        )
    if case.startswith("mlp") and "tutorial" in medians:
        ratio = medians["tutorial"] / medians["alignver"]
        lines.append((f"{ratio:.0f} times faster than the tutorial; at least 200", ratio >= 200))
    for line, reached in lines:
        print(f"  {'reached' if reached else 'MISSED '}  {line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(f"Gram matrices, torch {torch.__version__}, {options.threads} threads, median of {options.rounds}")
    for case in options.cases or CASES:
        contend(case, options.rounds)


if __name__ == "__main__":
    main()
