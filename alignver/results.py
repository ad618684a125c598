"""Results of checks: frozen plain data with a text report and a JSON form, and without a truth value.

Verdict, rigor and subject are separate: HOLDS, FAILS or UNDECIDED; PROOF, NUMERICAL or STATISTICAL; about the
network, about the computed matrix, or about the data.
A HOLDS with PROOF carries a certificate and a FAILS with PROOF a witness; without them the constructor raises
``ValueError``, since every proof has to be checkable.
"""

from __future__ import annotations

import dataclasses
import decimal
import enum
import html
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

from alignver.errors import printable

SCHEMA_VERSION = 2
"""Version of the JSON document of :meth:`Report.to_dict`; it changes if readers have to change.

Version 1 has no ``subject``, ``code``, ``next_steps`` and ``plan``; :meth:`Report.from_json` accepts it.
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
    """The kind of evidence: a proof, a floating-point computation at a tolerance, or a sample."""

    PROOF = "PROOF"
    NUMERICAL = "NUMERICAL"
    STATISTICAL = "STATISTICAL"


class Subject(_NoTruth):
    """What the answer is about.

    The network: the function that the model defines in real arithmetic, at its parameters and inputs. The computed
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
    """A dict that cannot be changed (shallow: :func:`plain` converts its values first)."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("the data of a result is frozen; build a new result with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Frozen], tuple[dict[str, Any]]]:
        return Frozen, (dict(self),)


def plain(value: Any) -> Any:
    """Turn a value into frozen plain data: bool, int, float, str, None, tuples and :class:`Frozen` dicts of them.

    NumPy scalars become Python numbers and arrays become (nested) tuples; other types raise ``TypeError``, so that the
    JSON form of a result can always be read back.

    Examples
    --------
    >>> import numpy as np
    >>> plain({"rank": np.int64(3), "levels": np.array([1.0, 0.5])})
    {'rank': 3, 'levels': (1.0, 0.5)}
    """
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        # numpy.float64 is a float; the conversion makes repr and pickles independent of numpy.
        return float(value) if isinstance(value, float) else value
    if isinstance(value, Mapping):
        return Frozen({str(key): plain(item) for key, item in value.items()})
    if isinstance(value, tuple | list):
        return tuple(plain(item) for item in value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"a result holds plain data only, not {type(value).__name__}")


def encode(value: Any) -> Any:
    """Return plain data in strict JSON types: a non-finite float becomes {"float": "inf"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """Undo :func:`encode`."""
    if isinstance(value, Mapping):
        if set(value) == {"float"} and isinstance(value["float"], str):
            return float(value["float"])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


@runtime_checkable
class Summarised(Protocol):
    """The part of a certificate that a result needs: a summary in plain data."""

    def summary(self) -> Mapping[str, Any]:
        """Return claim, method, size and the path that it was saved to."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """A tolerance and its source.

    Attributes
    ----------
    rule : str
        Its name: a rank rule, or ``"given"``.
    value : float
        Its value, in the units of the matrix's singular values.
    formula : str
        The formula of the value.
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
        """Whether the relation is true for the two numbers."""
        return bool(_RELATIONS[self.relation](self.value, self.limit))


@dataclasses.dataclass(frozen=True, repr=False)
class CheckResult:
    """The answer of a check, with its evidence.

    Attributes
    ----------
    name : str
        The name of the check: ``"membership"``, ``"rank"``.
    statement : str
        The checked statement, with its name in the source: ``"Data-architecture alignment (Definition 2)"``.
    verdict, rigor : Verdict, Rigor
        The answer and the kind of evidence for it.
    reason : str
        One sentence with the reason.
    subject : Subject
        What the answer is about.
    code : str
        A stable name of the kind of answer, for programs: ``"data-conflict"``. ``alignver explain`` has their
        meanings.
    next_steps : tuple of str
        Suggestions, in this order.
    evidence : tuple of str
        Further sentences of the terminal report, most important first.
    measured : mapping
        The numbers of the sentences, as plain data.
    bounds : tuple of Bound
        Measured values beside their limits.
    tolerance : Tolerance or None
        The tolerance of a NUMERICAL verdict.
    witness : mapping or None
        Data that refute (or show) the claim: indices, a vector, a pair of samples.
    certificate : Certificate, mapping or None
        The data for checking a proof again; after a JSON round trip, their summary.
    cost : mapping
        ``seconds`` and, if known, ``peak_bytes``.
    plan : mapping or None
        The method of the computation and its expected cost: ``engine``, ``reason``, ``peak_bytes``, ``flops``.
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
        conversions: dict[str, Callable[[Any], Any]] = {
            "verdict": Verdict,
            "rigor": Rigor,
            "subject": Subject,
            "evidence": tuple,
            "next_steps": tuple,
            "bounds": tuple,
            "measured": plain,
            "cost": plain,
            "witness": plain,  # of None: None
            "plan": plain,
        }
        for field, convert in conversions.items():
            object.__setattr__(self, field, convert(getattr(self, field)))
        if not isinstance(self.certificate, Summarised):
            object.__setattr__(self, "certificate", plain(self.certificate))
        if self.rigor is Rigor.PROOF and self.verdict is Verdict.HOLDS and self.certificate is None:
            raise ValueError("a HOLDS with PROOF needs a certificate")
        if self.rigor is Rigor.PROOF and self.verdict is Verdict.FAILS and self.witness is None:
            raise ValueError("a FAILS with PROOF needs a witness")

    def __bool__(self) -> NoReturn:
        raise TypeError("a result has no truth value: look at result.verdict, or call result.require()")

    def __str__(self) -> str:
        """Return the terminal report, without colour."""
        first = f"{printable(self.statement).ljust(56)}  {self.answer}"
        return "\n".join([first, *(f"  {line}" for line in self.lines())])

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
        """Return the lines of every text report: reason, evidence, next steps and cost.

        Each line is printable for any names that it quotes; ``reason`` and ``evidence`` themselves are not changed.
        """
        cost = [f"{self.cost['seconds']:.1f} s"] if "seconds" in self.cost else []
        if "peak_bytes" in self.cost:
            cost.append(f"{self.cost['peak_bytes'] / 1e9:.1f} GB")
        steps = (f"next: {step}" for step in self.next_steps)
        return tuple(map(printable, (self.reason, *self.evidence, *steps, *([", ".join(cost)] if cost else []))))

    def require(self) -> CheckResult:
        """Return the result itself if it HOLDS; raise :class:`VerificationFailed` otherwise.

        An UNDECIDED result raises too.
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

    def to_json(self) -> str:
        """Return the result as one strict JSON document (no NaN, no Infinity)."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=1)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> CheckResult:
        """Rebuild a result from :meth:`to_dict`, of this version of the schema or of version 1."""
        fields = {**_FROM_VERSION_1, **decode(document)}
        fields["bounds"] = tuple(Bound(**bound) for bound in fields["bounds"])
        if fields["tolerance"] is not None:
            fields["tolerance"] = Tolerance(**fields["tolerance"])
        return cls(**fields)


_FROM_VERSION_1 = {"subject": Subject.COMPUTED_MATRIX, "code": ""}
"""Fields that version 1 of the schema does not have: all of its proofs are about matrices."""


class VerificationFailed(Exception):
    """A result that was required to hold and does not; ``.result`` carries it whole."""

    def __init__(self, result: CheckResult) -> None:
        self.result = result
        super().__init__(str(result))


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """Results with their provenance: versions, device, dtype, TF32 state, seed, content hashes of inputs, wall time."""

    results: tuple[CheckResult, ...]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=Frozen)

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))
        object.__setattr__(self, "provenance", plain(self.provenance))

    @property
    def verdict(self) -> Verdict:
        """FAILS if any result fails, else UNDECIDED if any is undecided, else HOLDS; of an overview, its own verdict.

        The report of :func:`alignver.check_model` begins with an overview, which answers the main question.
        """
        if self.results and self.results[0].name == "model":
            return self.results[0].verdict
        return worst(result.verdict for result in self.results)

    def __str__(self) -> str:
        return "\n\n".join(str(result) for result in self.results)

    def __repr__(self) -> str:
        """Return one line."""
        return f"<Report {', '.join(f'{result.name}: {result.verdict}' for result in self.results)}>"

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __getitem__(self, name: str) -> CheckResult:
        """Return the first result of this name.

        Raises
        ------
        KeyError
            There is none.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"{name!r}: the report has {', '.join(result.name for result in self.results)}")

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
    order = (Verdict.HOLDS, Verdict.UNDECIDED, Verdict.FAILS)
    return max(verdicts, key=order.index, default=Verdict.HOLDS)


def shown_down(value: float, digits: int = 3) -> str:
    """Return a lower bound in few digits, rounded down.

    Examples
    --------
    >>> shown_down(1.2355), shown_down(1.2395), shown_down(0.0)
    ('1.23', '1.23', '0')
    """
    return _shown(value, digits, decimal.ROUND_FLOOR)


def shown_up(value: float, digits: int = 3) -> str:
    """Return an upper bound in few digits, rounded up.

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
    text = f"{float(exact):.{digits}g}"  # exact for so few digits, except at the ends of the range of floats
    return text if decimal.Decimal(text) == exact else f"{exact:.{digits - 1}e}"
