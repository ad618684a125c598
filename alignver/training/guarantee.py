"""What is known of the exploitation phase when it begins: ranks, conditioning and stable steps, repaired if need be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from alignver.checks.exploitation_ranks import Ranks, prove_ranks
from alignver.errors import printable
from alignver.proof.rounding import FloatArray
from alignver.results import shown_down
from alignver.theory.exploitation import Exploitation
from alignver.theory.smoothness import Smoothness, smoothness
from alignver.training.repair import Repaired, repair

__all__ = ["Guarantee", "guarantee"]

LARGEST = 6000
"""Samples up to which the ranks are proved unasked: a verified Cholesky factorization of that order an output."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Guarantee:
    """The state of affairs at tau.

    Attributes
    ----------
    model : Exploitation
        Features, gates (repaired if they were) and output weights.
    weights : (m_y, h, m) array
        W^(H-1,j), refitted if gates were replaced.
    before : Ranks or None
        What is proved of the trained gates; None where it was not looked at.
    after : Ranks or None
        What is proved of ``model``'s.
    replaced : tuple of tuple of int
        Units with new gates, for each output.
    moved : float
        Largest change of an output on the training samples by the repair.
    smoothness : Smoothness
        Lhat and with it the stable steps.
    notes : tuple of str
        What else the phase rests on: layers that are held still, an optimiser that adds to the loss.
    batch_size : int or None
        Samples in the smallest batch of a step; None: all.
    taken_back : float
        Share of the way to their initial values that the parameters before the last hidden layer were taken back.
    """

    model: Exploitation
    weights: FloatArray
    before: Ranks | None
    after: Ranks | None
    replaced: tuple[tuple[int, ...], ...]
    moved: float
    smoothness: Smoothness
    notes: tuple[str, ...] = ()
    batch_size: int | None = None
    taken_back: float = 0.0

    def __repr__(self) -> str:
        """Say it in words: the arrays would fill screens."""
        return printable("Guarantee(" + "; ".join(self.sentences) + ")")

    @property
    def steps(self) -> Smoothness:
        """The constants that a step has to respect: those of a batch, whose loss may bend more than the whole one."""
        if self.batch_size is None:
            return self.smoothness
        return self.smoothness.of_batches(self.model.n, self.batch_size)

    @property
    def proved(self) -> bool:
        """Whether rank n is proved of every output: convergence to a global minimum is then a theorem (Theorem 4)."""
        return self.after is not None and self.after.all

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say it in words."""
        count, n = self.model.m_y, self.model.n
        said = []
        if self.before is None:
            said.append(f"the ranks were not looked at: {n} samples, more than {LARGEST}")
        else:
            good = sum(entry is not None for entry in self.before.entries)
            said.append(f"rank n = {n} of the trained gates is proved for {good} of {count} outputs")
            if good < count:
                said.append(f"without it: {self.before.reasons[0]}")
            if self.before.refuted:
                said.append("no gates give these samples rank n: nothing was replaced")
        units = [len(own) for own in self.replaced]
        if any(units):
            spread = str(units[0]) if len(set(units)) == 1 else f"{min(units)} to {max(units)}"
            said.append(
                f"gates of {spread} of {self.model.h} units replaced for each output concerned; the outputs on the "
                f"training samples moved by {self.moved:.1e} at most"
            )
        if self.taken_back:
            said.append(
                f"no gates told the samples apart by the trained features: the parameters before the last hidden layer "
                f"were taken {self.taken_back:g} of the way back to their initial values"
            )
        if self.after is not None and not self.after.all:
            good = sum(entry is not None for entry in self.after.entries)
            if any(units):
                said.append("new gates without a proof have rank n in floating point only")
            said.append(f"rank n is proved for {good} of {count} outputs: the global minimum is not promised")
        if self.after is not None and self.after.all:
            least = min(entry["s_min"] for entry in self.after.entries if entry is not None)
            said.append(f"rank n is proved for every output, s_min >= {shown_down(least, 2)}")
        bounds = self.smoothness
        said.append(
            f"Lhat {bounds.spectral:.3g} ({bounds.paper:.3g} by Lemma 8): step 1/Lhat {bounds.step:.3g}, "
            f"stable below {shown_down(bounds.limit)}"
        )
        if self.batch_size is not None:
            steps = self.steps
            said.append(
                f"for batches of {self.batch_size}: Lhat {steps.spectral:.3g}, step {steps.step:.3g}, stable below "
                f"{shown_down(steps.limit)}"
            )
        return (*said, *self.notes)

    def summary(self) -> Mapping[str, Any]:
        """Return the numbers as plain data."""
        entries = () if self.after is None else self.after.entries
        return {
            "samples": self.model.n,
            "outputs": self.model.m_y,
            "width": self.model.h,
            "proved_before": None if self.before is None else self.before.all,
            "proved": self.proved,
            "s_min": [None if entry is None else entry["s_min"] for entry in entries],
            "replaced": [len(own) for own in self.replaced],
            "moved": self.moved,
            "taken_back": self.taken_back,
            "Lhat": self.smoothness.spectral,
            "Lhat_paper": self.smoothness.paper,
            "stable_step": self.steps.limit,
            "notes": list(self.notes),
        }


def guarantee(
    model: Exploitation,
    weights: FloatArray,
    *,
    loss: str,
    mode: str,
    seed: int = 0,
    prove: bool | None = None,
    outputs: FloatArray | None = None,
) -> Guarantee:
    """Prove the ranks, repair the gates where that fails and a repair is wanted, and compute Lhat.

    Parameters
    ----------
    model : Exploitation
        With the gates of theta^tau.
    weights : (m_y, h, m) array
    loss : str
    mode : {"none", "redraw", "staircase"}
        Of :func:`~alignver.training.repair.repair`.
    seed : int
    prove : bool, optional
        Whether to prove ranks. None: up to 6000 samples.
    outputs : (n, m_y) array, optional
        What a repair keeps on the samples; None: the model's outputs.

    Returns
    -------
    Guarantee
    """
    wanted = model.n <= LARGEST if prove is None else prove
    before = prove_ranks(model) if wanted else None
    none: tuple[tuple[int, ...], ...] = ((),) * model.m_y
    if before is None or (before.all and outputs is None) or mode == "none":
        return Guarantee(model, weights, before, before, none, 0.0, smoothness(model, loss))
    found: Repaired = repair(model, weights, before, mode=mode, seed=seed, outputs=outputs)
    return Guarantee(
        found.model, found.weights, before, found.ranks, found.replaced, found.moved, smoothness(found.model, loss)
    )
