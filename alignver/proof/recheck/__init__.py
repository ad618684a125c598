"""Checking certificates with code that shares nothing with what produced them.

The producers bound rounding errors a priori, factor with LAPACK and lift p-adically with FLINT. Here,
whatever can be is settled in exact arithmetic: minors by elimination modulo small primes of this package's
own choice, solutions and null vectors as sums of integers. Only balls need floating point, and then the
bounds are a posteriori: a product is multiplied out and compared, so no theorem about Cholesky is relied on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput
from alignver.proof.certificate import Certificate, check_array, describe, digest_input
from alignver.proof.recheck import factors, floats, integers, modular
from alignver.proof.recheck.failure import NotProved
from alignver.proof.storage import Tampered, load_certificate
from alignver.results import CheckResult, Rigor, Verdict

__all__ = ["recheck"]

_INPUTS = {"membership": ("J", "y"), "non-membership": ("J", "y"), "rank": ("A",), "not-rank": ("A",)}
_FACTORED = "factored-membership"  # y, and the factors of the layers where the certificate does not hold them
_METHODS: dict[str, Callable[[Certificate, Mapping[str, Any]], str]] = {
    "gram": floats.full_rank,
    "right inverse": floats.full_rank,
    "residual": floats.outside,
    "minor": modular.minor,
    "primes": modular.primes,
    "reduced": modular.reduced,
    "solution": integers.solution,
    "null vector": integers.null_vector,
    "null space": integers.null_space,
    "shape": modular.shape,
    "factored gram": factors.factored,
}


def recheck(certificate: Certificate | str | Path, **inputs: Any) -> CheckResult:
    """Check that a certificate proves its claim about the given inputs, by other means than it was produced
    with.

    Parameters
    ----------
    certificate : Certificate or path
        A path is read with :func:`~alignver.proof.storage.load_certificate`.
    **inputs : array
        The matrices that the claim is about, by the names that the certificate lists: ``J`` and ``y``, or
        ``A``.

    Returns
    -------
    CheckResult
        HOLDS with PROOF: the certificate proves its claim about these inputs. FAILS: it does not (an input
        that is not the one sealed in, a broken seal, a proof that does not go through); that says nothing
        about the claim itself.

    Raises
    ------
    InvalidInput
        Inputs missing, unknown or not finite real arrays; a file that is no certificate.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.proof import prove_membership
    >>> J, y = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, 2.0])
    >>> decision = prove_membership(J, y)
    >>> recheck(decision.certificate, J=J, y=y).verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> recheck(decision.certificate, J=J, y=2 * y).verdict
    <Verdict.FAILS: 'FAILS'>
    """
    start = time.perf_counter()
    if isinstance(certificate, str | Path):
        try:
            certificate = load_certificate(certificate)
        except Tampered as error:
            return _result(None, Verdict.FAILS, f"the seal is broken: {error.got}", start)
    if not isinstance(certificate, Certificate):
        raise InvalidInput("certificate", type(certificate).__name__, "a Certificate or the path of one")
    arrays = _validated(certificate, inputs)
    try:
        reason = _check(certificate, arrays)
    except NotProved as failure:
        return _result(certificate, Verdict.FAILS, str(failure), start)
    except InvalidInput as error:  # data of the certificate, not an argument: those were validated above
        return _result(certificate, Verdict.FAILS, f"the certificate's data are no proof: {error}", start)
    return _result(certificate, Verdict.HOLDS, reason, start)


def _validated(certificate: Certificate, inputs: Mapping[str, Any]) -> dict[str, Any]:
    names = _INPUTS.get(certificate.claim) if isinstance(certificate.claim, str) else None
    if certificate.claim == _FACTORED:
        names = tuple(sorted({"y", *certificate.inputs}))
    if names is None:
        names = tuple(inputs)
    if set(inputs) != set(names):
        raise InvalidInput("inputs", ", ".join(sorted(inputs)) or "none", "exactly " + ", ".join(names))
    arrays = {}
    for name in names:
        entries = as_vector(inputs[name], name) if name == "y" else as_matrix(inputs[name], name)
        arrays[name] = np.ascontiguousarray(host(entries.array))
    return arrays


def _check(certificate: Certificate, arrays: dict[str, Any]) -> str:
    if not certificate.sealed:
        raise NotProved("the seal is broken: the certificate was changed after it was made")
    method = _METHODS.get(certificate.method) if isinstance(certificate.method, str) else None
    factored = certificate.claim == _FACTORED
    if method is None or not (factored or certificate.claim in _INPUTS) or factored != (method is factors.factored):
        raise NotProved(f"unknown claim or method: {str(certificate.claim)[:40]!r}, {str(certificate.method)[:40]!r}")
    for name, array in arrays.items():
        record = certificate.inputs.get(name)
        if record is None or dict(record) != _plain_record(array):
            raise NotProved(f"{name} is not the input that this certificate is about: their digests differ")
    if "J" in arrays and arrays["J"].shape[0] != arrays["y"].shape[0]:
        raise NotProved("J and y differ in length")
    try:
        for name, array in certificate.data.items():
            check_array(name, array)
        with np.errstate(all="ignore"):
            return method(certificate, arrays)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        ZeroDivisionError,
    ) as error:
        if isinstance(error, InvalidInput):
            raise
        raise NotProved(f"the certificate lacks what its method needs ({type(error).__name__}: {error})") from error


def _plain_record(array: Any) -> dict[str, Any]:
    record = digest_input(array)
    return {**record, "shape": tuple(record["shape"])}


def _result(certificate: Certificate | None, verdict: Verdict, reason: str, start: float) -> CheckResult:
    claim = "the claim" if certificate is None else describe(certificate)
    return CheckResult(
        name="recheck",
        statement=f"Certificate: {claim}",
        verdict=verdict,
        rigor=Rigor.PROOF,
        reason=reason,
        witness=None if verdict is Verdict.HOLDS else {"kind": "not proved", "reason": reason},
        certificate=certificate,
        cost={"seconds": time.perf_counter() - start},
    )
