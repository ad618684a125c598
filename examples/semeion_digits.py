"""
Handwritten digits in a custom training loop
============================================

This example trains a small convolutional network on 300 images of the Semeion set with the individual steps of the
wrapper. Exploration steps train all layers on batches. Exploitation steps train the last hidden layer on all images,
with features that are computed once. The result is a proof that no choice of the parameters of all layers has a
training loss that is smaller by more than the bound, and that no training image is misclassified. The schedule is
short: eight epochs of exploration instead of the paper's hundreds.
"""

import warnings

import numpy as np
import torch
from torch import nn

import alignver as av
from alignver.data import semeion
from alignver.errors import LostGuarantee
from alignver.report import plots

BATCH, EXPLORATION, EXPLOITATION = 20, 8, 8


def main() -> object:
    torch.set_num_threads(1)
    digits = semeion()
    order = np.random.default_rng(0).permutation(len(digits))
    x = torch.tensor(digits.x[order, None], dtype=torch.float32) * 2 - 1
    y = torch.tensor(digits.y[order], dtype=torch.int64)
    X, Y = x[:300], y[:300]

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(256, 64), nn.Softplus(), nn.Linear(64, 10),
    )  # fmt: skip
    wrapper = av.EEWrapper(
        network,
        loss="cross_entropy",
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
        exploit_optimizer="newton",
    )
    wrapper.prepare(X, Y)
    course = []
    print(*wrapper.module.changes, "", sep="\n")

    for epoch in range(EXPLORATION):
        losses = [wrapper.explore_step(X[batch], Y[batch]) for batch in torch.randperm(len(X)).split(BATCH)]
        course.append(float(np.mean(losses)))
        print(f"exploration, epoch {epoch + 1}: mean loss {course[-1]:.4f}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostGuarantee)  # the guarantee reports whether rank n was lost
        guarantee = wrapper.enter_exploitation(X, Y)
    print("", *guarantee.sentences, "", sep="\n")

    for step in range(EXPLOITATION):
        course.append(wrapper.exploit_step())
        print(f"exploitation, step {step + 1}: loss {course[-1]:.2e}")

    print()
    print(wrapper.check(X, Y, tolerance=1e-3))
    wrong = wrapper.outputs(x[300:]).argmax(1) != y[300:]
    print(f"\nerror on the other {len(wrong)} images: {100 * wrong.double().mean():.1f} %")
    return plots.training(range(1, len(course) + 1), course, course, tau=EXPLORATION)


if __name__ == "__main__":
    figure = main()
