"""A network in its phase, with what can be asked of it: losses, optimality, convergence."""

from __future__ import annotations

import math
from typing import Any

import torch

from alignver.checks.convergence import check_convergence
from alignver.checks.optimality import check_optimality
from alignver.errors import InvalidInput
from alignver.network.inputs import as_inputs, as_targets, taken
from alignver.results import CheckResult
from alignver.theory.exploitation import Exploitation
from alignver.theory.record import TrainingRecord
from alignver.training.exploitation import CachedProblem, as_model, as_training_targets, error_rate, mean_loss, wide
from alignver.training.gated_network import GatedNetwork
from alignver.training.guarantee import Guarantee
from alignver.training.solvers import Recorder

__all__ = ["EXPLOITING", "EXPLORING", "TrainedNetwork"]

EXPLORING, EXPLOITING = "exploration", "exploitation"


class TrainedNetwork:
    """What a wrapper holds while it trains, and the questions about it; :class:`EEWrapper` adds the training."""

    module: GatedNetwork
    loss: str
    phase: str = EXPLORING
    guarantee: Guarantee | None = None
    recorder: Recorder | None = None
    _recording: bool = False
    _cached: CachedProblem | None = None
    _cached_targets: torch.Tensor | None = None
    _wrong: float | None = None

    def check(
        self, X: Any, Y: Any, *, tolerance: float = 0.01, certify: bool = True, rank: bool | None = None
    ) -> CheckResult:
        """Check how far the training loss is from its global infimum (:func:`~alignver.check_optimality`, which
        says what the arguments mean).
        """
        if self.phase != EXPLOITING:
            raise InvalidInput("check", f"a call in the phase of {self.phase}", "a run that has reached tau")
        model = self.exploitation(X)
        return check_optimality(
            model,
            wide(self.module.head.hidden),
            as_targets(Y, model.n),
            loss=self.loss,
            tolerance=tolerance,
            certify=certify,
            rank=rank,
            X=self._inputs(X),
        )

    def exploitation(self, X: Any) -> Exploitation:
        """Return the model of the exploitation phase on arrays, which :meth:`check` is about."""
        inputs = self._inputs(X)
        if self._cached is not None and self._cached.is_of(inputs):
            return as_model(self.module, self._cached.Z)
        with taken():
            return as_model(self.module, CachedProblem(self.module, inputs).Z)

    def training_record(self) -> TrainingRecord:
        """Return what the steps of exploitation did.

        Raises
        ------
        InvalidInput
            Nothing was recorded: ``record=False``, or no step on cached features yet.
        """
        found = None if self.recorder is None else self.recorder.record()
        if found is None:
            why = "record=False" if not self._recording else "no step of exploitation"
            raise InvalidInput("record", why, "EEWrapper(record=True), and a run beyond tau")
        return found

    def check_convergence(self, Y: Any) -> list[CheckResult]:
        """Hold the run against Lemmas 2 and 8, Theorem 5 and Assumption 7
        (:func:`~alignver.checks.convergence.check_convergence`).
        """
        record, found = self.training_record(), self.guarantee
        assert found is not None
        return check_convergence(
            record,
            found.model,
            found.weights,
            as_targets(Y, found.model.n),
            loss=self.loss,
            rank_n=None if found.after is None else found.proved,
            computed_in=str(self.module.head.hidden.dtype).removeprefix("torch."),
        )

    def outputs(self, X: Any, *, batch_size: int = 512) -> torch.Tensor:
        """Return the outputs (n, m_y) in eval mode, without a graph; the mode is put back."""
        self.require_prepared("outputs")
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        inputs = self._inputs(X)
        try:
            with torch.no_grad(), taken():
                return torch.cat([self.module(part) for part in torch.split(inputs, batch_size)])
        finally:
            for module, mode in modes:
                module.training = mode

    def require_prepared(self, argument: str) -> None:
        """Refuse a call for which the modified model has to be there."""
        if not hasattr(self, "module"):
            raise InvalidInput(argument, "a wrapper whose model is not modified yet", "fit, a step, or prepare(X, Y)")

    def evaluate(self) -> dict[str, float]:
        """Return loss and error of all samples, from cached features."""
        if self._cached is None or self._cached_targets is None:
            raise InvalidInput("evaluate", "no cached features", "a call in exploitation, without augmentation")
        with torch.no_grad():
            outputs = self._cached.outputs()
            loss = float(mean_loss(self.loss, outputs, self._cached_targets))
        wrong = error_rate(self.loss, outputs, self._cached_targets)
        return {"loss": loss, "error": math.nan if wrong is None else wrong}

    @property
    def cached(self) -> bool:
        """Whether exploitation goes on from cached features."""
        return self._cached is not None

    @property
    def error(self) -> float:
        """Share of samples in a wrong class at the last step, before it; NaN for the squared loss."""
        return math.nan if self._wrong is None else self._wrong

    def _inputs(self, X: Any, parameter: torch.Tensor | None = None) -> torch.Tensor:
        like = self.module.head.hidden if parameter is None else parameter
        x = as_inputs(X, like.device)
        return x.to(like.dtype) if x.is_floating_point() else x

    def _targets(self, Y: Any, n: int) -> torch.Tensor:
        hidden = self.module.head.hidden
        return as_training_targets(self.loss, Y, n, len(hidden), hidden)
