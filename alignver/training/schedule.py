"""When a tracker looks: every k steps, every k epochs, or as often as a share of the training time pays for."""

from __future__ import annotations

import dataclasses
import re
import time

from alignver.errors import InvalidInput

__all__ = ["Clock", "Schedule"]

_NEED = "a number of steps (10), of epochs ('epoch', '5 epochs'), or a share of the training time ('5%')"
_WORDS = re.compile(r"(?:(\d+) +)?(step|epoch)s?")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One of three ways to say how often.

    Attributes
    ----------
    steps, epochs : int
        0 if it is another way.
    share : float
        Of the training time; 0.0 if it is another way.

    Examples
    --------
    >>> Schedule.of(10), Schedule.of("epoch").epochs, Schedule.of("5%").share
    (Schedule(steps=10, epochs=0, share=0.0), 1, 0.05)
    """

    steps: int = 0
    epochs: int = 0
    share: float = 0.0

    @classmethod
    def of(cls, every: int | str) -> Schedule:
        """Read what a person wrote.

        Raises
        ------
        InvalidInput
            Anything else than a positive number of steps or epochs, or a share above 0 %.
        """
        got = f"every={every!r}"
        if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
            return cls(steps=every)
        if not isinstance(every, str):
            raise InvalidInput("every", got, _NEED)
        text = every.strip().lower()
        if text.endswith("%"):
            try:
                share = float(text[:-1]) / 100.0
            except ValueError as error:
                raise InvalidInput("every", got, _NEED) from error
            if 0.0 < share < float("inf"):
                return cls(share=share)
        found = _WORDS.fullmatch(text)
        count = int(found.group(1) or 1) if found else 0
        if found is None or count < 1:
            raise InvalidInput("every", got, _NEED)
        return cls(steps=count) if found.group(2) == "step" else cls(epochs=count)

    def due_at_step(self, last: int, step: int, clock: Clock) -> bool:
        """Whether a check is due at a step, the one before having been ``last``."""
        if self.steps:
            return step // self.steps > last // self.steps
        return self.share > 0.0 and clock.affords(self.share)

    def due_at_epoch(self, epoch: int, clock: Clock) -> bool:
        """Whether a check is due at the end of an epoch."""
        return self.epochs > 0 and epoch % self.epochs == 0


class Clock:
    """Keeps the time of the checks apart from that of the training."""

    def __init__(self) -> None:
        self.checking = 0.0
        self._last = 0.0
        self._began: float | None = None

    def start(self) -> None:
        """Begin to count, once."""
        if self._began is None:
            self._began = time.perf_counter()

    @property
    def training(self) -> float:
        """Seconds since the start that were not spent on checks."""
        return 0.0 if self._began is None else time.perf_counter() - self._began - self.checking

    def spent(self, seconds: float) -> None:
        """Note what a check took."""
        self.checking += seconds
        self._last = seconds

    def affords(self, share: float) -> bool:
        """Whether a check as long as the last one keeps all of them within a share of the training time."""
        return self.checking + self._last <= share * self.training
