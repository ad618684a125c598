"""Training runs of section 3.4.2: a ResNet-18 on an image set, by the standard method or by Algorithm 1 as written.

"As written" means without the repair and without the limit on the step by which the library keeps the wrapper from
diverging.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import functional

from alignver.errors import AlignverWarning
from alignver.experiments.conduct import Part, Setting
from alignver.experiments.image_sets import AUGMENTATIONS, Split, split
from alignver.experiments.networks import resnet18
from alignver.progress import track
from alignver.training.exploitation import CachedProblem
from alignver.training.guarantee import Guarantee
from alignver.training.loop import tau_epoch
from alignver.training.solvers import take_step
from alignver.training.wrapper import EEWrapper

__all__ = ["RATE", "STANDARD", "WRAPPER", "Effort", "ImageRun", "effort", "enter", "quietly", "train"]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress the warnings that a step may diverge or that nothing is proved: an experiment measures what happens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlignverWarning)
        yield


def enter(wrapper: EEWrapper, X: Any, Y: Any, *, rate: float | None, **options: Any) -> Guarantee:
    """Switch to exploitation with the paper's step, whatever Lhat is.

    Parameters
    ----------
    wrapper : EEWrapper
    X, Y, **options
        Of :meth:`EEWrapper.enter_exploitation`.
    rate : float or None
        The step; None for the wrapper's choice.
    """
    with quietly():
        guarantee = wrapper.enter_exploitation(X, Y, **options)
    if rate is not None:
        for group in wrapper.optimizer.param_groups:
            group["lr"] = rate
    return guarantee


STANDARD, WRAPPER = "standard", "wrapper"
RATE = 0.1
_MOMENTUM, _DECAY, _BATCH = 0.9, 1e-5, 64


@dataclasses.dataclass(frozen=True)
class Effort:
    """The size of an experiment: the paper's, or a reduced one.

    Attributes
    ----------
    epochs : int
    seeds : int
    width : int
        Channels of the first stage of the network.
    samples : int or None
        Number of training images, and the largest number of test images; None for all.
    paper : int
        The paper's epochs.
    """

    epochs: int
    seeds: int
    width: int = 64
    samples: int | None = None
    paper: int = 0

    @property
    def reduced(self) -> str:
        """The reductions in words; empty for an experiment of the paper's size."""
        words = []
        if self.epochs < self.paper:
            words.append(f"{self.epochs} of {self.paper} epochs")
        if self.width < 64:
            words.append(f"{self.width} of 64 channels")
        if self.samples is not None:
            words.append(f"{self.samples} training images and as many test images at most")
        return "; ".join(words)

    @property
    def label(self) -> str:
        """The beginning of a claim: it marks a reduced experiment."""
        return f"REDUCED ({self.reduced}): " if self.reduced else ""

    @property
    def word(self) -> str:
        """The beginning of a reason."""
        return "reduced: " if self.reduced else ""


_FULL = {True: Effort(200, 5, paper=200), False: Effort(100, 5, paper=100)}
_REDUCED: Mapping[str, Mapping[bool, Effort]] = MappingProxyType(
    {"semeion": {True: Effort(60, 3, 8, paper=200), False: Effort(30, 3, 8, paper=100)}}
)
_OTHERS = {True: Effort(10, 3, 8, 2000, paper=200), False: Effort(10, 3, 8, 2000, paper=100)}


def effort(setting: Setting, dataset: str, augmented: bool) -> Effort:
    """Return the paper's effort, or the reduced one for two cores, with the setting's number of seeds.

    Examples
    --------
    >>> effort(Setting(device="cuda"), "mnist", True).reduced
    ''
    >>> effort(Setting(), "mnist", True).reduced
    '10 of 200 epochs; 8 of 64 channels; 2000 training images and as many test images at most'
    """
    size = _REDUCED.get(dataset, _OTHERS)[augmented] if setting.is_reduced else _FULL[augmented]
    return size if setting.seeds is None else dataclasses.replace(size, seeds=setting.seeds)


@dataclasses.dataclass(frozen=True)
class ImageRun:
    """One training run: everything that determines its outcome.

    Attributes
    ----------
    dataset : str
    augmented : bool
        With the paper's data augmentation.
    method : {"standard", "wrapper"}
    seed : int
        Of split, initialisation, batches, augmentation and perturbation.
    effort : Effort
    epsilon, tau : float or None
        Of the wrapper; tau is a fraction of the epochs (the paper's tau_0).
    rate : float
        Of SGD, in both phases.
    solver : {"sgd", "lbfgs"}
        Of exploitation.
    validation : bool
        Whether it is trained on four fifths of the training images and tested on the others.
    """

    dataset: str
    augmented: bool
    method: str
    seed: int
    effort: Effort
    epsilon: float | None = None
    tau: float | None = None
    rate: float = RATE
    solver: str = "sgd"
    validation: bool = False

    @property
    def key(self) -> str:
        """A name for reports, unique among the runs of one effort."""
        words = [self.dataset, self.method]
        if not self.augmented:
            words.append("no augmentation")
        if self.method == WRAPPER:
            words.append(f"epsilon {self.epsilon:g}, tau {self.tau:g} T")
        if self.rate != RATE:
            words.append(f"rate {self.rate:g}")
        if self.solver != "sgd":
            words.append(self.solver)
        if self.validation:
            words.append("validation")
        return ", ".join([*words, f"seed {self.seed}"])

    def part(self, setting: Setting) -> Part:
        """Return the part that trains; items with the same run share it."""
        fixed = {"momentum": _MOMENTUM, "decay": _DECAY, "batch": _BATCH, "network": "pre-activation ResNet-18"}
        size = {"epochs": self.effort.epochs, "width": self.effort.width, "samples": self.effort.samples}
        method = {"repair": "none", "step": "as written"}
        recipe = {**dataclasses.asdict(self), "effort": size, **method, **fixed, "device": setting.device}
        return Part(self.key, recipe, lambda: train(self, setting), family="image")


def train(run: ImageRun, setting: Setting) -> dict[str, Any]:
    """Train and test.

    Returns
    -------
    dict
        ``test`` (error in percent at the end), ``loss`` (mean over the batches of each epoch, before each step),
        ``seconds`` and ``cpu_seconds`` of the training steps alone, by phase; of the wrapper ``guarantee``.
    """
    device = setting.device
    data = split(
        run.dataset,
        seed=run.seed,
        validation=run.validation,
        samples=run.effort.samples,
        folder=setting.data_folder,
        device=device,
    )
    model = resnet18(int(data.x.shape[1]), data.classes, seed=run.seed, width=run.effort.width).to(device)
    trainer = _Wrapped(run, model, data) if run.method == WRAPPER else _Standard(run, model)
    source = torch.Generator().manual_seed(run.seed)
    clock = _Clock(device)
    losses: list[float] = []
    for epoch in track(range(run.effort.epochs), run.key):
        trainer.before(epoch, data)
        with quietly(), clock.phase(trainer.phase):
            losses.append(trainer.epoch(data, source))
    wrong = (trainer.outputs(data.x_test).argmax(1) != data.y_test).double().mean()
    return {
        "test": 100.0 * float(wrong),
        "loss": losses,
        "seconds": clock.wall,
        "cpu_seconds": clock.cpu,
        "samples": len(data.x),
        "tests": len(data.x_test),
        "data": data.name,
        "sha256": data.sha256,
        **trainer.after(),
    }


class _Clock:
    """Measures wall-clock and processor time inside its ``with`` block, by phase."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._name, self._began = "", (0.0, 0.0)

    def phase(self, name: str) -> _Clock:
        """Name the phase of the block that follows."""
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, *error: object) -> None:
        for total, now, began in zip((self.wall, self.cpu), self._now(), self._began):
            total[self._name] = total.get(self._name, 0.0) + now - began

    def _now(self) -> tuple[float, float]:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def _sgd(run: ImageRun, parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=run.rate, momentum=_MOMENTUM, weight_decay=_DECAY)


class _Standard:
    """SGD on the base network."""

    phase = "all layers"

    def __init__(self, run: ImageRun, model: torch.nn.Module) -> None:
        self.run, self.model = run, model.train()
        self.optimizer = _sgd(run, model.parameters())

    def before(self, epoch: int, data: Split) -> None:
        """Prepare an epoch."""

    def epoch(self, data: Split, source: torch.Generator) -> float:
        """Train on every image once; return the mean loss."""
        return fmean(self.step(*_batch(self.run, data, indices, source)) for indices in _order(data, source))

    def step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Take one step; return the loss before it."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self.optimizer.step()
        return float(loss.detach())

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs in eval mode."""
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.model(batch) for batch in torch.split(x, 512)])

    def after(self) -> dict[str, Any]:
        """Return further entries of the run's record."""
        return {}


class _Wrapped:
    """Algorithm 1 around the same network and optimiser, as written: trained gates, the same step in both phases."""

    phase = "exploration"

    def __init__(self, run: ImageRun, model: torch.nn.Module, data: Split) -> None:
        self.run, self.tau = run, tau_epoch(run.tau or 0.0, run.effort.epochs)
        features = 8 * run.effort.width + 1
        self.wrapper = EEWrapper(
            model,
            loss="cross_entropy",
            tau=self.tau,
            epsilon=run.epsilon or 0.0,
            width=-(-2 * len(data.x) // features),
            optimizer=lambda p: _sgd(run, p),
            exploit_optimizer="lbfgs" if run.solver == "lbfgs" else None,
            seed=run.seed,
            repair="none",
        )
        self.wrapper.prepare(data.x, data.y)
        self.guarantee: dict[str, Any] = {}

    def before(self, epoch: int, data: Split) -> None:
        """Switch to exploitation at tau."""
        if epoch != self.tau:
            return
        rate = self.run.rate if self.run.solver == "sgd" else None
        guarantee = enter(self.wrapper, data.x, data.y, rate=rate, cache=not self.run.augmented)
        self.phase, self.guarantee = "exploitation", dict(guarantee.summary())

    def epoch(self, data: Split, source: torch.Generator) -> float:
        """Train on every image once; return the mean loss."""
        if self.phase == "exploitation" and self.run.solver == "lbfgs":
            return self._whole(data, source)
        return fmean(self._step(data, indices, source) for indices in _order(data, source))

    def _step(self, data: Split, indices: torch.Tensor, source: torch.Generator) -> float:
        if self.phase == "exploitation" and not self.run.augmented:
            return self.wrapper.exploit_step(indices=indices)
        x, y = _batch(self.run, data, indices, source)
        return self.wrapper.explore_step(x, y) if self.phase == "exploration" else self.wrapper.exploit_step(x, y)

    def _whole(self, data: Split, source: torch.Generator) -> float:
        """Take one step of L-BFGS, which needs the full gradient, on all images as augmented for this epoch."""
        if not self.run.augmented:
            return self.wrapper.exploit_step()
        x = torch.cat([AUGMENTATIONS[self.run.dataset](batch, source) for batch in torch.split(data.x, _BATCH)])
        problem = CachedProblem(self.wrapper.module, x)
        losses: list[float] = []

        def closure() -> torch.Tensor:
            self.wrapper.optimizer.zero_grad()
            loss = functional.cross_entropy(problem.outputs(), data.y)
            losses.append(float(loss.detach()))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            return loss

        take_step(self.wrapper.optimizer, closure)
        return losses[0]

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs in eval mode."""
        return self.wrapper.outputs(x)

    def after(self) -> dict[str, Any]:
        """Return the guarantee at tau."""
        return {"guarantee": self.guarantee}


def _order(data: Split, source: torch.Generator) -> Sequence[torch.Tensor]:
    """Return the batches of an epoch: indices of images in a random order."""
    return torch.split(torch.randperm(len(data.x), generator=source), _BATCH)


def _batch(
    run: ImageRun, data: Split, indices: torch.Tensor, source: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    x = data.x[indices]
    return (AUGMENTATIONS[run.dataset](x, source) if run.augmented else x), data.y[indices]
