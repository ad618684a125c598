"""Gram matrices and alignment checks of networks at the widths that people train, compared with what a script does.

    python benchmarks/engine.py [--quick] [--threads 2] [entry ...]

The other ways are written here: ``script`` records the inputs and outputs of the layers by hooks, differentiates by the
outputs, and takes for each layer the cheaper of J_l J_l^T and sum_ts (A_t A_s^T) o (B_t B_s^T); ``jacobian`` is
``vmap(jacrev)`` and J J^T. Every measurement runs in a process of its own, in float64, after a call with two samples
that loads what is needed. The rate of the processor is that of a product of square matrices in the same process. The
floor of a Gram matrix is the number of operations of its passes and of the cheapest exact formula for each layer
(``alignver.jacobians.gram.plan``), divided by this rate.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

import alignver as av
from alignver.experiments.networks import lenet
from alignver.jacobians.gram import plan

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Block(nn.Module):
    """A residual block with batch norm and softplus."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.short = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside), nn.Identity()
        if stride > 1 or inside != outside:
            self.short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        return F.softplus(self.norm2(self.conv2(F.softplus(self.norm1(self.conv1(x))))) + self.short(x))


def resnet18(width):
    layers, inside = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.Softplus()], width
    for stage in range(4):
        for k in range(2):
            layers.append(Block(inside, width << stage, 2 if stage and not k else 1))
            inside = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


def encoder(width, heads, depth):
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


class Vit(nn.Module):
    """A transformer on patches."""

    def __init__(self, width, depth, patches, entries):
        super().__init__()
        self.embed, self.place = nn.Linear(entries, width), nn.Parameter(torch.randn(patches, width) * 0.02)
        self.encoder, self.out = encoder(width, 3, depth), nn.Linear(width, 10)

    def forward(self, x):
        return self.out(self.encoder(self.embed(x) + self.place).mean(1))


class Gpt(nn.Module):
    """A causal transformer on tokens; its output is that of the last token."""

    def __init__(self):
        super().__init__()
        self.embed, self.encoder, self.out = nn.Embedding(500, 128), encoder(128, 4, 4), nn.Linear(128, 2)

    def forward(self, x):
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=self.out.weight.dtype), 1)
        return self.out(self.encoder(self.embed(x), mask=mask)[:, -1])


class Lstm(nn.Module):
    """Two LSTM layers; the output is that of the last step."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(32, 128, 2, batch_first=True), nn.Linear(128, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class UnrolledLstm(Lstm):
    """The same function step by step: vmap does not support the fused layers."""

    def forward(self, x):
        for k in range(self.lstm.num_layers):
            w, u, b, c = (
                getattr(self.lstm, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            gates, hidden = F.linear(x, w, b).unbind(1), []
            h = cell = x.new_zeros(len(x), self.lstm.hidden_size)
            for step in gates:
                i, f, g, o = (step + F.linear(h, u, c)).chunk(4, -1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(cell)
                hidden.append(h)
            x = torch.stack(hidden, 1)
        return self.out(x[:, -1])


def mlp(*widths):
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.Softplus())]
    return nn.Sequential(*layers[:-1])


MODELS = {
    "resnet18": (lambda: resnet18(64), lambda n: torch.randn(n, 3, 32, 32)),
    "resnet18/4": (lambda: resnet18(16), lambda n: torch.randn(n, 3, 32, 32)),
    "vit": (lambda: Vit(192, 6, 64, 48), lambda n: torch.randn(n, 64, 48)),
    "vit-17": (lambda: Vit(192, 6, 17, 48), lambda n: torch.randn(n, 17, 48)),
    "gpt": (Gpt, lambda n: torch.randint(0, 500, (n, 32))),
    "lstm": (Lstm, lambda n: torch.randn(n, 50, 32)),
    "lenet": (lenet, lambda n: torch.randn(n, 1, 16, 16)),
    "mlp": (lambda: mlp(784, 256, 256, 10), lambda n: torch.randn(n, 784)),
    "mlp-narrow": (lambda: mlp(784, 3, 10), lambda n: torch.randn(n, 784)),
    "mlp-wide": (lambda: mlp(784, 1000, 1000, 10), lambda n: torch.randn(n, 784)),
}


def build(name, n):
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, x = make().double().eval(), inputs(n)
    return model, x.double() if x.is_floating_point() else x


# The other ways to a Gram matrix.


def jacobian_rows(model, x):
    """Return J, output-major, by vmap(jacrev) in chunks of samples."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    if isinstance(model, Lstm):
        model = UnrolledLstm().double()

    def single(params, sample):
        return functional_call(model, params, (sample.unsqueeze(0),)).squeeze(0)

    parts = []
    for chunk in x.split(8):
        blocks = vmap(jacrev(single), (None, 0))(params, chunk)
        parts.append(torch.cat([block.flatten(2) for block in blocks.values()], 2))
    return torch.cat(parts).transpose(0, 1).flatten(0, 1)


def gram_by_jacobian(model, x):
    J = jacobian_rows(model, x)
    return J @ J.T


def gram_by_script(model, x):
    """Layer inputs and output gradients by hooks; for each layer the cheaper of two formulas."""
    inputs, outputs = {}, {}

    def record(layer, args, out):
        inputs[layer], outputs[layer] = args[0].detach(), out

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    out = model(x)
    for hook in hooks:
        hook.remove()
    (n, m), N = out.shape, out.numel()
    used = [layer for layer in layers if layer in outputs]
    by_output = [
        torch.autograd.grad(out[:, j].sum(), [outputs[layer] for layer in used], retain_graph=True) for j in range(m)
    ]
    M = torch.zeros(N, N, dtype=out.dtype)
    for k, layer in enumerate(used):
        B = torch.stack([gradients[k] for gradients in by_output])
        B = B.flatten(3) if B.ndim > 4 else B  # (m, n, b[, T])
        if isinstance(layer, nn.BatchNorm2d):
            A = inputs[layer].flatten(2)
            z = (A - layer.running_mean[:, None]) / (layer.running_var[:, None] + layer.eps).sqrt()
            for J in ((B * z).sum(3).flatten(0, 1), B.sum(3).flatten(0, 1)):
                M += J @ J.T
            continue
        if isinstance(layer, nn.Linear):
            A, B = inputs[layer].unsqueeze(2), B.reshape(m, n, -1, 1)
        else:
            A = F.unfold(inputs[layer], layer.kernel_size, padding=layer.padding, stride=layer.stride)
        (a, T), b = A.shape[1:], B.shape[2]
        if T * T * (a * n * n + b * N * N) < N * T * a * b + N * N * a * b:
            K = torch.einsum("iat,kas->itks", A, A)
            for i in range(n):
                G = torch.einsum("jbt,lkbs->jtlks", B[:, i], B)
                M.view(m, n, m, n)[:, i] += torch.einsum("jtlks,tks->jlk", G, K[i])
        else:
            J = torch.matmul(B, A.transpose(1, 2)).flatten(2).flatten(0, 1)
            M += J @ J.T
        if layer.bias is not None:
            J = B.sum(3).flatten(0, 1)
            M += J @ J.T
    return M


GRAMS = {"alignver": av.gram, "script": gram_by_script, "jacobian": gram_by_jacobian}


# Measurements, each in its own process.


def rate():
    """Return the operations per second of a product of square matrices, the best of five."""
    A, best = torch.randn(2000, 2000, dtype=torch.float64), 0.0
    A @ A
    for _ in range(5):
        start = time.perf_counter()
        A @ A
        best = max(best, 1.6e10 / (time.perf_counter() - start))
    return best


def timed(call):
    """Return the result of a call, and the median of the times of up to five calls that take two seconds together."""
    seconds = []
    while len(seconds) < 5 and sum(seconds) < 2.0:
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def measure_gram(name, n, way, file):
    """Time a Gram matrix; a number as the way is the memory that alignver may use, in bytes."""
    ask = GRAMS[way] if way in GRAMS else functools.partial(av.gram, memory=int(way))
    ask(*build(name, 2))
    model, x = build(name, n)
    M, seconds = timed(lambda: ask(model, x))
    np.save(file, M.detach().numpy())
    return {"seconds": seconds, "floor": None if way in ("script", "jacobian") else plan(model, x).floor}


def labels(n):
    return torch.arange(n) * 7 % 10


def measure_check(name, n, way, file):
    """Time a check with loss cross_entropy; the ways are its options and the data."""
    model, x = build(name, n)
    if "deficient" in way:  # the outputs of a sample add up to a constant
        model = nn.Sequential(model, nn.LogSoftmax(1))
    if "near" in way:
        x[3] = x[7] + 1e-9 * torch.randn(x[3].shape, dtype=torch.float64)
    options = {"budget_seconds": 0.0, "certify": "uncertified" not in way}  # the computed matrix
    av.check_alignment(model, x[:2], labels(2), loss="cross_entropy", **options)
    result, seconds = timed(lambda: av.check_alignment(model, x, labels(n), loss="cross_entropy", **options))
    return {"seconds": seconds, "answer": f"{result.verdict} {result.rigor}"}


def measure_floor(name, n, way, file):
    """Time what a check cannot avoid: J and the operations of its QR, or the Gram matrix and one factorization."""
    model, x = build(name, n)
    if way == "J and QR":
        J, seconds = timed(lambda: jacobian_rows(model, x))
        long, short = max(J.shape), min(J.shape)
        return {"seconds": seconds + (2 * long * short**2 - 2 * short**3 / 3) / rate()}
    if way == "Gram and eigenvalues":
        return {"seconds": timed(lambda: torch.linalg.eigvalsh(av.gram(model, x)))[1]}
    return {"seconds": timed(lambda: torch.linalg.cholesky(av.gram(model, x)))[1]}


def measure_rank(name, n, way, file):
    J = np.random.default_rng(0).standard_normal((2000, 8000))
    ask = np.linalg.matrix_rank if way == "matrix_rank" else av.check_rank
    ask(J[:300])
    result, seconds = timed(lambda: ask(J))
    if way == "matrix_rank":
        return {"seconds": seconds}
    return {"seconds": seconds, "answer": f"{result.verdict} {result.rigor}"}


MEASURES = {f.__name__.removeprefix("measure_"): f for f in (measure_gram, measure_check, measure_floor, measure_rank)}


def measured(kind, name, n, way, file, threads):
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, name, str(n), way, str(file), "--threads", str(threads)]
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{kind} {name} {n} {way}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# The table.

GRAM_ENTRIES = [  # model, samples, other ways, times faster than the fastest of them
    ("resnet18", 8, ("script",), 1.3),
    ("resnet18", 32, ("script",), 1.3),
    ("resnet18/4", 64, ("script", "jacobian"), 1.3),
    ("vit", 32, ("jacobian",), 2.5),
    ("gpt", 64, ("jacobian",), 2.0),
    ("lstm", 64, ("jacobian",), 3.0),
    ("mlp", 64, ("script", "jacobian"), 1.0),
    ("mlp", 256, ("script",), 1.0),
]
FLOOR_ENTRIES = [("resnet18", 100, 2.5, 6.0)]  # model, samples, times the floor, GB
OWN = 0.5  # GB of the process: libraries, model, data
CHECK_ENTRIES = [  # model, samples, way, what it is compared with, at most this many times as long
    ("mlp", 64, "uncertified", ("check", "proof"), 1.1),
    ("mlp", 256, "uncertified", ("check", "proof"), 1.1),
    ("lenet", 200, "uncertified", ("check", "proof"), 1.1),
    ("mlp", 64, "near-equal samples", ("floor", "J and QR"), 1.5),
    ("mlp-narrow", 600, "d < N", ("floor", "J and QR"), 1.5),
    ("vit-17", 100, "rank deficient", None, 60.0),
    ("mlp-wide", 1000, "proof", ("floor", "Gram and Cholesky"), 1.7),
]
QUICK = {("resnet18/4", 64), ("lstm", 64), ("gpt", 64), ("mlp", 64)}


def verdict(text, met):
    print(f"  {'reached' if met else 'MISSED '}  {text}", flush=True)


def show(name, n, way, result, more=""):
    answer = f"  {result['answer']}" if result.get("answer") else ""
    print(f"  {way:<22}{result['seconds']:>9.3f} s {result['peak'] / 1e9:>6.1f} GB{answer}{more}", flush=True)


def gram_entry(name, n, others, least, threads, folder):
    print(f"\nGram matrix, {name}, n = {n}")
    results, matrices = {}, {}
    for way in ("alignver", *others):
        file = folder / f"{way}.npy"
        results[way] = measured("gram", name, n, way, file, threads)
        matrices[way] = np.load(file)
        error = np.linalg.norm(matrices[way] - matrices["alignver"]) / np.linalg.norm(matrices["alignver"])
        show(name, n, way, results[way], f"  differs by {error:.0e}" if way != "alignver" else "")
        if error > 1e-10:
            verdict(f"{way} and alignver agree to 1e-10", False)
    ours, best = results["alignver"], min(others, key=lambda way: results[way]["seconds"])
    print(f"  {ours['seconds'] * ours['rate'] / ours['floor']:.2f} times its floor of {ours['floor']:.1e} operations")
    ratio = results[best]["seconds"] / ours["seconds"]
    verdict(f"{ratio:.2f} times faster than {best}, the fastest other way; at least {least}", ratio >= least)


def floor_entry(name, n, most, memory, threads, folder):
    print(f"\nGram matrix, {name}, n = {n}")
    given = str(int((memory - OWN) * 1e9))
    ours = measured("gram", name, n, given, folder / "M.npy", threads)
    show(name, n, "alignver", ours, f"  memory={given}")
    ratio = ours["seconds"] * ours["rate"] / ours["floor"]
    verdict(f"{ratio:.2f} times its floor of {ours['floor']:.1e} operations; at most {most}", ratio <= most)
    verdict(f"{ours['peak'] / 1e9:.1f} GB; at most {memory}", ours["peak"] <= memory * 1e9)


def check_entry(name, n, way, compared, most, threads, folder):
    print(f"\ncheck_alignment, {name}, n = {n}, {way}")
    ours = measured("check", name, n, way, folder / "M.npy", threads)
    show(name, n, "alignver", ours)
    if compared is None:
        verdict(f"{ours['seconds']:.1f} s; at most {most}", ours["seconds"] <= most)
        return
    kind, other = compared
    peer = measured(kind, name, n, other, folder / "M.npy", threads)
    show(name, n, other, peer)
    ratio = ours["seconds"] / peer["seconds"]
    verdict(f"{ratio:.2f} times as long as {other}; at most {most}", ratio <= most)


def rank_entry(threads, folder):
    print("\ncheck_rank, 2000 x 8000")
    ours, peer = (measured("rank", "-", 0, way, folder / "M.npy", threads) for way in ("alignver", "matrix_rank"))
    show("", 0, "alignver", ours)
    show("", 0, "matrix_rank", peer)
    ratio = peer["seconds"] / ours["seconds"]
    verdict(f"{ratio:.1f} times faster than matrix_rank; at least 10", ratio >= 10)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="*", metavar="entry", help=f"models: {', '.join(MODELS)}; or rank")
    parser.add_argument("--quick", action="store_true", help="only the entries that take seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", nargs=5, metavar=("KIND", "MODEL", "N", "WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.measure:
        kind, name, n, way, file = options.measure
        speed = rate()
        result = MEASURES[kind](name, int(n), way, file)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**result, "peak": peak, "rate": speed}))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, product of matrices {rate() / 1e9:.0f} Gflop/s")

    def wanted(name, n):
        return (name in options.entries) if options.entries else (not options.quick or (name, n) in QUICK)

    with tempfile.TemporaryDirectory() as folder:
        rest = options.threads, Path(folder)
        for entries, run in ((GRAM_ENTRIES, gram_entry), (FLOOR_ENTRIES, floor_entry), (CHECK_ENTRIES, check_entry)):
            for entry in entries:
                if wanted(*entry[:2]):
                    run(*entry, *rest)
        if wanted("rank", 0):
            rank_entry(*rest)


if __name__ == "__main__":
    main()
