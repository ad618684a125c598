"""The codes of answers and of refused arguments: meaning, cause, remedy, and an example that gives each.

The texts are in ``codes.toml``. Tests run every example; ``docs/codes.md`` is made from the same file.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import tomllib
from importlib import resources
from typing import Any

from alignver.errors import InvalidInput
from alignver.require import CODES, similar


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a code stands for.

    Attributes
    ----------
    codes : tuple of str
        The codes of this kind; ``*`` stands for any text.
    meaning, cause, remedy : str
    example : str
        Python that gives this answer as ``result``, or raises this refusal; ``np``, ``torch`` and ``av`` are imported.
    """

    codes: tuple[str, ...]
    meaning: str
    cause: str
    remedy: str
    example: str

    def __str__(self) -> str:
        lines = [self.meaning, f"cause: {self.cause}", f"remedy: {self.remedy}", "example:"]
        return "\n".join(lines + [f"    {line}" for line in self.example.splitlines()])


@functools.cache
def _listed() -> tuple[tuple[Explanation, ...], tuple[Explanation, ...]]:
    document = tomllib.loads(resources.files("alignver").joinpath("codes.toml").read_text(encoding="utf-8"))

    def read(entry: dict[str, Any]) -> Explanation:
        codes = tuple(entry["codes"])
        meaning = entry.get("meaning") or CODES[codes[0]]
        return Explanation(codes, meaning, entry["cause"], entry["remedy"], entry["example"].strip())

    return tuple(map(read, document["kind"])), tuple(map(read, document["refusal"]))


def answers() -> tuple[Explanation, ...]:
    """Return the kinds of answers: the codes of :class:`~alignver.results.CheckResult`."""
    return _listed()[0]


def refusals() -> tuple[Explanation, ...]:
    """Return the kinds of refusals: the codes of :class:`~alignver.errors.InvalidInput`."""
    return _listed()[1]


def explain(code: str) -> Explanation:
    """Return what a code of a result or of a refused argument stands for.

    Raises
    ------
    InvalidInput
        There is no such code; the message names similar ones.

    Examples
    --------
    >>> explain("data-conflict").meaning
    'two equal inputs have different targets: no model fits both, at any parameters'
    """
    for kind in (*answers(), *refusals()):
        if any(fnmatch.fnmatchcase(code, pattern) for pattern in kind.codes):
            return kind
    known = [listed for kind in (*answers(), *refusals()) for listed in kind.codes]
    need = "a code of a result or of a refused argument, such as 'data-conflict'" + similar(code, known)
    raise InvalidInput("code", repr(code), need, code="not-a-choice")
