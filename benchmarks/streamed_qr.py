"""The streamed QR of a ResNet's Jacobian: time, peak memory and its bound, and accuracy compared with the Gram matrix.

    python benchmarks/streamed_qr.py [samples] [width] [side] [block megabytes]

The model is a random pre-activation ResNet-18 with ten outputs, on random grey images of size side x side. N is 10
times the number of samples, and for width = 64, d is 11.2 million. The default is small; ``100 64 16 512`` gives N =
1000 and d = 11.2 million and takes 40 minutes on one shared core (the QR alone takes (10/3) d N^2 = 3.7e13 operations;
the Jacobian would need 89 GB). Each measurement runs in a separate process. The bound on memory is 4 N^2 numbers and
one block. It is compared with the peak above the memory for the model, its copies, and a pass over some samples.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

OUTPUTS = 10
CHUNK = 2  # number of samples in one pass


class Block(nn.Module):
    """A pre-activation residual block."""

    def __init__(self, planes_in, planes, stride):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(planes_in), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or planes_in != planes:
            self.shortcut = nn.Conv2d(planes_in, planes, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.norm2(self.conv1(out)))) + skip


def resnet18(width):
    layers, planes_in = [nn.Conv2d(1, width, 3, 1, 1, bias=False)], width
    for stage in range(4):
        for k in range(2):
            layers.append(Block(planes_in, width << stage, 2 if stage and not k else 1))
            planes_in = width << stage
    head = [nn.BatchNorm2d(planes_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(planes_in, OUTPUTS)]
    return nn.Sequential(*layers, *head)


def problem(samples, width, side):
    torch.manual_seed(0)
    model = resnet18(width)
    model(torch.randn(16, 1, side, side))  # gives nontrivial running statistics
    return model.eval(), torch.randn(samples, 1, side, side)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pass_of_the_model(model, x):
    """Differentiate a few samples in both ways, by one layer and by all norms, to include the passes in the peak."""
    from alignver.jacobians.columns import JacobianColumns

    convolutions = [p for p in model.parameters() if p.ndim > 1]
    next(iter(JacobianColumns(model, x[:CHUNK], block_bytes=1, chunk_size=CHUNK)))
    for parameter in convolutions:
        parameter.requires_grad_(False)
    list(JacobianColumns(model, x[:CHUNK], chunk_size=CHUNK))
    for parameter in convolutions:
        parameter.requires_grad_(True)


def stream(samples, width, side, block):
    """Print the time and memory of the streamed QR in this process."""
    from alignver.jacobians.columns import JacobianColumns
    from alignver.linalg.qr_reduction import streamed_r

    model, x = problem(samples, width, side)
    streamed_r([np.ones((3, 2))], 2)  # loads the library
    pass_of_the_model(model, x)
    began = time.perf_counter()
    columns = JacobianColumns(model, x, block_bytes=block, chunk_size=CHUNK)
    rest, seconds = peak(), {"blocks": 0.0, "qr": 0.0}
    seconds["probes"] = time.perf_counter() - began

    def timed():
        mark = time.perf_counter()
        for rows in columns.row_blocks():
            seconds["blocks"] += time.perf_counter() - mark
            began_qr = time.perf_counter()
            yield rows
            mark = time.perf_counter()
            seconds["qr"] += mark - began_qr

    r = streamed_r(timed(), columns.shape[0])
    found = {
        "N": columns.shape[0],
        "d": columns.shape[1],
        "seconds": time.perf_counter() - began,
        **seconds,
        "above": peak() - rest,
        "rest": rest,
        "passes": columns.samples_run / columns.n,
        "count": columns.blocks_made,
        "engine": columns.engine,
        "smallest": float(np.linalg.svd(r, compute_uv=False)[-1]),
    }
    print(json.dumps(found))


def dense(samples, width, side, block):
    """Print the same for the dense Jacobian and one QR."""
    from alignver.jacobians.jacobian import jacobian

    model, x = problem(samples, width, side)
    jacobian(model, x[:1])
    rest = peak()
    began = time.perf_counter()
    J = jacobian(model, x)
    r = np.linalg.qr(J.numpy().T, mode="r")
    seconds = time.perf_counter() - began
    smallest = float(np.linalg.svd(r, compute_uv=False)[-1])
    print(json.dumps({"seconds": seconds, "above": peak() - rest, "smallest": smallest}))


def accuracy():
    """Compare a known smallest singular value of a Jacobian with those of the streamed R and of the Gram matrix."""
    from alignver.jacobians.jacobian_form import streamed_qr

    rng = np.random.default_rng(0)
    print(f"{'smallest singular value':<26}{'streamed QR':>14}{'Gram matrix':>14}   (relative error)")
    for exponent in (-4, -6, -8, -10, -12):
        u, v = (np.linalg.qr(rng.standard_normal((size, 60)))[0] for size in (60, 4000))
        X = u * np.logspace(0, exponent, 60) @ v.T
        model = nn.Linear(4000, 1, bias=False).double()  # its Jacobian is X
        from_r = torch.linalg.svdvals(streamed_qr(model, X, block_bytes=1 << 17).r)[-1]
        from_gram = torch.linalg.eigvalsh(torch.from_numpy(X @ X.T))[0].clamp(min=0.0).sqrt()
        errors = [abs(float(value) / 10.0**exponent - 1) for value in (from_r, from_gram)]
        print(f"1e{exponent:<24}{errors[0]:>14.1e}{errors[1]:>14.1e}")


def run(name, *sizes):
    command = [sys.executable, __file__, *(str(size) for size in sizes), name]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def main():
    given = [int(argument) for argument in sys.argv[1:]]
    samples, width, side, megabytes = (given + [10, 8, 16, 16][len(given) :])[:4]
    block = megabytes << 20
    found = run("stream", samples, width, side, block)
    bound = 32 * found["N"] ** 2 + max(block, 8 * found["N"] ** 2)
    print(f"streamed QR of a pre-activation ResNet-18's Jacobian, N = {found['N']}, d = {found['d']}, float64")
    print(
        f"  {found['seconds']:.1f} s: probes {found['probes']:.1f}, blocks {found['blocks']:.1f}, QR {found['qr']:.1f}"
    )
    print(f"  {found['count']} blocks from {found['passes']:.1f} passes of the model; {found['engine']}")
    above, ratio = found["above"] / 1e6, found["above"] / bound
    print(f"  peak above the model and a pass of it: {above:.0f} MB; 4 N^2 + block = {bound / 1e6:.0f} MB")
    print(f"  peak / (4 N^2 + block) = {ratio:.2f}   target <= 1.00  {'met' if ratio <= 1 else 'MISSED'}")
    size = 8 * found["N"] * found["d"]
    print(f"  the process itself, before: {found['rest'] / 1e6:.0f} MB; the Jacobian: {size / 1e6:.0f} MB")
    if size < 1 << 31:
        whole = run("dense", samples, width, side, block)
        print(f"dense Jacobian and one QR: {whole['seconds']:.1f} s, peak {whole['above'] / 1e6:.0f} MB")
        time_ratio, memory_ratio = found["seconds"] / whole["seconds"], found["above"] / whole["above"]
        print(f"streamed / dense = {time_ratio:.2f} in time, {memory_ratio:.2f} in memory")
        print(f"smallest singular values: {found['smallest']:.6e} and {whole['smallest']:.6e}")
    accuracy()


if __name__ == "__main__":
    if sys.argv[-1] in ("stream", "dense"):
        {"stream": stream, "dense": dense}[sys.argv[-1]](*map(int, sys.argv[1:-1]))
    else:
        main()
