"""The Exploration-Exploitation wrapper (Algorithm 1) around any model and any optimiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from alignver import require
from alignver.errors import InvalidInput, kind_of, renamed
from alignver.limits import in_memory
from alignver.network.functional import unwrapped
from alignver.network.inputs import as_inputs, reporting_input_errors
from alignver.network.output_layers import find_output_layers
from alignver.progress import track
from alignver.theory.exploitation import objective
from alignver.theory.losses import LOSSES, loss_name
from alignver.training.exploitation import (
    CachedProblem,
    as_pair,
    as_tensor,
    as_training_targets,
    count_outputs,
    error_rate,
    mean_loss,
    numbered_classes,
    wide,
)
from alignver.training.gated_network import GatedNetwork, gate_slope, gated, warn_of_needless_width
from alignver.training.guarantee import MODES, Guarantee
from alignver.training.loop import BATCH, as_count, as_tau, batches, denormals, planned, smallest_batch
from alignver.training.phase_transition import enter, initial_values, perturb, require_independent_samples
from alignver.training.solvers import (
    Factory,
    Newton,
    Recorder,
    ScheduledSGD,
    exploiting_optimizer,
    method_of,
    solver,
    take_step,
    warn_of_long_step,
)
from alignver.training.wrapper_base import EXPLOITING, EXPLORING, TrainedNetwork

_SMALLER_STEP = "a smaller step; a checkpoint of an epoch before this one is good"


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def _logits(out: torch.Tensor, y: torch.Tensor) -> int:
    """Return the outputs of a model whose last layers are not replaced: one for each class, if it has as many."""
    return 2 if out.ndim == 2 and out.shape[1] == 2 and y.ndim == 1 and not y.is_floating_point() else 1


class EEWrapper(TrainedNetwork):
    r"""Train any model in two phases, the second of which reaches a global minimum (Algorithm 1).

    Exploration trains all layers of the modified model (:func:`alignver.training.gated_network.modify`) with any
    optimiser. At tau the parameters are perturbed, :math:`\theta^\tau = \theta^{\tau - 1} + \varepsilon \delta`, and
    the gates are frozen. Exploitation trains the weights :math:`\theta_{(H-1)}` of the last hidden layer only, in which
    the outputs are linear and the loss convex; where every :math:`A_j` has rank n, its minimum is the global one of all
    layers.

    Parameters
    ----------
    model : torch.nn.Module
        Copied, not changed.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"}
        Convex in the outputs; mean over the samples.
    tau : int or float
        Epochs of exploration; a float below 1 is a share of the run, and the float 1.0 is refused.
    epsilon : float
        Size of the perturbation, positive.
    gate : float
        Slope of the logistic gate: 1 in the paper's image experiments, 1000 for its sine wave.
    optimizer : callable, optional
        From parameters to an optimiser, for exploration; by default SGD with step 0.1 and momentum 0.9.
    exploit_optimizer : callable or str, optional
        The same for exploitation, or a name of :data:`alignver.training.solvers.SOLVERS`, whose step is 1/Lhat. None:
        the optimiser of exploration on the weights, its step lowered to 1/Lhat where it is not stable.
    seed : int
        Seed of added layers, perturbation, batches and repairs. Dropout draws from torch's global generator.
    repair : {"staircase", "redraw", "none"}
        What to do where rank n of the trained gates is not proved: new gates, and where no gates have it, features
        closer to the initial ones (:mod:`alignver.training.phase_transition`); "none" trains on. All of them warn.
    width : int, optional
        m_H of a hidden layer that has to be added.
    outputs : int, optional
        m_y of last layers that have to be added; by default the number of columns of the first targets, or their
        largest label + 1.
    layers : tuple of str, optional
        Names of the layers to be modified, if not the last ones.
    record : bool
        Record loss, gradient and step of every step of exploitation, for :meth:`check_convergence`: twice the work.

    Attributes
    ----------
    module : GatedNetwork
        The modified model; set by :meth:`prepare`, or by the first step.
    phase : str
        ``"exploration"`` or ``"exploitation"``.
    guarantee : Guarantee or None
        Ranks, constants and repairs; None before tau.
    history : list of dict
        A record for each epoch of :meth:`fit`: ``epoch``, ``phase``, ``steps`` up to its end, ``loss`` and ``error``
        (NaN for the squared loss), and with test samples ``test_loss`` and ``test_error``. In exploitation with cached
        features they are those of all samples after the epoch, the loss in float64; otherwise they are means over its
        batches, each evaluated before its step.

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
        # The layers are replaced in the module inside of a wrapper.
        model = unwrapped(model) if isinstance(model, nn.Module) else model
        if not isinstance(model, nn.Module) or next(iter(model.parameters()), None) is None:
            got = f"{kind_of(model)} without parameters"
            raise InvalidInput("model", got, "a torch module to train", code="unsupported-model")
        need = "one of " + ", ".join(map(repr, LOSSES)) + ": convex in the outputs"
        self.loss = loss_name(loss, need=need)
        need = "a positive number: Lemma 5 needs the perturbation"
        self.epsilon = require.real("epsilon", epsilon, above=0.0, need=need)
        self.repair = require.one_of("repair", repair, MODES)
        for name, factory in (("optimizer", optimizer), ("exploit_optimizer", exploit_optimizer)):
            if isinstance(factory, str) and name == "exploit_optimizer":
                solver(factory)
            elif factory is not None and not callable(factory):
                raise InvalidInput(name, repr(factory), "a function from parameters to an optimiser", code="wrong-type")
        require.booleans(record=record)
        require_independent_samples(model)
        self.tau, self.slope = as_tau(tau), gate_slope(gate)
        self.seed = as_count(seed, "seed", least=0)
        self.width, self.layers = width, layers
        self._model, self._optimizer = model, optimizer or _sgd
        self.exploiting = exploit_optimizer or self._optimizer
        self._outputs = None if outputs is None else require.integer("outputs", outputs, least=1)
        self._recording = record
        self.phase, self.steps, self.epochs = EXPLORING, 0, 0
        self.history: list[dict[str, Any]] = []
        self.optimizer: torch.optim.Optimizer
        self.generator = torch.Generator().manual_seed(self.seed)
        self._warned = False

    def __repr__(self) -> str:
        """Return the model's type, the loss, the phase and the number of epochs."""
        return f"EEWrapper({type(self._model).__name__}, loss={self.loss!r}: {self.phase}, {self.epochs} epochs)"

    # The steps of a run, for other training loops than fit.

    def prepare(self, X: Any, Y: Any) -> GatedNetwork:
        """Modify the model, for which inputs and targets are needed; the first step does it otherwise."""
        if not hasattr(self, "module"):
            inputs = self._inputs(X, next(self._model.parameters()))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                ending = find_output_layers(self._model, inputs[:2], self.layers)
                for name, p in ending.body.named_parameters():
                    if not bool(torch.isfinite(p).all()):
                        got = f"parameter {name} with NaN or Inf"
                        raise InvalidInput("model", got, "finite initial parameters", code="not-finite")
                y = as_tensor(Y, self.loss)
                m_y = self._outputs or count_outputs(self.loss, y, ending.outputs or _logits(ending.out, y))
                as_training_targets(self.loss, y, len(inputs), m_y, ending.out)
                module = gated(ending, outputs=m_y, width=self.width, slope=self.slope)
            module = module if self._model.training else module.train()
            module.head.train()
            optimizer: Any = self._optimizer([p for p in module.parameters() if p.requires_grad])
            if not isinstance(optimizer, torch.optim.Optimizer):
                got = f"a function that returns {kind_of(optimizer)}"
                need = "a function from parameters to a torch optimiser"
                raise InvalidInput("optimizer", got, need, code="wrong-type")
            self.module, self.optimizer = module, optimizer
        return self.module

    def require_like(self, X: Any, X_test: Any, Y_test: Any) -> None:
        """Raise :class:`InvalidInput` unless the model takes test samples as it takes X."""
        shape = tuple(self._inputs(X).shape[1:])
        with renamed({"X": "test", "Y": "test"}):
            inputs = self._inputs(X_test)
            self._targets(Y_test, len(inputs))
            try:
                self.outputs(inputs[:2])
            except InvalidInput as error:
                got = tuple(inputs.shape[1:])
                if got == shape:
                    raise
                need = f"the shape of the training samples, {shape}"
                raise InvalidInput("test", f"samples of shape {got}", need, "wrong-shape") from error

    def explore_step(self, x: Any, y: Any) -> float:
        """Take one step on all layers; return the loss before it."""
        if self.phase != EXPLORING:
            raise InvalidInput("explore_step", f"a call in the phase of {self.phase}", "exploit_step")
        self.prepare(x, y)
        inputs = self._inputs(x)
        return self._step(lambda: self._run(inputs), self._targets(y, len(inputs)))

    def enter_exploitation(
        self, X: Any, Y: Any, *, cache: bool = True, prove: bool | None = None, batch_size: int | None = None
    ) -> Guarantee:
        """Perturb, freeze the gates, prove the ranks, repair them if needed, and begin exploitation.

        Parameters
        ----------
        X, Y
            All training samples, without augmentation.
        cache : bool
            Compute features and gates once: :meth:`exploit_step` then takes indices into X.
        prove : bool, optional
            Whether to prove ranks. None: up to 6000 samples.
        batch_size : int, optional
            Samples of a step, fewer than all: the curvature of their loss may be larger than that of the whole loss,
            and the stable steps are shorter.
        """
        require.booleans(cache=cache, prove=False if prove is None else prove)
        self.prepare(X, Y)
        if self.phase != EXPLORING:
            raise InvalidInput("enter_exploitation", "a second call", "one call per run")
        inputs = self._inputs(X)
        targets = self._targets(Y, len(inputs))
        if self.exploiting == "newton" and not cache:
            got, need = "'newton' without cached features", "inputs that stay the same"
            raise InvalidInput("exploit_optimizer", got, need, code="conflicting-arguments")
        perturb(self.module, self.epsilon, self.generator)
        guarantee, problem = enter(
            self.module,
            inputs,
            loss=self.loss,
            repair=self.repair,
            seed=self.seed,
            prove=prove,
            initial=initial_values(self._model, self.module),
        )
        if batch_size is not None and batch_size < len(inputs):
            guarantee = dataclasses.replace(guarantee, batch_size=batch_size)
        self.recorder = Recorder(self.steps) if self._recording else None
        self._exploit(guarantee, problem if cache else None, targets)
        return guarantee

    def exploit_step(self, x: Any = None, y: Any = None, *, indices: torch.Tensor | None = None) -> float:
        """Take one step on the weights of the last hidden layer; return the loss before it.

        Without ``x``, the step uses the cached features: those of all samples, or of ``indices``. With ``x`` and ``y``
        it evaluates the whole network, as augmented inputs need.
        """
        if self.phase != EXPLOITING:
            raise InvalidInput("exploit_step", f"a call in the phase of {self.phase}", "enter_exploitation first")
        if x is not None:
            inputs = self._inputs(x)
            return self._step(lambda: self._run(inputs), self._targets(y, len(inputs)), "the caller's")
        return self.cached_step(indices, "all" if indices is None else "the caller's")

    def cached_step(self, indices: torch.Tensor | None, drawn: str) -> float:
        """Take a step of exploitation on cached features; ``drawn`` is the kind of batch, for the record."""
        if self._cached is None or self._cached_targets is None:
            raise InvalidInput("x", "nothing, and no cached features", "inputs, or enter_exploitation(cache=True)")
        cached, targets = self._cached, self._cached_targets
        batch_targets = targets if indices is None else targets[indices]
        return self._step(lambda: cached.outputs(indices), batch_targets, drawn)

    @in_memory
    def fit(
        self,
        data: Any,
        epochs: int,
        *,
        batch_size: int | str | None = BATCH,
        exploit_batch_size: int | str | None = None,
        test: Any = None,
        augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
        prove: bool | None = None,
        flush_denormals: bool = False,
        on_epoch: Callable[[EEWrapper, Mapping[str, Any]], None] | None = None,
    ) -> EEWrapper:
        """Train until ``epochs`` epochs are complete, including those of an earlier call or checkpoint.

        Parameters
        ----------
        data : (X, Y), Dataset or DataLoader
            All training samples, whose features exploitation keeps. A loader is read before; its batches are not used.
        epochs : int
            Last epoch of the run; tau lies before it.
        batch_size : int or "all"
            Samples of a step; None is "all". Batches go through all samples in a new order in each epoch (a single
            remaining sample joins the last batch), except that those of the solver "sgd" are drawn independently:
            Theorem 5 (ii) needs unbiased gradients.
        exploit_batch_size : int or "all", optional
            The same for exploitation. None: all samples for a solver that needs them ("newton", "lbfgs", "accelerated",
            "gd"), else ``batch_size``.
        test : (X, Y), Dataset or DataLoader, optional
            Samples that are not trained on: the records then have ``test_loss`` and ``test_error``.
        augment : callable, optional
            From a batch and a generator to a batch; features are then computed anew in every epoch of exploitation.
        prove : bool, optional
            As in :meth:`enter_exploitation`.
        flush_denormals : bool
            Let the CPU flush subnormal numbers to zero during the steps: steep softplus layers make so many of them
            that a step takes twenty times as long. Never during a proof, which needs gradual underflow.
        on_epoch : callable, optional
            Called with the wrapper and the epoch's record, for checkpoints and displays.

        Raises
        ------
        InvalidInput
            A tau outside the run; a loss or parameters that are NaN or Inf: the message names the step at which they
            appeared, and ``on_epoch`` is not called for this epoch.
        """
        require.booleans(flush_denormals=flush_denormals, prove=False if prove is None else prove)
        for name, function in (("augment", augment), ("on_epoch", on_epoch)):
            if function is not None and not callable(function):
                raise InvalidInput(name, kind_of(function), "a function", code="wrong-type")
        X, Y = as_pair(data)
        n = len(as_inputs(X, next(self._model.parameters()).device))
        last, *sizes = planned(self, n, epochs, batch_size, exploit_batch_size)
        held_out = None if test is None else as_pair(test, "test", "samples that are not trained on")
        if self.loss != "squared":
            Y, of_test = numbered_classes(Y, held_out and held_out[1])
            held_out = held_out and (held_out[0], of_test)
        self.prepare(X, Y)
        warn_of_needless_width(self.module.head, len(X))
        inputs, targets = self._inputs(X), as_tensor(Y, self.loss)
        if held_out is not None:
            self.require_like(X, *held_out)
        for _ in track(range(self.epochs, epochs), "epochs"):
            if self.phase == EXPLORING and self.epochs >= last:
                smallest = smallest_batch(len(inputs), sizes[1])
                self.enter_exploitation(inputs, targets, cache=augment is None, prove=prove, batch_size=smallest)
            with denormals(flush=flush_denormals):
                means = self._epoch(inputs, targets, sizes[self.phase == EXPLOITING], augment)
            self.epochs += 1
            record: dict[str, Any] = {"epoch": self.epochs, "phase": self.phase, "steps": self.steps}
            record |= self.evaluate() if self._uses_cache(augment) else means
            if held_out is not None:
                record |= {f"test_{name}": value for name, value in self.evaluate(*held_out).items()}
            self._require_finite(record)
            self.history.append(record)
            if on_epoch is not None:
                on_epoch(self, record)
        return self

    def resume(self, found: Guarantee, problem: CachedProblem | None, Y: Any) -> None:
        """Continue in exploitation with loaded parameters (:mod:`alignver.training.checkpoint`)."""
        self._exploit(found, problem, self._targets(Y, found.model.n), warn=False)

    def _uses_cache(self, augment: Any) -> bool:
        return self.phase == EXPLOITING and self.cached and augment is None

    def _epoch(self, inputs: torch.Tensor, targets: torch.Tensor, size: int, augment: Any) -> dict[str, float]:
        """Take the steps of an epoch; return the means of loss and error, each batch evaluated before its step."""
        independent = isinstance(self.optimizer, ScheduledSGD)
        drawn = "independent" if independent else "batches in turn"
        losses, errors, count = 0.0, 0.0, 0
        for indices in batches(len(inputs), size, self.generator, independent=independent):
            samples = len(inputs) if indices is None else len(indices)
            if self._uses_cache(augment):
                loss = self.cached_step(indices, "all" if indices is None else drawn)
            else:
                x, y = (inputs, targets) if indices is None else (inputs[indices], targets[indices])
                x = x if augment is None else augment(x, self.generator)
                loss = self.explore_step(x, y) if self.phase == EXPLORING else self.exploit_step(x, y)
            losses, errors, count = losses + samples * loss, errors + samples * self.error, count + samples
        return {"loss": losses / count, "error": errors / count}

    def _require_finite(self, record: Mapping[str, Any]) -> None:
        """Raise if the state has NaN or Inf, before it replaces a finite one."""
        parameters = all(bool(torch.isfinite(p).all()) for p in self.module.parameters())
        if not parameters or not math.isfinite(record["loss"]):
            state = f"a loss that is {record['loss']}" if parameters else "parameters that are NaN or Inf"
            got = f"{state} after step {record['steps'] - 1} (epoch {record['epoch']}, {record['phase']})"
            raise InvalidInput("optimizer", got, _SMALLER_STEP, code="not-finite")

    def _run(self, inputs: torch.Tensor) -> torch.Tensor:
        with reporting_input_errors(self.module, inputs):
            out: torch.Tensor = self.module(inputs)
            return out

    def _step(self, outputs: Callable[[], torch.Tensor], targets: torch.Tensor, drawn: str = "") -> float:
        first: list[tuple[float, torch.Tensor]] = []

        @torch.enable_grad()
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            values = outputs()
            loss = mean_loss(self.loss, values, targets)
            value = float(loss.detach())
            if not math.isfinite(value):
                got = f"a loss that is {value} at step {self.steps} (epoch {self.epochs + 1}, {self.phase})"
                raise InvalidInput("optimizer", got, _SMALLER_STEP, code="not-finite")
            if not first:
                first.append((value, values.detach()))
            # Code of the user may still hold results of the original model, which keeps its gradients.
            held = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
            loss.backward(inputs=held)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
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
        loss, values = first[0]
        self._error = error_rate(self.loss, values, targets)
        return loss

    def _exploit(
        self, guarantee: Guarantee, problem: CachedProblem | None, targets: torch.Tensor, *, warn: bool = True
    ) -> None:
        hidden = self.module.head.hidden
        for p in self.module.parameters():
            p.requires_grad_(p is hidden)
        hidden.grad = None
        self.optimizer = exploiting_optimizer(
            self.exploiting, [hidden], guarantee.steps, batches=guarantee.batch_size is not None, warn=warn
        )
        if isinstance(self.optimizer, Newton):
            self.optimizer.problem = objective(guarantee.model, wide(targets), self.loss)
        decay = max(float(group.get("weight_decay") or 0.0) for group in self.optimizer.param_groups)
        note = f"the optimiser adds a weight decay of {decay:g} to the loss: its minimum is another one"
        if decay and note not in guarantee.notes:
            guarantee = dataclasses.replace(guarantee, notes=(*guarantee.notes, note))
        self.guarantee, self.phase = guarantee, EXPLOITING
        self._cached, self._cached_targets = problem, None if problem is None else targets
