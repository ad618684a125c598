"""
Loss of rank during training on a sine wave
===========================================

This example uses the difficult data set of the paper (100 points of a sine wave with about six periods) and a fully
connected network (Figure 2). During exploration the rank of the trained gates decreases in floating point, until the
convex phase can no longer reach every target. At tau the wrapper detects this and replaces gates. At the end it
proves that no choice of the parameters of all layers is better by more than the bound. The schedule is a shortened
version of the paper's: 1200 epochs of exploration instead of 2000, and Newton's method for the convex phase, which
needs about a dozen steps.
"""

import warnings

import numpy as np
import torch

import alignver as av
from alignver.data import sine_wave
from alignver.errors import LostGuarantee
from alignver.experiments.networks import fully_connected
from alignver.report import plots
from alignver.training.exploitation import as_model

TAU, EPOCHS = 1200, 1215


def main() -> object:
    torch.set_num_threads(1)  # layers of 300 units are too small for more
    wave = sine_wave(100)
    X, Y = torch.tensor(wave.x, dtype=torch.float32), torch.tensor(wave.y)

    wrapper = av.EEWrapper(
        fully_connected(1),
        loss="binary_cross_entropy",
        tau=TAU,
        epsilon=0.01,
        gate=1000.0,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.98),
        exploit_optimizer="newton",
    )

    def look(trained: av.EEWrapper, record: dict) -> None:
        epoch = record["epoch"]
        if epoch in (1, TAU // 2, TAU):
            rank = rank_of_gates(trained, X)
            print(f"epoch {epoch:4d}  loss {record['loss']:.3f}  error {record['error']:.2f}  rank {rank} of {len(X)}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostGuarantee)  # the guarantee below reports the loss of rank n
        wrapper.fit((X, Y), EPOCHS, batch_size="all", flush_denormals=True, on_epoch=look)

    print("\nat tau:")
    for sentence in wrapper.guarantee.sentences:
        print(f"  {sentence}")

    last = wrapper.history[-1]
    print(f"\nepoch {last['epoch']}  loss {last['loss']:.1e}  error {last['error']:.2f}\n")
    print(wrapper.check(X, Y, tolerance=1e-3))
    epochs, losses, errors = ([record[key] for record in wrapper.history] for key in ("epoch", "loss", "error"))
    return plots.training(epochs, losses, losses, errors, tau=TAU)  # the infimum is 0: the loss is the gap


def rank_of_gates(trained: av.EEWrapper, X: torch.Tensor) -> int:
    """Return the numerical rank of the exploitation phase if the gates were frozen at this point."""
    head = trained.module.head
    with torch.no_grad():
        Z = head.features(trained.module.features(X))
    A = as_model(trained.module, Z, gates=head.hidden).dense(0)  # 100 x 90300
    return int(np.linalg.matrix_rank(np.linalg.qr(A.T, mode="r"), rtol=max(A.shape) * np.finfo(float).eps))


if __name__ == "__main__":
    figure = main()
