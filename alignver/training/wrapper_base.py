"""The state of a two-phase training run, and its evaluation: outputs, losses, optimality, convergence."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from alignver.checks.convergence import check_convergence
from alignver.checks.network_optimality import dtype_of, loss_as_run, outputs_as_run, with_proof
from alignver.checks.optimality import check_optimality
from alignver.errors import InvalidInput
from alignver.limits import in_memory
from alignver.network.adapt import as_arrays
from alignver.network.enclosed_loss import OptimalityProof, prove_optimality
from alignver.network.inputs import as_inputs, as_targets, reporting_input_errors
from alignver.network.preserve_state import eval_mode
from alignver.results import CheckResult
from alignver.theory.exploitation import Exploitation, objective
from alignver.theory.infimum import better_weights
from alignver.theory.record import TrainingRecord
from alignver.training.exploitation import CachedProblem, as_model, as_training_targets, error_rate, mean_loss, wide
from alignver.training.gated_network import GatedNetwork
from alignver.training.guarantee import Guarantee
from alignver.training.solvers import Factory, Recorder

EXPLORING, EXPLOITING = "exploration", "exploitation"


class TrainedNetwork:
    """The state of a run and its evaluation; :class:`~alignver.training.wrapper.EEWrapper` adds the training."""

    module: GatedNetwork
    loss: str
    tau: float
    exploiting: Factory | str
    """The optimiser of exploitation: a factory, or the name of a solver."""
    phase: str = EXPLORING
    guarantee: Guarantee | None = None
    recorder: Recorder | None = None
    certificate_inputs: Mapping[str, Any] = MappingProxyType({})
    """What the certificate of the last :meth:`check` is about, if it is about the network."""
    _recording: bool = False
    _cached: CachedProblem | None = None
    _cached_targets: torch.Tensor | None = None
    _error: float | None = None

    @in_memory
    def check(
        self,
        X: Any,
        Y: Any = None,
        *,
        tolerance: float = 0.01,
        certify: bool = True,
        rank: bool | None = None,
        budget_seconds: float = 30.0,
    ) -> CheckResult:
        """Check how far the training loss is from its global infimum.

        The arguments are those of :func:`~alignver.check_optimality`; X can be a Dataset or DataLoader of both. The
        answer is about the network at its present parameters, evaluated from X in real arithmetic, if its outputs are
        enclosed within ``budget_seconds``; otherwise about the features as they were computed, and the result says so.
        """
        if self.phase != EXPLOITING:
            raise InvalidInput("check", f"a call in the phase of {self.phase}", "a run that has reached tau")
        X, Y = as_arrays(X, Y)
        model, inputs, weights = self.exploitation(X), self._inputs(X), wide(self.module.head.hidden)
        problem = objective(model, as_targets(Y, model.n), self.loss)
        stored = check_optimality(
            model,
            weights,
            as_targets(Y, model.n),
            loss=self.loss,
            tolerance=tolerance,
            certify=certify,
            rank=rank,
            X=inputs,
        )
        if not certify:
            return stored
        began, targets = time.perf_counter(), np.array(problem.targets)
        as_run = loss_as_run(outputs_as_run(self.module, inputs), targets, self.loss)
        proof = prove_optimality(
            self.module,
            inputs,
            targets,
            self.loss,
            tolerance=tolerance,
            seconds=budget_seconds,
            better=lambda: {"head.hidden": better_weights(problem, weights)},
        )
        self.certificate_inputs = proof.inputs if isinstance(proof, OptimalityProof) else {}
        result = with_proof(stored, proof, tolerance, as_run, dtype_of(self.module))
        elapsed = time.perf_counter() - began
        return dataclasses.replace(result, cost={**stored.cost, "seconds": stored.cost["seconds"] + elapsed})

    def exploitation(self, X: Any) -> Exploitation:
        """Return the model of the exploitation phase on arrays, as :meth:`check` uses it."""
        inputs = self._inputs(X)
        if self._cached is not None and self._cached.is_of(inputs):
            return as_model(self.module, self._cached.Z)
        with reporting_input_errors(self.module, inputs):
            return as_model(self.module, CachedProblem(self.module, inputs).Z)

    def training_record(self) -> TrainingRecord:
        """Return the record of the steps of exploitation.

        Raises
        ------
        InvalidInput
            There is no record: ``record=False``, or no step on cached features yet.
        """
        record = None if self.recorder is None else self.recorder.record()
        if record is None:
            why = "no step of exploitation" if self._recording else "record=False"
            raise InvalidInput("record", why, "EEWrapper(record=True), and a run beyond tau")
        return record

    def check_convergence(self, Y: Any) -> list[CheckResult]:
        """Check the run against Lemmas 2 and 8, Theorem 5 and Assumption 7.

        See :func:`~alignver.checks.convergence.check_convergence`.
        """
        record, guarantee = self.training_record(), self.guarantee
        assert guarantee is not None
        return check_convergence(
            record,
            guarantee.model,
            guarantee.weights,
            as_targets(Y, guarantee.model.n),
            loss=self.loss,
            rank_n=None if guarantee.after is None else guarantee.proved,
            computed_in=str(self.module.head.hidden.dtype).removeprefix("torch."),
        )

    @torch.no_grad()
    def outputs(self, X: Any, *, batch_size: int = 512) -> torch.Tensor:
        """Return the outputs (n, m_y) in eval mode, without a graph; the modes of the modules are restored."""
        self.require_prepared("outputs")
        inputs = self._inputs(as_arrays(X)[0])
        with eval_mode(self.module), reporting_input_errors(self.module, inputs):
            return torch.cat([self.module(part.clone()) for part in torch.split(inputs, batch_size)])

    def require_prepared(self, argument: str) -> None:
        """Raise :class:`InvalidInput` unless the model is modified already."""
        if not hasattr(self, "module"):
            raise InvalidInput(argument, "a wrapper whose model is not modified yet", "fit, a step, or prepare(X, Y)")

    @torch.no_grad()
    def evaluate(self, X: Any = None, Y: Any = None) -> dict[str, float]:
        """Return loss and error of samples; without them, those of all training samples, from cached features.

        The loss is computed in float64 from the outputs: a small cross-entropy is 0 in float32.
        """
        if X is not None:
            X, Y = as_arrays(X, Y)
            outputs = self.outputs(X)
            targets = self._targets(Y, len(outputs))
        elif self._cached is None or self._cached_targets is None:
            raise InvalidInput("evaluate", "no cached features", "a call in exploitation, without augmentation")
        else:
            outputs, targets = self._cached.outputs(), self._cached_targets
        error = error_rate(self.loss, outputs, targets)
        loss = float(mean_loss(self.loss, outputs.cpu().double(), targets.cpu().double()))
        return {"loss": loss + 0.0, "error": math.nan if error is None else error}  # torch returns -0.0 as well

    @property
    def cached(self) -> bool:
        """Whether exploitation uses cached features."""
        return self._cached is not None

    @property
    def error(self) -> float:
        """Share of misclassified samples before the last step, in its batch; NaN for the squared loss."""
        return math.nan if self._error is None else self._error

    def _inputs(self, X: Any, parameter: torch.Tensor | None = None) -> torch.Tensor:
        like = self.module.head.hidden if parameter is None else parameter
        x = as_inputs(X, like.device)
        return x.to(like.dtype) if x.is_floating_point() else x

    def _targets(self, Y: Any, n: int) -> torch.Tensor:
        hidden = self.module.head.hidden
        return as_training_targets(self.loss, Y, n, len(hidden), hidden)
