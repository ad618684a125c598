"""
Can this network fit these targets?
===================================

This example checks data-architecture alignment (Definition 2) of two torch models on the same twelve points. The
column space of the first Jacobian contains every target. The second model is linear, and its Jacobian has only four
columns.
"""

import torch
from torch import nn

import alignver as av
from alignver.report.verdict_plots import reach


def main() -> object:
    torch.manual_seed(0)
    X = torch.randn(12, 3)
    Y = (X.sum(dim=1) > 0).long()

    network = nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, 2))
    aligned = av.check_alignment(network, X, Y, loss="cross_entropy")
    print(aligned)
    print()

    linear = nn.Linear(3, 1)
    result = av.check_alignment(linear, X, Y.to(torch.float32), loss="binary_cross_entropy")
    print(result)

    J = av.jacobian(linear, X)
    print()
    print("the Jacobian behind the second verdict:", tuple(J.shape), J.dtype)

    # What limited parameters reach: the smallest residual of the targets, and kappa, at which it is 0.
    kappa, rows = aligned.measured["kappa"], aligned.measured["reach"]
    columns = {name: [row[name] for row in rows] for name in ("budget", "lower", "upper")}
    shuffled = aligned.measured["kappa_shuffled"]
    return reach(*columns.values(), kappa=(kappa["lower"], kappa["upper"]), shuffled=shuffled).figure


if __name__ == "__main__":
    figure = main()
