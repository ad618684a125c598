"""The check of a certificate: whether it proves its claim about the given inputs, which are copied and hashed first."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignver.errors import InvalidInput
from alignver.kernel import data, exploration, matrices, optimality
from alignver.kernel.certificate import STATED, Certificate, Tampered, check_array, describe, load_certificate, record
from alignver.kernel.failure import NotProved, Unsupported, require
from alignver.kernel.machine import require_ieee
from alignver.kernel.network import methods as graphs
from alignver.kernel.snapshot import Rows, frozen, real
from alignver.results import CheckResult, Rigor, Subject, Verdict, plain

_ON_MATRICES = matrices.METHODS | optimality.METHODS | data.METHODS | graphs.METHODS
_NAMES: dict[str, tuple[str, ...]] = dict.fromkeys(("exploration", "exploration-gates", "no-exploration"), ("Z",))
_NAMES |= {"membership": ("J", "y"), "non-membership": ("J", "y"), "rank": ("A",), "not-rank": ("A",)}
_NAMES |= dict.fromkeys(("optimality", "suboptimality"), ("R", "W", "Y", "Z", "theta"))
_NAMES |= {"distinct": ("X",), "consistent": ("X", "Y"), "conflicting": ("X", "Y")} | graphs.INPUTS
_LACKS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def verify(
    certificate: Certificate | str | Path, inputs: Mapping[str, Any], *, threads: int = 1, track: Any = None
) -> CheckResult:
    """Check that a certificate proves its claim about the given inputs.

    Parameters
    ----------
    certificate : Certificate or path
        A path is read with :func:`~alignver.kernel.certificate.load_certificate`.
    inputs : mapping of str to array
        The matrices that the claim is about, by the names that the certificate lists: NumPy arrays. ``Z`` of a claim of
        exploration may be a mapped file, or any object with shape, dtype and rows that can be indexed: it is read block
        by block, and must not change after the first reading. So may ``X``, of any number of dimensions, which is read
        once.
    threads : int
        Number of blocks or tiles that are processed in parallel; the BLAS should then have one thread.
    track : callable, optional
        ``track(steps, label)`` iterates over steps and reports them.

    Returns
    -------
    CheckResult
        HOLDS with PROOF: the certificate proves its claim about these inputs, which were copied and hashed before
        anything else. FAILS: it does not (an input other than the sealed one, a broken seal, a proof that is not
        valid); the claim itself may still be true. UNDECIDED: the arithmetic is not IEEE 754 with rounding to nearest
        and gradual underflow, or memory is short.

    Raises
    ------
    InvalidInput
        If inputs are missing, unknown or not finite real arrays, or a file is not a certificate.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.kernel import seal
    >>> certificate = seal("not-rank", "shape", {"A": np.eye(2)}, {}, {"rank": 3})
    >>> verify(certificate, {"A": np.eye(2)}).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    began = time.perf_counter()
    try:
        whole = load_certificate(certificate) if isinstance(certificate, str | Path) else _copied(certificate)
    except Tampered as error:
        return _result(None, Verdict.FAILS, f"the seal is broken: {error.got}", began)
    except NotProved as failure:
        return _result(None, Verdict.FAILS, str(failure), began)
    names = _NAMES.get(whole.claim) if isinstance(whole.claim, str) else None
    if whole.claim in ("factored-membership", "optimality"):
        names = tuple(sorted({*_NAMES.get(whole.claim, ("y",)), *whole.inputs}))
    if names is not None and set(inputs) != set(names):
        raise InvalidInput("inputs", ", ".join(sorted(inputs)) or "none", "exactly " + ", ".join(names))
    try:
        require_ieee(threaded=True)
        with np.errstate(all="ignore"):
            reason = _checked(whole, inputs, threads, track or (lambda steps, label: steps))
    except Unsupported as fault:
        return _result(whole, Verdict.UNDECIDED, f"nothing can be proved here: {fault}", began)
    except MemoryError as error:
        return _result(whole, Verdict.UNDECIDED, f"out of memory: {error or 'of unknown size'}", began, "out-of-memory")
    except NotProved as failure:
        return _result(whole, Verdict.FAILS, str(failure), began)
    return _result(whole, Verdict.HOLDS, reason, began)


def _copied(certificate: Any) -> Certificate:
    if not isinstance(certificate, Certificate):
        raise InvalidInput("certificate", type(certificate).__name__, "a Certificate or the path of one")
    try:
        copy = frozen(certificate)
    except (*_LACKS, MemoryError):
        raise NotProved("the seal is broken: the certificate contains invalid objects") from None
    require(copy.sealed, "the seal is broken: the certificate was changed after it was made")
    return copy


def _checked(certificate: Certificate, inputs: Mapping[str, Any], threads: int, track: Any) -> str:
    key = (certificate.claim, certificate.method)
    on_rows, on_matrices = exploration.METHODS.get(key), _ON_MATRICES.get(key)
    require(on_rows is not None or on_matrices is not None, f"unknown claim or method: {str(key)[:80]}")
    in_ball = on_rows is None and certificate.method in matrices.IN_A_BALL
    ball = certificate.constants.get("ball")
    require(in_ball or ball is None, f"{certificate.method!r} does not cover a ball")
    stated = {"s_min", "distance"} & set(certificate.constants) if certificate.version != 1 else set()
    unproved = stated - {STATED.get(certificate.method), graphs.STATED.get(certificate.claim)}
    require(not unproved, f"{certificate.method!r} does not prove {' and '.join(sorted(unproved))}")
    try:
        arrays = {} if on_matrices is None else _identified(certificate, inputs, track)
        if ball is not None:
            matrices.require_ball(certificate, arrays)
        for name, array in certificate.data.items():
            check_array(name, array)
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            run = pool.map if threads > 1 else map
            if on_matrices is not None:
                return on_matrices(certificate, arrays, run)
            assert on_rows is not None
            added, rank, width = (certificate.constants[name] for name in ("add_constant", "rank", "width"))
            require(type(added) is bool, "the certificate does not say whether the constant is added")
            require(all(type(value) is int and value >= 1 for value in (rank, width)), "rank or width are not numbers")
            return on_rows(certificate, Rows(inputs["Z"], added), run, track)
    except InvalidInput as error:
        if error.argument in inputs:  # for example a file that ends early
            raise
        raise NotProved(f"the data of the certificate are not a proof: {error}") from error
    except _LACKS as error:
        raise NotProved(f"the certificate lacks what its method needs ({type(error).__name__}: {error})") from error


def _identified(certificate: Certificate, inputs: Mapping[str, Any], track: Any) -> dict[str, Any]:
    """Return private copies of the inputs, each of which must be the sealed one; for X, its equal rows and digests."""
    arrays = {name: real(value, name, 1 if name == "y" else 2) for name, value in inputs.items() if name != "X"}
    for name, array in arrays.items():
        same = dict(certificate.inputs.get(name, {})) == plain(record(array))
        require(same, f"{name} is not the input that this certificate is about: their digests differ")
    if "X" in inputs:
        arrays["X"] = data.identified(certificate, inputs["X"], track)
    require("J" not in arrays or arrays["J"].shape[0] == arrays["y"].shape[0], "J and y differ in length")
    return arrays


_KINDS = {Verdict.HOLDS: "proved", Verdict.FAILS: "not-proved", Verdict.UNDECIDED: "arithmetic"}


def _result(
    certificate: Certificate | None, verdict: Verdict, reason: str, began: float, kind: str | None = None
) -> CheckResult:
    claim = "Certificate: " + ("the claim" if certificate is None else describe(certificate))
    rigor = Rigor.NUMERICAL if verdict is Verdict.UNDECIDED else Rigor.PROOF
    witness = {"kind": "not proved", "reason": reason} if verdict is Verdict.FAILS else None
    subjects = dict.fromkeys(graphs.INPUTS, Subject.NETWORK) | {claim: Subject.DATA for claim, _ in data.METHODS}
    subject = subjects.get(certificate.claim if certificate else "", Subject.COMPUTED_MATRIX)
    return CheckResult(
        "recheck", claim, verdict, rigor, reason, witness=witness, certificate=certificate,
        cost={"seconds": time.perf_counter() - began}, subject=subject, code=f"recheck-{kind or _KINDS[verdict]}",
    )  # fmt: skip
