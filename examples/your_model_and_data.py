"""
Your model and your data, from the first check to production
============================================================

A convolutional network and two DataLoaders, as in any project: what can be proved before the training, a training that
ends with a proved gap, and the trained network loaded from its folder, which predicts and is exported. Replace
``build`` and ``loaders`` by yours.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alignver as av
from alignver.data import semeion
from alignver.report import plots
from alignver.training.run_folder import RunFolder


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=4, stride=2),
        nn.Softplus(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, 24),
        nn.Softplus(),
        nn.Linear(24, 10),
    )


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = semeion()  # 16 x 16 pixels
    X = torch.tensor(digits.x.reshape(-1, 1, 16, 16), dtype=torch.float32)
    Y = torch.tensor(digits.y, dtype=torch.int64)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    train, test = order[:200], order[200:400]
    # In a fixed order: a statement about samples names them by their number. The training draws its own batches.
    return DataLoader(TensorDataset(X[train], Y[train]), 64), DataLoader(TensorDataset(X[test], Y[test]), 64)


def main(folder: Path) -> object:
    torch.manual_seed(0)
    train, test = loaders()

    # What can be proved about the model and the data before the training.
    report = av.check_model(build(), train, loss="cross_entropy", max_seconds=60)
    print(report["model"])

    # Explore with all layers, then solve the convex rest; the gap at the end is proved.
    wrapper = av.EEWrapper(
        build(),
        loss="cross_entropy",
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
        exploit_optimizer="newton",
    )
    with RunFolder.create(folder, {"data": "200 Semeion digits", "epochs": 40}) as run:
        run.fit(wrapper, train, epochs=40, batch_size=20, test=test)
        print(run.finish(wrapper, train))
        course = run.history
    print(f"\ntest error: {wrapper.history[-1]['test_error']:.1%}\n")

    # In another process, on another day.
    network = av.load(folder, model=build)
    network.recheck().require()  # the certificate of the gap, with the saved weights
    images, labels = next(iter(test))
    print("predicted:", network.predict(images)[:10].tolist())
    print("labels:   ", labels[:10].tolist())
    exported = network.export(folder / "network.pt2")  # or .onnx, with the extra alignver[onnx]
    same = torch.export.load(exported).module()(images)
    assert torch.allclose(same, network(images), atol=1e-5)
    print(exported.name, "gives the same outputs without alignver")

    names = ("epoch", "loss", "gap", "error", "test_error")
    epochs, losses, gaps, errors, tests = ([record[name] for record in course] for name in names)
    return plots.training(epochs, losses, gaps, errors, tau=24, test_error=tests)


if __name__ == "__main__":
    figure = main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
