"""What Theorem 3 stands on, followed along a run: Assumption 1 at every check, and the bound itself if asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignver.checks.alignment_evaluator import AlignmentEvaluation, AlignmentEvaluator
from alignver.checks.common_structure import check_common_structure, structure_here
from alignver.errors import InvalidInput
from alignver.report.history import Record
from alignver.theory.alignment_bounds import beta_hat, target_loss, theorem_3, zeta

__all__ = ["Theorem3Conditions"]

_KEYS = ("lipschitz", "rate", "eta")


@dataclasses.dataclass(eq=False)
class Theorem3Conditions:
    """Looks at Assumption 1, and keeps the numbers of Theorem 3 over the aligned checks.

    Attributes
    ----------
    lookout : Lookout
    names : tuple of str or None
        S; None if it is not looked at, or could not be found.
    verdict : str or None
        Where S was looked for and not found, what was said of it.
    constants : mapping or None
        ``lipschitz``, ``rate``, ``eta``, ``alpha`` and ``target``, the loss at eta Y*.
    """

    lookout: AlignmentEvaluator
    names: tuple[str, ...] | None
    verdict: str | None
    constants: Mapping[str, float] | None
    _losses: list[float] = dataclasses.field(default_factory=list)
    _sizes: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(
        cls,
        lookout: AlignmentEvaluator,
        structure: bool | Sequence[str],
        theorem: Mapping[str, float] | None,
        Y: Any,
        loss: str,
    ) -> Theorem3Conditions:
        """Find S, and check the constants.

        Raises
        ------
        InvalidInput
            A name that no parameter has; constants that the theorem does not allow, or without ``structure``.
        """
        if isinstance(structure, str) or not isinstance(structure, bool | Sequence):
            raise InvalidInput("structure", repr(structure), "True, or names of parameters or modules")
        names: tuple[str, ...] | None = None
        verdict = None
        if structure is True:
            found = check_common_structure(lookout.asked.model, lookout.asked.x)
            listed = tuple(found.measured.get("S") or ())
            verdict = found.verdict.value
            # Single entries of a tensor have no name to look them up by again.
            names = listed if verdict == "HOLDS" and not any("[" in name for name in listed) else None
        elif structure:
            names = tuple(structure)
            structure_here(lookout.asked.model, lookout.asked.x, names)
        if theorem is None:
            return cls(lookout, names, verdict, None)
        if not structure:
            raise InvalidInput("theorem_3", "no structure to go with it", "structure=True: Assumption 1 is a premise")
        return cls(lookout, names, verdict, _constants(lookout, theorem, Y, loss))

    def read(self, look: AlignmentEvaluation, step: int, loss: float) -> dict[str, Any]:
        """Return the fields ``structure`` and ``theorem_3`` of a record."""
        if self.names is None:
            return {} if self.verdict is None else {"structure": {"verdict": self.verdict, "residual": None}}
        asked = self.lookout.asked
        result, size = structure_here(asked.model, asked.x, self.names)
        found: dict[str, Any] = {"verdict": result.verdict.value, "residual": result.measured["residual"]}
        if self.constants is None:
            return {"structure": found}
        aligned = all(answer["verdict"] == "HOLDS" for answer in look.answers.values())
        counted = aligned and found["verdict"] == "HOLDS"
        beta = abs(self.constants["eta"]) * self._solution(look) if counted else None
        if beta is not None:
            self._count(loss, size, beta)
        return {"structure": found, "theorem_3": self._bound(size, beta, aligned, found["verdict"])}

    def replay(self, records: Iterable[Record]) -> None:
        """Take up the numbers of an earlier part of the run."""
        for record in records:
            kept = record.theorem_3 or {}
            if kept.get("beta_norm") is not None and record.loss is not None:
                self._count(record.loss, kept["nu_norm"], kept["beta_norm"])

    def _count(self, loss: float, nu_norm: float, beta_norm: float) -> None:
        self._losses.append(loss)
        self._sizes.append((nu_norm, beta_norm))

    def _bound(self, nu_norm: float, beta_norm: float | None, aligned: bool, structure: str) -> dict[str, Any]:
        assert self.constants is not None
        known = {
            "nu_norm": nu_norm,
            "beta_norm": beta_norm,
            "aligned_checks": len(self._losses),
            "premises": {
                "alignment at this check": aligned,
                "Assumption 1 at this check": structure,
                "lipschitz": "the caller's word",
                "gradient descent with a constant step": "the caller's word",
            },
            **self.constants,
        }
        if not self._losses:
            return {**known, "bound": None, "least_loss": None}
        nus, betas = zip(*self._sizes)
        c = self.constants
        size = zeta(nus, betas)
        bound = theorem_3(self._losses[0], c["target"], c["lipschitz"], c["alpha"], size, len(self._losses))
        return {**known, "bound": bound, "least_loss": min(self._losses)}

    def _solution(self, look: AlignmentEvaluation) -> float:
        """Return ||J^+ y||, from what the look has at hand."""
        target, y = self.lookout.target, self.lookout.asked.y
        scale = float(np.linalg.norm(y))
        if look.iterates and look.matrix is None:
            return scale * min(look.iterates, key=lambda iterate: iterate.residual).size
        if look.matrix is not None:
            tau = max(answer["tolerance"] for answer in look.answers.values())
            return scale * float(np.linalg.norm(beta_hat(look.matrix, target, 1.0, tolerance=tau).beta))
        assert look.gram is not None  # of full rank: J^+ = J^T M^-1
        return scale * math.sqrt(float(target @ np.linalg.solve(look.gram, target)))


def _constants(lookout: AlignmentEvaluator, theorem: Mapping[str, float], Y: Any, loss: str) -> dict[str, float]:
    unknown = sorted(set(theorem) - set(_KEYS))
    missing = sorted({"lipschitz", "rate"} - set(theorem))
    if unknown or missing:
        raise InvalidInput("theorem_3", f"{dict(theorem)!r}", "lipschitz, rate and, if not 1, eta")
    values = {"eta": 1.0, **{key: float(value) for key, value in theorem.items()}}
    alpha = 0.5 * values["lipschitz"] * values["rate"]
    if not 0.0 < alpha < 1.0 or not values["lipschitz"] > 0.0:
        got = f"rate {values['rate']:g} beside lipschitz {values['lipschitz']:g}"
        raise InvalidInput("theorem_3", got, "a rate below 2 / lipschitz, both positive")
    return {
        **values,
        "alpha": alpha,
        "target": target_loss(loss, Y, lookout.asked.of_all(lookout.asked.targets), values["eta"]),
    }
