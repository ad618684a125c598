"""What every experiment of the paper is here: parts that can be run one by one, and a judgement of what they gave."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from alignver.errors import InvalidInput
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict

__all__ = ["Item", "Measured", "Part", "Run", "Setting", "compared"]

Measured = Mapping[str, Mapping[str, Any]]
"""What the parts gave, by key; a part that was not run is absent."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the person who reproduces an item chooses.

    Attributes
    ----------
    seeds : int or None
        How many seeds, from 0 up; None is the item's own number.
    datasets : tuple of str
        Of the item's data sets; empty for those that it takes by default.
    device : str
        A torch device.
    data_folder, cache : path or None
        Where the image sets are, and where features are kept.
    reduced : bool or None
        Whether long experiments are made smaller, which their results then say. None: unless there is a GPU.
    """

    seeds: int | None = None
    datasets: tuple[str, ...] = ()
    device: str = "cpu"
    data_folder: str | os.PathLike[str] | None = None
    cache: str | os.PathLike[str] | None = None
    reduced: bool | None = None

    @property
    def is_reduced(self) -> bool:
        """Whether long experiments are made smaller."""
        return not self.device.startswith("cuda") if self.reduced is None else self.reduced

    def on_cpu(self) -> Setting:
        """Return this setting for an experiment that runs on the CPU; refuse another device rather than not use it."""
        if self.device != "cpu":
            raise InvalidInput("device", repr(self.device), "'cpu', where this experiment runs")
        return self

    def __post_init__(self) -> None:
        if self.seeds is not None and (isinstance(self.seeds, bool) or self.seeds < 1):
            raise InvalidInput("seeds", f"seeds={self.seeds!r}", "an integer >= 1")

    def chosen(self, known: Sequence[str], default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the data sets to run: those asked for, in the item's order, or its default."""
        unknown = [name for name in self.datasets if name not in known]
        if unknown:
            raise InvalidInput("dataset", repr(unknown[0]), "one of " + ", ".join(known))
        if not self.datasets:
            return tuple(known if default is None else default)
        return tuple(name for name in known if name in self.datasets)


Run = Callable[[], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of an experiment that is run, kept and taken up again as a whole.

    Attributes
    ----------
    key : str
        Its name in the run folder and in reports, such as ``"two moons, seed 0"``.
    recipe : mapping
        Everything that decides the outcome besides the code: plain data. Another recipe is another part.
    run : callable
        Does the work and returns plain data.
    family : str
        Items whose parts are of one family share them; empty for parts of an item's own.
    """

    key: str
    recipe: Mapping[str, Any]
    run: Run
    family: str = ""


class Item(Protocol):
    """A figure or table of the paper.

    Attributes
    ----------
    name : str
        As the command line takes it: ``"figure1a"``.
    title, source : str
        What is shown, and where the paper shows it.
    datasets : tuple of str
        What ``--dataset`` can choose from; empty if there is nothing to choose.
    cost : str
        What the default setting takes on two cores, as measured; and what is known of a GPU.
    """

    name: str
    title: str
    source: str
    datasets: tuple[str, ...]
    cost: str

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return the parts that a setting asks for, cheapest first."""

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Return the paper's claims beside what was measured; UNDECIDED where parts are missing."""

    def draw(self, measured: Measured) -> Any:
        """Return the matplotlib figure of what was measured, or None."""


_KINDS = {Verdict.HOLDS: "agrees", Verdict.FAILS: "differs", Verdict.UNDECIDED: "undecided"}


def compared(
    item: Item,
    claim: str,
    verdict: Verdict,
    reason: str,
    *,
    paper: Any = None,
    ours: Any = None,
    evidence: Sequence[str] = (),
    bounds: Sequence[Bound] = (),
    seconds: float | None = None,
) -> CheckResult:
    """Return a claim of the paper beside our measurement as one result.

    Parameters
    ----------
    item : Item
        Names the result and its source.
    claim : str
        The paper's claim, in a few words.
    verdict : Verdict
        HOLDS if what was measured agrees with the claim.
    reason : str
        What was measured, in a sentence.
    paper, ours : plain data
        The paper's numbers and ours, under ``measured["paper"]`` and ``measured["ours"]``.

    Returns
    -------
    CheckResult
        NUMERICAL: one experiment, its seeds as stated.
    """
    return CheckResult(
        name=item.name,
        statement=f"{item.source}: {claim}",
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code=f"paper-{_KINDS[verdict]}",
        reason=reason,
        evidence=tuple(evidence),
        measured={"paper": paper, "ours": ours},
        bounds=tuple(bounds),
        cost={} if seconds is None else {"seconds": seconds},
    )
