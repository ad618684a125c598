"""The Exploration-Exploitation wrapper (Algorithm 1) around any model and any optimiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.theory.exploitation import objective
from alignver.theory.losses import LOSSES
from alignver.training.exploitation import (
    CachedProblem,
    as_tensor,
    as_training_targets,
    count_outputs,
    error_rate,
    mean_loss,
    wide,
)
from alignver.training.gated_network import GatedNetwork, gate_slope, gated
from alignver.training.guarantee import MODES, Guarantee
from alignver.training.loop import as_count, as_tau, run
from alignver.training.output_layers import find_output_layers
from alignver.training.phase_transition import enter, initial_values, perturb, same_for_each_sample
from alignver.training.solvers import (
    Factory,
    Newton,
    Recorder,
    exploiting_optimizer,
    method_of,
    solver,
    take_step,
    warn_of_long_step,
)
from alignver.training.wrapper_base import EXPLOITING, EXPLORING, TrainedNetwork

__all__ = ["EXPLOITING", "EXPLORING", "EEWrapper"]


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class EEWrapper(TrainedNetwork):
    r"""Train any model in two phases, the second of which reaches a global minimum (Algorithm 1).

    Exploration trains all layers of the modified model (:func:`alignver.training.gated_network.modify`) with any
    optimiser.
    At tau the parameters are perturbed, :math:`\theta^\tau = \theta^{\tau - 1} + \varepsilon \delta`, and the gates are
    frozen. Exploitation trains the weights :math:`\theta_{(H-1)}` of the last hidden layer only, in which the outputs
    are linear and the loss convex; where every :math:`A_j` has rank n, its minimum is the global one of all layers.

    Parameters
    ----------
    model : torch.nn.Module
        Copied, not changed.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"}
        Convex in the outputs; mean over the samples.
    tau : int or float
        Epochs of exploration; a float below 1 is a share of the run, the float 1.0 neither.
    epsilon : float
        Of the perturbation, positive.
    gate : float
        Slope of the logistic gate: 1 in the paper's image experiments, 1000 for its sine wave.
    optimizer : callable, optional
        From parameters to an optimiser, for exploration; SGD with step 0.1 and momentum 0.9 otherwise.
    exploit_optimizer : callable or str, optional
        The same for exploitation, or a name of :data:`alignver.training.solvers.SOLVERS`, whose step is 1/Lhat. None:
        the optimiser of exploration on the weights, its step lowered to 1/Lhat where it is not stable.
    seed : int
        Of added layers, perturbation, batches and repairs. Dropout draws from torch's own generator.
    repair : {"staircase", "redraw", "none"}
        What to do where rank n of the trained gates is not proved: new gates, and where no gates have it, features
        nearer to the initial ones (:mod:`alignver.training.phase_transition`); "none" trains on. All of them warn.
    width : int, optional
        m_H of a hidden layer that has to be added.
    outputs : int, optional
        m_y of last layers that have to be added; else the columns of the first targets, or their largest label + 1.
    layers : tuple of str, optional
        Names of the layers to be modified, if not the last ones.
    record : bool
        Keep loss, gradient and step of every step of exploitation, for :meth:`check_convergence`: twice the work.

    Attributes
    ----------
    module : GatedNetwork
        The modified model; there from the first step (or :meth:`prepare`) on.
    phase : str
        ``"exploration"`` or ``"exploitation"``.
    guarantee : Guarantee or None
        What is known since tau.
    history : list of dict
        A record for each epoch of :meth:`fit`: ``epoch``, ``phase``, ``steps`` up to its end, ``loss`` and ``error``
        (NaN for the squared loss). In exploitation with cached features they are those of all samples after the
        epoch; else the mean over its batches, each before its step.

    Raises
    ------
    InvalidInput
        No parameters, outputs that do not match the targets, a tau outside the run, an epsilon that is not positive, a
        gate that is not logistic, an unknown loss.

    References
    ----------
    Algorithm 1, Theorems 4 and 5 of Kawaguchi, Zhang, Deng (2022).

    Examples
    --------
    >>> torch.manual_seed(0) and None
    >>> X = torch.randn(30, 2)
    >>> Y = (X[:, 0] * X[:, 1] > 0).long()
    >>> net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 1))
    >>> wrapper = EEWrapper(net, loss="binary_cross_entropy", tau=20, epsilon=0.01, exploit_optimizer="newton")
    >>> _ = wrapper.fit((X, Y), epochs=40)
    >>> wrapper.phase, wrapper.guarantee.proved, wrapper.history[-1]["error"]
    ('exploitation', True, 0.0)
    """

    module: GatedNetwork

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str,
        tau: float = 0.6,
        epsilon: float = 1e-3,
        gate: float = 1.0,
        optimizer: Factory | None = None,
        exploit_optimizer: Factory | str | None = None,
        seed: int = 0,
        repair: str = "staircase",
        width: int | None = None,
        outputs: int | None = None,
        layers: tuple[str, ...] | None = None,
        record: bool = False,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: surgery needs the modules themselves
        if not isinstance(model, nn.Module) or next(iter(model.parameters()), None) is None:
            raise InvalidInput("model", f"a {type(model).__name__} without parameters", "a torch module to train")
        if not isinstance(loss, str) or loss not in LOSSES:
            need = "one of " + ", ".join(repr(known) for known in LOSSES) + ": convex in the outputs"
            raise InvalidInput("loss", f"loss={loss!r}", need)
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0.0 < epsilon < math.inf:
            raise InvalidInput("epsilon", f"epsilon={epsilon!r}", "a positive number: Lemma 5 needs the perturbation")
        if repair not in MODES:
            raise InvalidInput("repair", f"repair={repair!r}", "one of " + ", ".join(MODES))
        for name, choice in (("optimizer", optimizer), ("exploit_optimizer", exploit_optimizer)):
            if isinstance(choice, str) and name == "exploit_optimizer":
                solver(choice)
            elif choice is not None and not callable(choice):
                raise InvalidInput(name, repr(choice), "a function from parameters to an optimiser")
        same_for_each_sample(model)
        self.loss, self.tau, self.epsilon, self.slope = loss, as_tau(tau), float(epsilon), gate_slope(gate)
        self.seed = as_count(seed, "seed", least=0)
        self.repair, self.width, self.layers = repair, width, layers
        self._model, self._optimizer, self._exploit_optimizer = model, optimizer or _sgd, exploit_optimizer
        self._outputs, self._recording = outputs, bool(record)
        self.phase, self.steps, self.epochs = EXPLORING, 0, 0
        self.history: list[dict[str, Any]] = []
        self.optimizer: torch.optim.Optimizer
        self.generator = torch.Generator().manual_seed(self.seed)
        self._warned = False

    def __repr__(self) -> str:
        """Say what is trained, and how far it has come."""
        return f"EEWrapper({type(self._model).__name__}, loss={self.loss!r}: {self.phase}, {self.epochs} epochs)"

    # The pieces, for people with a loop of their own.

    def prepare(self, X: Any, Y: Any) -> GatedNetwork:
        """Modify the model, once its inputs and targets are known; done by the first step where it was not."""
        if not hasattr(self, "module"):
            inputs = self._inputs(X, next(self._model.parameters()))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                found = find_output_layers(self._model, inputs[:2], self.layers)
                for name, p in found.body.named_parameters():
                    if not bool(torch.isfinite(p).all()):
                        raise InvalidInput("model", f"parameter {name} with NaN or Inf", "finite parameters at first")
                y = as_tensor(Y)
                m_y = self._outputs or count_outputs(self.loss, y, found.outputs or 1)
                as_training_targets(self.loss, y, len(inputs), m_y, found.out)
                module = gated(found, outputs=m_y, width=self.width, slope=self.slope)
            module = module if self._model.training else module.train()
            module.head.train()
            optimizer: Any = self._optimizer([p for p in module.parameters() if p.requires_grad])
            if not isinstance(optimizer, torch.optim.Optimizer):
                got = f"a function that returns a {type(optimizer).__name__}"
                raise InvalidInput("optimizer", got, "a function from parameters to a torch optimiser")
            self.module, self.optimizer = module, optimizer
        return self.module

    def explore_step(self, x: Any, y: Any) -> float:
        """Take one step on all layers; return the loss before it."""
        if self.phase != EXPLORING:
            raise InvalidInput("explore_step", f"a call in the phase of {self.phase}", "exploit_step")
        self.prepare(x, y)
        inputs = self._inputs(x)
        return self._step(lambda: self.module(inputs), self._targets(y, len(inputs)))

    def enter_exploitation(
        self, X: Any, Y: Any, *, cache: bool = True, prove: bool | None = None, batch_size: int | None = None
    ) -> Guarantee:
        """Perturb, freeze the gates, prove the ranks, repair them if need be, and go over to the last hidden layer.

        Parameters
        ----------
        X, Y : all training samples, as they are without augmentation
        cache : bool
            Compute features and gates once: :meth:`exploit_step` then takes indices into X.
        prove : bool, optional
            Whether to prove ranks. None: up to 6000 samples.
        batch_size : int, optional
            Samples of a step, fewer than all: their loss may bend more than the whole one, and steps are shorter then.
        """
        self.prepare(X, Y)
        if self.phase != EXPLORING:
            raise InvalidInput("enter_exploitation", "a second call", "one call a run")
        inputs = self._inputs(X)
        targets = self._targets(Y, len(inputs))
        if self._exploit_optimizer == "newton" and not cache:
            raise InvalidInput("exploit_optimizer", "'newton' without cached features", "inputs that stay the same")
        perturb(self.module, self.epsilon, self.generator)
        found, problem = enter(
            self.module,
            inputs,
            loss=self.loss,
            repair=self.repair,
            seed=self.seed,
            prove=prove,
            initial=initial_values(self._model, self.module),
        )
        if batch_size is not None and batch_size < len(inputs):
            found = dataclasses.replace(found, batch_size=batch_size)
        self.recorder = Recorder(self.steps) if self._recording else None
        self._exploit(found, problem if cache else None, targets)
        return found

    def exploit_step(self, x: Any = None, y: Any = None, *, indices: torch.Tensor | None = None) -> float:
        """Take one step on the weights of the last hidden layer; return the loss before it.

        Without ``x``, on the cached features: all samples, or those of ``indices``. With ``x`` and ``y``, through the
        whole network, as augmented inputs need it.
        """
        if self.phase != EXPLOITING:
            raise InvalidInput("exploit_step", f"a call in the phase of {self.phase}", "enter_exploitation first")
        if x is not None:
            inputs = self._inputs(x)
            return self._step(lambda: self.module(inputs), self._targets(y, len(inputs)), "the caller's")
        return self.cached_step(indices, "all" if indices is None else "the caller's")

    def cached_step(self, indices: torch.Tensor | None, drawn: str) -> float:
        """Take a step of exploitation on cached features; ``drawn`` says how the batch came about, for the record."""
        if self._cached is None or self._cached_targets is None:
            raise InvalidInput("x", "nothing, and no cached features", "inputs, or enter_exploitation(cache=True)")
        cached, targets = self._cached, self._cached_targets
        own = targets if indices is None else targets[indices]
        return self._step(lambda: cached.outputs(indices), own, drawn)

    # The whole.

    def fit(
        self,
        data: tuple[Any, Any],
        epochs: int,
        *,
        batch_size: int | None = None,
        augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
        prove: bool | None = None,
        flush_denormals: bool = False,
        on_epoch: Callable[[EEWrapper, Mapping[str, Any]], None] | None = None,
    ) -> EEWrapper:
        """Train for ``epochs`` epochs in all, those of an earlier call or checkpoint included.

        Parameters
        ----------
        data : (X, Y)
            All training samples.
        epochs : int
            Where the run ends; tau lies inside.
        batch_size : int, optional
            None: all samples at once. Batches go through all samples in a new order in each epoch (one sample that is
            left alone joins the last batch), but those of the solver "sgd" are drawn independently: Theorem 5 (ii)
            needs unbiased gradients.
        augment : callable, optional
            From a batch and a generator to a batch; features are then computed anew in every epoch of exploitation.
        prove : bool, optional
            As in :meth:`enter_exploitation`.
        flush_denormals : bool
            Let the CPU take subnormal numbers for zero during the steps: steep softplus layers make so many of them
            that a step takes twenty times as long. Never during a proof, which needs gradual underflow.
        on_epoch : callable, optional
            Called with the wrapper and the epoch's record: the place for checkpoints and displays.

        Raises
        ------
        InvalidInput
            A tau outside the run; a loss or parameters that are NaN or Inf, with the step at which they became so, and
            before ``on_epoch`` could keep them.
        """
        run(
            self,
            data,
            epochs,
            size=batch_size,
            augment=augment,
            prove=prove,
            flush=flush_denormals,
            on_epoch=on_epoch,
        )
        return self

    def resume(self, found: Guarantee, problem: CachedProblem | None, Y: Any) -> None:
        """Go on in exploitation with parameters that were loaded (:mod:`alignver.training.checkpoint`)."""
        self._exploit(found, problem, self._targets(Y, found.model.n), warn=False)

    @property
    def exploiting(self) -> Factory | str:
        """What makes the optimiser of exploitation: a factory, or the name of a solver."""
        return self._exploit_optimizer or self._optimizer

    # What the pieces are made of.

    def _step(self, outputs: Callable[[], torch.Tensor], targets: torch.Tensor, drawn: str = "") -> float:
        seen: list[tuple[float, torch.Tensor]] = []

        @torch.enable_grad()
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            found = outputs()
            loss = mean_loss(self.loss, found, targets)
            value = float(loss.detach())
            if not math.isfinite(value):
                got = f"a loss that is {value} at step {self.steps} (epoch {self.epochs + 1}, {self.phase})"
                raise InvalidInput("optimizer", got, "a smaller step; a checkpoint of an epoch before this one is good")
            if not seen:
                seen.append((value, found.detach()))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if self.phase == EXPLOITING and not self._warned and self.guarantee is not None:
            self._warned = warn_of_long_step(self.optimizer, self.guarantee.steps)
        recorder = self.recorder if self._cached is not None else None
        if recorder is not None and self._cached is not None and self._cached_targets is not None:
            recorder.before(self.loss, self._cached, self._cached_targets)
        take_step(self.optimizer, closure)
        if recorder is not None:
            method = method_of(self.optimizer, drawn)
            recorder.after(self.steps, self.optimizer, self.module.head.hidden, method)
        self.steps += 1
        self._wrong = error_rate(self.loss, seen[0][1], targets)
        return seen[0][0]

    def _exploit(
        self, found: Guarantee, problem: CachedProblem | None, targets: torch.Tensor, *, warn: bool = True
    ) -> None:
        hidden = self.module.head.hidden
        for p in self.module.parameters():
            p.requires_grad_(p is hidden)
        hidden.grad = None
        self.optimizer = exploiting_optimizer(
            self.exploiting, [hidden], found.steps, batches=found.batch_size is not None, warn=warn
        )
        if isinstance(self.optimizer, Newton):
            self.optimizer.problem = objective(found.model, wide(targets), self.loss)
        decay = max(float(group.get("weight_decay") or 0.0) for group in self.optimizer.param_groups)
        note = f"the optimiser adds a weight decay of {decay:g} to the loss: its minimum is another one"
        if decay and note not in found.notes:
            found = dataclasses.replace(found, notes=(*found.notes, note))
        self.guarantee, self.phase = found, EXPLOITING
        self._cached, self._cached_targets = problem, None if problem is None else targets
