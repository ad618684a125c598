"""The conditions of Theorem 3 along a run: Assumption 1 at every check, and the bound if its constants are given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignver.checks.alignment_evaluator import AlignmentEvaluation
from alignver.checks.common_structure import check_common_structure, structure_here
from alignver.errors import InvalidInput
from alignver.jacobians.prepare import PreparedAlignment
from alignver.report.history import Record
from alignver.theory.alignment_bounds import beta_hat, target_loss, theorem_3, zeta


@dataclasses.dataclass(eq=False)
class Theorem3Conditions:
    """Assumption 1 at every check, and the quantities of Theorem 3 over the aligned checks.

    Attributes
    ----------
    prepared : PreparedAlignment
        Model, inputs and targets.
    names : tuple of str or None
        S; None if Assumption 1 is not checked, or no S was found.
    verdict : str or None
        The verdict of the search for S; None if there was no search.
    constants : mapping or None
        ``lipschitz``, ``rate``, ``eta``, ``alpha`` and ``target``, the loss at eta Y*.
    """

    prepared: PreparedAlignment
    names: tuple[str, ...] | None
    verdict: str | None
    constants: Mapping[str, float] | None
    _losses: list[float] = dataclasses.field(default_factory=list)
    _sizes: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(
        cls,
        prepared: PreparedAlignment,
        structure: bool | Sequence[str],
        theorem: Mapping[str, float] | None,
        loss: str,
    ) -> Theorem3Conditions:
        """Find S, and check the constants.

        Raises
        ------
        InvalidInput
            A name that is not that of a parameter; constants that the theorem does not allow; constants without
            ``structure``.
        """
        if isinstance(structure, str) or not isinstance(structure, bool | Sequence):
            need = "True, or names of parameters or modules"
            raise InvalidInput("structure", repr(structure), need, code="wrong-type")
        names: tuple[str, ...] | None = None
        verdict = None
        if structure is True:
            result = check_common_structure(prepared.model, prepared.x)
            listed = tuple(result.measured.get("S") or ())
            verdict = result.verdict.value
            # Single entries of a tensor have no name by which later checks could find them.
            names = listed if verdict == "HOLDS" and not any("[" in name for name in listed) else None
        elif structure:
            names = tuple(structure)
            structure_here(prepared.model, prepared.x, names)
        if theorem is None:
            return cls(prepared, names, verdict, None)
        if not structure:
            need = "structure=True: Assumption 1 is a premise"
            raise InvalidInput("theorem_3", "theorem_3 without structure", need, code="conflicting-arguments")
        return cls(prepared, names, verdict, _constants(prepared, theorem, loss))

    def read(self, evaluation: AlignmentEvaluation, loss: float) -> dict[str, Any]:
        """Return the fields ``structure`` and ``theorem_3`` of a record."""
        if self.names is None:
            return {} if self.verdict is None else {"structure": {"verdict": self.verdict, "residual": None}}
        result, size = structure_here(self.prepared.model, self.prepared.x, self.names)
        structure: dict[str, Any] = {"verdict": result.verdict.value, "residual": result.measured["residual"]}
        if self.constants is None:
            return {"structure": structure}
        aligned = all(answer["verdict"] == "HOLDS" for answer in evaluation.answers.values())
        beta = None
        if aligned and structure["verdict"] == "HOLDS":
            beta = abs(self.constants["eta"]) * self._solution(evaluation)
            self._count(loss, size, beta)
        return {"structure": structure, "theorem_3": self._bound(size, beta, aligned, structure["verdict"])}

    def replay(self, records: Iterable[Record]) -> None:
        """Add the aligned checks of an earlier part of the run."""
        for record in records:
            sizes = record.theorem_3 or {}
            if sizes.get("beta_norm") is not None and record.loss is not None:
                self._count(record.loss, sizes["nu_norm"], sizes["beta_norm"])

    def _count(self, loss: float, nu_norm: float, beta_norm: float) -> None:
        self._losses.append(loss)
        self._sizes.append((nu_norm, beta_norm))

    def _bound(self, nu_norm: float, beta_norm: float | None, aligned: bool, structure: str) -> dict[str, Any]:
        assert self.constants is not None
        fields = {
            "nu_norm": nu_norm,
            "beta_norm": beta_norm,
            "aligned_checks": len(self._losses),
            "premises": {
                "alignment at this check": aligned,
                "Assumption 1 at this check": structure,
                "lipschitz": "asserted by the caller",
                "gradient descent with a constant step": "asserted by the caller",
            },
            **self.constants,
        }
        if not self._losses:
            return {**fields, "bound": None, "least_loss": None}
        nus, betas = zip(*self._sizes)
        c, size = self.constants, zeta(nus, betas)
        bound = theorem_3(self._losses[0], c["target"], c["lipschitz"], c["alpha"], size, len(self._losses))
        return {**fields, "bound": bound, "least_loss": min(self._losses)}

    def _solution(self, evaluation: AlignmentEvaluation) -> float:
        """Return ||J^+ y||, from what the evaluation has computed."""
        y, scale = self.prepared.y, float(np.linalg.norm(self.prepared.y))
        target = y / scale if scale else y
        if evaluation.matrix is not None:
            tau = max(answer["tolerance"] for answer in evaluation.answers.values())
            return scale * float(np.linalg.norm(beta_hat(evaluation.matrix, target, 1.0, tolerance=tau).beta))
        if evaluation.iterates:
            return scale * min(evaluation.iterates, key=lambda iterate: iterate.residual).size
        assert evaluation.gram is not None  # of full rank: J^+ = J^T M^-1
        return scale * math.sqrt(float(target @ np.linalg.solve(evaluation.gram, target)))


def _constants(prepared: PreparedAlignment, theorem: Mapping[str, float], loss: str) -> dict[str, float]:
    if not isinstance(theorem, Mapping) or not {"lipschitz", "rate"} <= set(theorem) <= {"lipschitz", "rate", "eta"}:
        raise InvalidInput("theorem_3", f"{theorem!r}", "lipschitz, rate and, if not 1, eta")
    values = {"eta": 1.0, **{key: float(value) for key, value in theorem.items()}}
    alpha = 0.5 * values["lipschitz"] * values["rate"]
    if not 0.0 < alpha < 1.0 or not values["lipschitz"] > 0.0:
        got = f"rate {values['rate']:g} with lipschitz {values['lipschitz']:g}"
        raise InvalidInput("theorem_3", got, "a rate below 2 / lipschitz, both positive")
    target = target_loss(loss, prepared.given, prepared.of_all(prepared.targets), values["eta"])
    return {**values, "alpha": alpha, "target": target}
