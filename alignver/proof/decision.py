"""What the ladder answers, and the record of what it tried on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from alignver.kernel import Certificate
from alignver.proof.ball import Ball
from alignver.results import Frozen, Verdict, plain

__all__ = ["Decision", "Trail"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """A verdict with proof, or UNDECIDED.

    Attributes
    ----------
    verdict : Verdict
        HOLDS and FAILS are proofs, each with a certificate; everything else is UNDECIDED.
    step : str
        The step that decided: ``"structure"``, ``"gram"``, ``"right inverse"``, ``"residual"`` or
        ``"exact"``.
    reason : str
        One sentence; for UNDECIDED, what would decide it.
    certificate : Certificate or None
    witness : mapping or None
        Plain data; present whenever the verdict is FAILS.
    tried : tuple of str
        Every step that did not decide, why, and its seconds.
    measured : mapping
        Verified bounds, such as ``s_min_lower``.
    """

    verdict: Verdict
    step: str
    reason: str
    certificate: Certificate | None = None
    witness: Mapping[str, Any] | None = None
    tried: tuple[str, ...] = ()
    measured: Mapping[str, Any] = dataclasses.field(default_factory=Frozen)


class Trail:
    """Collects what was tried and measured, and turns it into a :class:`Decision`."""

    def __init__(self, ball: Ball | None) -> None:
        self.ball = ball
        self.tried: list[str] = []
        self.measured: dict[str, Any] = {}
        self._start = time.perf_counter()

    def missed(self, step: str, reason: str) -> None:
        """Record a step that did not decide."""
        now = time.perf_counter()
        self.tried.append(f"{step}: {reason} ({now - self._start:.2g} s)")
        self._start = now

    def decided(
        self,
        verdict: Verdict,
        step: str,
        reason: str,
        certificate: Certificate,
        witness: Mapping[str, Any] | None = None,
    ) -> Decision:
        """Return the verdict with everything collected so far."""
        return Decision(
            verdict,
            step,
            reason,
            certificate,
            None if witness is None else plain(dict(witness)),
            tuple(self.tried),
            plain(self.measured),
        )

    def undecided(self, reason: str) -> Decision:
        """Return UNDECIDED."""
        return Decision(Verdict.UNDECIDED, "none", reason, None, None, tuple(self.tried), plain(self.measured))
