"""The Exploration-Exploitation wrapper (Algorithm 1) around any model and any optimiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from alignver.checks.optimality import check_optimality
from alignver.errors import InvalidInput
from alignver.models.inputs import as_inputs
from alignver.results import CheckResult
from alignver.theory.losses import LOSSES
from alignver.training.exploitation import CachedProblem, as_model, wide
from alignver.training.guarantee import Guarantee, guarantee
from alignver.training.head import gate_slope
from alignver.training.objective import as_training_targets, count_outputs, error_rate, mean_loss
from alignver.training.pace import batches, denormals, tau_epoch
from alignver.training.repair import MODES
from alignver.training.solvers import FULL_BATCH, Accelerated, Factory, exploiting_optimizer, solver, take_step
from alignver.training.surgery import GatedNetwork, modify

__all__ = ["EEWrapper"]

EXPLORING, EXPLOITING = "exploration", "exploitation"


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class EEWrapper:
    r"""Train any model in two phases, the second of which reaches a global minimum (Algorithm 1).

    Exploration trains all layers of the modified model (:func:`alignver.training.surgery.modify`) with any optimiser.
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
        Epochs of exploration; a float below 1 is a share of the run.
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
        Of added layers, perturbation, batches and repairs.
    repair : {"staircase", "redraw", "none"}
        What to do where rank n of the trained gates is not proved; "none" trains on, and says so.
    width : int, optional
        m_H of a hidden layer that has to be added.
    layers : tuple of str, optional
        Names of the layers to be modified, if not the last ones.

    Attributes
    ----------
    module : GatedNetwork
        The modified model; there from the first step (or :meth:`prepare`) on.
    phase : str
        ``"exploration"`` or ``"exploitation"``.
    guarantee : Guarantee or None
        What is known since tau.
    history : list of dict
        A record for each epoch of :meth:`fit`.

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
    >>> net = nn.Sequential(nn.Linear(2, 20), nn.Softplus(), nn.Linear(20, 12), nn.Softplus(), nn.Linear(12, 1))
    >>> wrapper = EEWrapper(net, loss="binary_cross_entropy", tau=20, epsilon=0.01, exploit_optimizer="lbfgs")
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
        layers: tuple[str, ...] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module) or next(iter(model.parameters()), None) is None:
            raise InvalidInput("model", f"a {type(model).__name__} without parameters", "a torch module to train")
        if loss not in LOSSES:
            need = "one of " + ", ".join(repr(known) for known in LOSSES) + ": convex in the outputs"
            raise InvalidInput("loss", f"loss={loss!r}", need)
        if isinstance(tau, bool) or not isinstance(tau, int | float) or not tau > 0:
            raise InvalidInput("tau", f"tau={tau!r}", "a number of epochs, or a share of the run between 0 and 1")
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0.0 < epsilon < float("inf"):
            raise InvalidInput("epsilon", f"epsilon={epsilon!r}", "a positive number: Lemma 5 needs the perturbation")
        if repair not in MODES:
            raise InvalidInput("repair", f"repair={repair!r}", "one of " + ", ".join(MODES))
        if isinstance(exploit_optimizer, str):
            solver(exploit_optimizer)
        self.loss, self.tau, self.epsilon, self.slope = loss, tau, float(epsilon), gate_slope(gate)
        self.seed, self.repair, self.width, self.layers = seed, repair, width, layers
        self._model, self._optimizer, self._exploit_optimizer = model, optimizer or _sgd, exploit_optimizer
        self.phase, self.steps, self.epochs = EXPLORING, 0, 0
        self.guarantee: Guarantee | None = None
        self.history: list[dict[str, Any]] = []
        self.optimizer: torch.optim.Optimizer
        self.generator = torch.Generator().manual_seed(seed)
        self._cached: CachedProblem | None = None
        self._cached_targets: torch.Tensor | None = None
        self._wrong: float | None = None

    # The pieces, for people with a loop of their own.

    def prepare(self, X: Any, Y: Any) -> GatedNetwork:
        """Modify the model, once its inputs and targets are known; done by the first step where it was not."""
        if not hasattr(self, "module"):
            parameter = next(self._model.parameters())
            x, y = self._inputs(X, parameter), torch.as_tensor(Y)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                mode = self._model.training
                self._model.eval()
                ends_in = self._model(x[:2])
                self._model.train(mode)
                m_y = count_outputs(self.loss, y, int(ends_in.shape[-1]) if ends_in.ndim > 1 else 1)
                as_training_targets(self.loss, y, len(x), m_y, ends_in)
                self.module = modify(
                    self._model, x[:2], outputs=m_y, width=self.width, slope=self.slope, layers=self.layers
                ).train()
            self.optimizer = self._optimizer([p for p in self.module.parameters() if p.requires_grad])
        return self.module

    def explore_step(self, x: Any, y: Any) -> float:
        """Take one step on all layers; return the loss before it."""
        if self.phase != EXPLORING:
            raise InvalidInput("explore_step", f"a call in the phase of {self.phase}", "exploit_step")
        self.prepare(x, y)
        inputs = self._inputs(x)
        return self._step(lambda: self.module(inputs), self._targets(y, len(inputs)))

    def enter_exploitation(self, X: Any, Y: Any, *, cache: bool = True, prove: bool | None = None) -> Guarantee:
        """Perturb, freeze the gates, prove the ranks, repair them if need be, and go over to the last hidden layer.

        Parameters
        ----------
        X, Y : all training samples, as they are without augmentation
        cache : bool
            Compute features and gates once: :meth:`exploit_step` then takes indices into X.
        prove : bool, optional
            Whether to prove ranks. None: up to 6000 samples.
        """
        self.prepare(X, Y)
        if self.phase != EXPLORING:
            raise InvalidInput("enter_exploitation", "a second call", "one call a run")
        inputs = self._inputs(X)
        with torch.no_grad():
            for p in self.module.parameters():
                noise = torch.randn(p.shape, generator=self.generator, dtype=torch.float64)
                p.add_((self.epsilon * noise).to(device=p.device, dtype=p.dtype))
        self.module.eval()  # the theory needs z to be a function of x alone: BatchNorm keeps its statistics
        head = self.module.head
        head.freeze()
        problem = CachedProblem(self.module, inputs)
        model = as_model(self.module, problem.Z)
        found = guarantee(model, wide(head.hidden), loss=self.loss, mode=self.repair, seed=self.seed, prove=prove)
        if found.model is not model:
            with torch.no_grad():
                head.hidden.copy_(torch.from_numpy(found.weights.copy()))
                head.output.copy_(torch.from_numpy(found.model.output_weights.copy()))
                head.freeze(torch.from_numpy(found.model.gates.transpose(0, 2, 1).copy()))
            # The proof has to be about the gates as they are in the module's dtype.
            problem = CachedProblem(self.module, inputs)
            found = self._again(found, problem, prove)
        self.guarantee, self.phase = found, EXPLOITING
        self._use(len(inputs), Y, problem if cache else None)
        self.optimizer = self._exploiting_optimizer(found)
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
            return self._step(lambda: self.module(inputs), self._targets(y, len(inputs)))
        if self._cached is None or self._cached_targets is None:
            raise InvalidInput("x", "nothing, and no cached features", "inputs, or enter_exploitation(cache=True)")
        cached, targets = self._cached, self._cached_targets
        own = targets if indices is None else targets[indices]
        return self._step(lambda: cached.outputs(indices), own)

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
            None: all samples at once.
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
            A tau outside the run; a loss that is NaN or Inf, with the step at which it became so.
        """
        X, Y = data
        last = tau_epoch(self.tau, epochs)
        size = len(X) if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidInput("batch_size", repr(batch_size), "an integer >= 1, or None")
        self.prepare(X, Y)
        inputs = self._inputs(X)
        while self.epochs < epochs:
            if self.phase == EXPLORING and self.epochs == last:
                self.enter_exploitation(inputs, Y, cache=augment is None, prove=prove)
            if self.phase == EXPLOITING and size < len(inputs) and self._full_batch():
                got = f"{self._exploit_optimizer!r} with batches of {size} of {len(inputs)}"
                raise InvalidInput("exploit_optimizer", got, "all samples at once (batch_size=None), or another one")
            with denormals(flush=flush_denormals):
                order = batches(len(inputs), size, self.generator)
                seen = [self._batch(inputs, Y, indices, augment) for indices in order]
            self.epochs += 1
            record: dict[str, Any] = {"epoch": self.epochs, "phase": self.phase, "steps": self.steps}
            record["loss"], record["error"] = (sum(values) / len(seen) for values in zip(*seen))
            if self.epochs == epochs and self._cached is not None:
                if isinstance(self.optimizer, Accelerated):
                    self.optimizer.settle()
                record |= self._final()
            self.history.append(record)
            if on_epoch is not None:
                on_epoch(self, record)
        return self

    def check(self, X: Any, Y: Any, *, tolerance: float = 0.01, certify: bool = True) -> CheckResult:
        """Check how far the training loss is from its global infimum (:func:`~alignver.checks.check_optimality`)."""
        if self.phase != EXPLOITING:
            raise InvalidInput("check", f"a call in the phase of {self.phase}", "a run that has reached tau")
        inputs = self._inputs(X)
        cached = self._cached if self._cached is not None else CachedProblem(self.module, inputs)
        model = as_model(self.module, cached.Z)
        targets = Y.detach().cpu().numpy() if isinstance(Y, torch.Tensor) else Y
        return check_optimality(
            model, wide(self.module.head.hidden), targets, loss=self.loss, tolerance=tolerance, certify=certify
        )

    def outputs(self, X: Any, *, batch_size: int = 512) -> torch.Tensor:
        """Return the outputs (n, m_y) in eval mode, without a graph; the mode is put back."""
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        inputs = self._inputs(X)
        try:
            with torch.no_grad():
                return torch.cat([self.module(part) for part in torch.split(inputs, batch_size)])
        finally:
            for module, mode in modes:
                module.training = mode

    def resume(self, X: Any, Y: Any) -> None:
        """Make what the phase needs from parameters that were loaded (:func:`alignver.training.checkpoint.restore`)."""
        if self.phase == EXPLOITING:
            problem = CachedProblem(self.module, self._inputs(X))
            model = as_model(self.module, problem.Z)
            self.guarantee = guarantee(model, wide(self.module.head.hidden), loss=self.loss, mode="none")
            self._use(len(problem.Z), Y, problem)
            self.optimizer = self._exploiting_optimizer(self.guarantee)

    # What the pieces are made of.

    def _step(self, outputs: Callable[[], torch.Tensor], targets: torch.Tensor) -> float:
        seen: list[tuple[float, torch.Tensor]] = []

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

        take_step(self.optimizer, closure)
        self.steps += 1
        self._wrong = error_rate(self.loss, seen[0][1], targets)
        return seen[0][0]

    def _batch(self, inputs: torch.Tensor, Y: Any, indices: torch.Tensor | None, augment: Any) -> tuple[float, float]:
        if self.phase == EXPLOITING and self._cached is not None and augment is None:
            loss = self.exploit_step(indices=indices)
        else:
            x = inputs if indices is None else inputs[indices]
            y = Y if indices is None else Y[indices]
            x = x if augment is None else augment(x, self.generator)
            loss = self.explore_step(x, y) if self.phase == EXPLORING else self.exploit_step(x, y)
        return loss, math.nan if self._wrong is None else self._wrong

    def _final(self) -> dict[str, float]:
        """Return loss and error of the cached problem after the last step."""
        assert self._cached is not None
        assert self._cached_targets is not None
        with torch.no_grad():
            outputs = self._cached.outputs()
            loss = float(mean_loss(self.loss, outputs, self._cached_targets))
        wrong = error_rate(self.loss, outputs, self._cached_targets)
        return {"loss": loss, "error": math.nan if wrong is None else wrong}

    def _again(self, found: Guarantee, problem: CachedProblem, prove: bool | None) -> Guarantee:
        fresh = guarantee(
            as_model(self.module, problem.Z), wide(self.module.head.hidden), loss=self.loss, mode="none", prove=prove
        )
        return dataclasses.replace(
            found, model=fresh.model, weights=fresh.weights, after=fresh.after, smoothness=fresh.smoothness
        )

    def _exploiting_optimizer(self, found: Guarantee) -> torch.optim.Optimizer:
        for p in self.module.parameters():
            p.requires_grad_(p is self.module.head.hidden)
        self.module.head.hidden.grad = None
        return exploiting_optimizer(
            self._exploit_optimizer or self._optimizer, [self.module.head.hidden], found.smoothness
        )

    def _full_batch(self) -> bool:
        return isinstance(self._exploit_optimizer, str) and self._exploit_optimizer in FULL_BATCH

    def _use(self, n: int, Y: Any, problem: CachedProblem | None) -> None:
        self._cached = problem
        self._cached_targets = None if problem is None else self._targets(Y, n)

    def _inputs(self, X: Any, parameter: torch.Tensor | None = None) -> torch.Tensor:
        like = self.module.head.hidden if parameter is None else parameter
        x = as_inputs(X, like.device)
        return x.to(like.dtype) if x.is_floating_point() else x

    def _targets(self, Y: Any, n: int) -> torch.Tensor:
        hidden = self.module.head.hidden
        return as_training_targets(self.loss, Y, n, len(hidden), hidden)
