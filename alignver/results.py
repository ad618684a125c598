"""What a check returns: frozen plain data that prints well, travels as JSON and refuses to be misread as a bool.

Verdict, rigor and subject are independent: HOLDS, FAILS or UNDECIDED; PROOF, NUMERICAL or STATISTICAL; about the
network, about the matrix that was computed, or about the data.
A HOLDS with PROOF carries a certificate and a FAILS with PROOF a witness; building one without raises ``ValueError``,
since a proof nobody can re-check is the worst bug this project can have.
"""

from __future__ import annotations

import dataclasses
import decimal
import enum
import html
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

from alignver.errors import printable

__all__ = [
    "SCHEMA_VERSION",
    "Bound",
    "CheckResult",
    "Report",
    "Rigor",
    "Subject",
    "Summarised",
    "Tolerance",
    "Verdict",
    "VerificationFailed",
    "shown_down",
    "shown_up",
]

SCHEMA_VERSION = 2
"""Version of the JSON document that :meth:`Report.to_dict` makes; it changes when a reader would have to.

Version 1 had no ``subject``, ``code``, ``next_steps`` and ``plan``; it is still read.
"""


class _NoTruth(enum.StrEnum):
    """A string enumeration, equal to its names, whose members have no truth value."""

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}.{self.name} has no truth value: compare it with 'is', or call result.require()"
        )


class Verdict(_NoTruth):
    """The answer to a check's question.

    Examples
    --------
    >>> Verdict.HOLDS is Verdict("HOLDS"), Verdict.HOLDS == "HOLDS"
    (True, True)
    >>> bool(Verdict.FAILS)
    Traceback (most recent call last):
        ...
    TypeError: Verdict.FAILS has no truth value: compare it with 'is', or call result.require()
    """

    HOLDS = "HOLDS"
    FAILS = "FAILS"
    UNDECIDED = "UNDECIDED"


class Rigor(_NoTruth):
    """How the answer was reached: a proof, floating-point evidence at a tolerance, or a sample."""

    PROOF = "PROOF"
    NUMERICAL = "NUMERICAL"
    STATISTICAL = "STATISTICAL"


class Subject(_NoTruth):
    """What the answer is about.

    The network: the function of real arithmetic that the model writes down, at its parameters and inputs. The computed
    matrix: exactly these floats, or a ball around them. The data: every model that is a function of its input.

    Examples
    --------
    >>> Subject.COMPUTED_MATRIX.words
    'computed matrix'
    """

    NETWORK = "NETWORK"
    COMPUTED_MATRIX = "COMPUTED_MATRIX"
    DATA = "DATA"

    @property
    def words(self) -> str:
        """The subject as a report names it."""
        return self.value.lower().replace("_", " ")


class Frozen(dict[str, Any]):
    """A dict that cannot be changed after it was built (shallow: its values are made plain data first)."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("the data of a result is frozen; build a new result with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Frozen], tuple[dict[str, Any]]]:
        return Frozen, (dict(self),)


def plain(value: Any) -> Any:
    """Turn a value into frozen plain data: bool, int, float, str, None, tuples and :class:`Frozen` dicts of them.

    NumPy scalars become Python numbers and arrays become (nested) tuples; anything else is a ``TypeError``, so that
    what a result holds can always be written as JSON and read back equal.

    Examples
    --------
    >>> import numpy as np
    >>> plain({"rank": np.int64(3), "levels": np.array([1.0, 0.5])})
    {'rank': 3, 'levels': (1.0, 0.5)}
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        # numpy.float64 is a float: rebuild, so that repr and pickles do not depend on numpy.
        return float(value) if isinstance(value, float) else value
    if isinstance(value, Mapping):
        return Frozen({str(key): plain(item) for key, item in value.items()})
    if isinstance(value, tuple | list):
        return tuple(plain(item) for item in value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"a result holds plain data only, not {type(value).__name__}")


def encode(value: Any) -> Any:
    """Plain data to what strict JSON can say: a non-finite float becomes {"float": "inf"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"float"} and isinstance(value["float"], str):
            return float(value["float"])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


@runtime_checkable
class Summarised(Protocol):
    """A certificate as a result sees it: something that can say what it is in plain data."""

    def summary(self) -> Mapping[str, Any]:
        """Claim, method, size and where it was saved."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """A tolerance and where it came from.

    Attributes
    ----------
    rule : str
        Its name: a rank rule, or ``"given"``.
    value : float
        Its value, in the units of the matrix's singular values.
    formula : str
        The formula that gave the value.
    source : str
        The reference of the formula.
    eps : float
        The machine epsilon in it: of the dtype in which the matrix was computed.
    """

    rule: str
    value: float
    formula: str
    source: str
    eps: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "eps", float(self.eps))


_RELATIONS = {
    "<=": lambda value, limit: value <= limit,
    "<": lambda value, limit: value < limit,
    ">=": lambda value, limit: value >= limit,
    ">": lambda value, limit: value > limit,
    "==": lambda value, limit: value == limit,
}


@dataclasses.dataclass(frozen=True)
class Bound:
    """A measured value beside the limit that theory or tolerance sets for it: ``value relation limit``.

    Examples
    --------
    >>> Bound("residual", 3e-15, "<=", 1.5e-8).satisfied
    True
    """

    name: str
    value: float
    relation: str
    limit: float

    def __post_init__(self) -> None:
        if self.relation not in _RELATIONS:
            raise ValueError(f"relation={self.relation!r}: needs one of {', '.join(_RELATIONS)}")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "limit", float(self.limit))

    @property
    def satisfied(self) -> bool:
        """Whether the relation is true of the two numbers as they stand."""
        return bool(_RELATIONS[self.relation](self.value, self.limit))


@dataclasses.dataclass(frozen=True, repr=False)
class CheckResult:
    """One check's answer with everything it rests on.

    Attributes
    ----------
    name : str
        The check, as it is called: ``"membership"``, ``"rank"``.
    statement : str
        What was checked, with the source's own name: ``"Data-architecture alignment (Definition 2)"``.
    verdict, rigor : Verdict, Rigor
        The answer and how it was reached.
    reason : str
        One sentence that a person can act on.
    subject : Subject
        What the answer is about.
    code : str
        A stable name of the kind of answer, for programs: ``"data-conflict"``. ``docs/verdicts.md`` lists them.
    next_steps : tuple of str
        What to try, in this order.
    evidence : tuple of str
        Further sentences, most important first; what the terminal report shows.
    measured : mapping
        Every number behind the sentences, as plain data.
    bounds : tuple of Bound
        Measured values beside their limits.
    tolerance : Tolerance or None
        The tolerance of a NUMERICAL verdict.
    witness : mapping or None
        What refutes (or shows) the claim: indices, a vector, a pair of samples.
    certificate : Certificate, mapping or None
        What re-checks a proof; after a JSON round trip, its summary.
    cost : mapping
        ``seconds`` and, where known, ``peak_bytes``.
    plan : mapping or None
        How it was computed, and what that was expected to take: ``engine``, ``reason``, ``peak_bytes``, ``flops``.
    """

    name: str
    statement: str
    verdict: Verdict
    rigor: Rigor
    reason: str
    evidence: tuple[str, ...] = ()
    measured: Mapping[str, Any] = dataclasses.field(default_factory=Frozen)
    bounds: tuple[Bound, ...] = ()
    tolerance: Tolerance | None = None
    witness: Mapping[str, Any] | None = None
    certificate: Summarised | Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)
    cost: Mapping[str, Any] = dataclasses.field(default_factory=Frozen)
    subject: Subject = dataclasses.field(kw_only=True)
    code: str = dataclasses.field(kw_only=True)
    next_steps: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    plan: Mapping[str, Any] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdict", Verdict(self.verdict))
        object.__setattr__(self, "rigor", Rigor(self.rigor))
        object.__setattr__(self, "subject", Subject(self.subject))
        object.__setattr__(self, "evidence", tuple(self.evidence))
        object.__setattr__(self, "next_steps", tuple(self.next_steps))
        object.__setattr__(self, "bounds", tuple(self.bounds))
        for field in ("measured", "cost"):
            object.__setattr__(self, field, plain(getattr(self, field)))
        for field in ("witness", "plan"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, plain(getattr(self, field)))
        if self.certificate is not None and not isinstance(self.certificate, Summarised):
            object.__setattr__(self, "certificate", plain(self.certificate))
        if self.rigor is Rigor.PROOF and self.verdict is Verdict.HOLDS and self.certificate is None:
            raise ValueError("a HOLDS with PROOF needs a certificate")
        if self.rigor is Rigor.PROOF and self.verdict is Verdict.FAILS and self.witness is None:
            raise ValueError("a FAILS with PROOF needs a witness")

    def __bool__(self) -> NoReturn:
        raise TypeError("a result has no truth value: look at result.verdict, or call result.require()")

    def __str__(self) -> str:
        """Return the terminal report, without colour."""
        return "\n".join(
            [f"{printable(self.statement).ljust(56)}  {self.answer}", *(f"  {line}" for line in self.lines())]
        )

    def __repr__(self) -> str:
        """Return one line."""
        return f"<CheckResult {self.name}: {self.answer}; {printable(self.reason)}>"

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"

    @property
    def answer(self) -> str:
        """Verdict, rigor and subject in words: ``"HOLDS  proof (computed matrix)"``."""
        return f"{self.verdict}  {self.rigor.value.lower()} ({self.subject.words})"

    def lines(self) -> tuple[str, ...]:
        """Return reason, evidence, what to try and the cost, a sentence each: what every text report is made of.

        Each is a printable line, whatever is in the names that it quotes; ``reason`` and ``evidence`` stay as they are.
        """
        cost = [f"{self.cost['seconds']:.1f} s"] if "seconds" in self.cost else []
        if "peak_bytes" in self.cost:
            cost.append(f"{self.cost['peak_bytes'] / 1e9:.1f} GB")
        steps = (f"next: {step}" for step in self.next_steps)
        return tuple(map(printable, (self.reason, *self.evidence, *steps, *([", ".join(cost)] if cost else []))))

    def require(self) -> CheckResult:
        """Return the result itself if it HOLDS; raise :class:`VerificationFailed` otherwise.

        An UNDECIDED result raises too: what is not established is not to be relied on.
        """
        if self.verdict is not Verdict.HOLDS:
            raise VerificationFailed(self)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data; :meth:`from_dict` reads it back."""
        certificate = self.certificate
        if isinstance(certificate, Summarised):
            certificate = plain(dict(certificate.summary()))
        document: dict[str, Any] = encode(
            {
                "name": self.name,
                "statement": self.statement,
                "verdict": self.verdict.value,
                "rigor": self.rigor.value,
                "subject": self.subject.value,
                "code": self.code,
                "reason": self.reason,
                "next_steps": self.next_steps,
                "evidence": self.evidence,
                "measured": self.measured,
                "bounds": [dataclasses.asdict(bound) for bound in self.bounds],
                "tolerance": None if self.tolerance is None else dataclasses.asdict(self.tolerance),
                "witness": self.witness,
                "certificate": certificate,
                "cost": self.cost,
                "plan": self.plan,
            }
        )
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> CheckResult:
        """Rebuild a result from :meth:`to_dict`, of this version of the schema or of version 1."""
        fields = {**_FROM_VERSION_1, **decode(document)}
        fields["bounds"] = tuple(Bound(**bound) for bound in fields["bounds"])
        if fields["tolerance"] is not None:
            fields["tolerance"] = Tolerance(**fields["tolerance"])
        return cls(**fields)


_FROM_VERSION_1 = {"subject": Subject.COMPUTED_MATRIX, "code": ""}
"""What version 1 of the schema did not say: its proofs were all about matrices."""


class VerificationFailed(Exception):
    """A result that was required to hold and does not; ``.result`` carries it whole."""

    def __init__(self, result: CheckResult) -> None:
        self.result = result
        super().__init__(str(result))


@dataclasses.dataclass(frozen=True)
class Report:
    """Results with their provenance: versions, device, dtype, TF32 state, seed, content hashes of inputs, wall time."""

    results: tuple[CheckResult, ...]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=Frozen)

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))
        object.__setattr__(self, "provenance", plain(self.provenance))

    @property
    def verdict(self) -> Verdict:
        """FAILS if any result fails, else UNDECIDED if any is undecided, else HOLDS."""
        return worst(result.verdict for result in self.results)

    def __str__(self) -> str:
        return "\n\n".join(str(result) for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data of schema version :data:`SCHEMA_VERSION`."""
        return {
            "schema": SCHEMA_VERSION,
            "verdict": self.verdict.value,
            "results": [result.to_dict() for result in self.results],
            "provenance": encode(self.provenance),
        }

    def to_json(self) -> str:
        """Return the report as one strict JSON document (no NaN, no Infinity)."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Rebuild a report from :meth:`to_json`."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("schema") not in (1, SCHEMA_VERSION):
            raise ValueError(f"not a report of schema 1 or {SCHEMA_VERSION}")
        results = tuple(CheckResult.from_dict(result) for result in document["results"])
        return cls(results, decode(document["provenance"]))


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of a conjunction: FAILS before UNDECIDED before HOLDS.

    Examples
    --------
    >>> worst([Verdict.HOLDS, Verdict.UNDECIDED])
    <Verdict.UNDECIDED: 'UNDECIDED'>
    """
    seen = set(verdicts)
    for verdict in (Verdict.FAILS, Verdict.UNDECIDED):
        if verdict in seen:
            return verdict
    return Verdict.HOLDS


def shown_down(value: float, digits: int = 3) -> str:
    """Return a lower bound in few digits that is still one.

    Examples
    --------
    >>> shown_down(1.2355), shown_down(1.2395), shown_down(0.0)
    ('1.23', '1.23', '0')
    """
    return _shown(value, digits, decimal.ROUND_FLOOR)


def shown_up(value: float, digits: int = 3) -> str:
    """Return an upper bound in few digits that is still one.

    Examples
    --------
    >>> shown_up(1.0049), shown_up(2.81e-06), shown_up(1e-300)
    ('1.01', '2.82e-06', '1.01e-300')
    """
    return _shown(value, digits, decimal.ROUND_CEILING)


def _shown(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return f"{value:g}"
    exact = decimal.Context(prec=digits, rounding=rounding).create_decimal_from_float(value)
    text = f"{float(exact):.{digits}g}"  # so few digits survive the way through a float, but at the ends of its range
    return text if decimal.Decimal(text) == exact else f"{exact:.{digits - 1}e}"
