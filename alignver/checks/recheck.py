"""Check a certificate again with the kernel: inputs of any array library, all cores, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput, kind_of
from alignver.features.rows import open_rows
from alignver.features.threads import single_threaded_blas, threaded_flint, workers
from alignver.kernel import Certificate, load_certificate
from alignver.kernel.certificate import Tampered
from alignver.kernel.verify import verify
from alignver.limits import limited, remaining
from alignver.progress import run_in_thread, stage, track
from alignver.results import CheckResult, Verdict
from alignver.samples import Sequential, as_numbers, open_samples, targets_of

_OTHER_INPUT = "is not the input that this certificate is about"  # the kernel's words
_NOT_REFUTED = "the claim is not refuted: these are other inputs than those that were proved, so nothing was checked"
_NEXT_STEPS = {
    Verdict.HOLDS: (),
    Verdict.FAILS: ("make the certificate again with the check that wrote it",),
    Verdict.UNDECIDED: (
        "torch.set_flush_denormal(False), or a fresh process; alignver doctor says what is wrong here",
    ),
}
_SAME_INPUTS = (
    "give the inputs of the certificate, bit for bit",
    "for inputs that a model computes: the same device, dtype and versions, since others round differently",
)


@limited("recheck", "Certificate")
def recheck(
    certificate: Certificate | str | Path,
    *,
    max_seconds: float | None = None,
    max_memory: int | None = None,
    **inputs: Any,
) -> CheckResult:
    """Check that a certificate proves its claim about the given inputs, with code that did not produce it.

    Parameters
    ----------
    certificate : Certificate or path
        A path is read with :func:`~alignver.kernel.certificate.load_certificate`.
    **inputs : array
        What the claim is about, by the names that the certificate lists: ``J`` and ``y``; ``A``; ``X`` and ``Y``, as
        :func:`~alignver.checks.data.check_data` takes them (a stream is read twice); ``Z``, as
        :func:`~alignver.features.rows.open_rows` takes it (a mapped file is read block by block); for a claim of
        optimality all of ``Z``, ``Y``, ``R``, ``W`` and ``theta``, as
        :meth:`~alignver.theory.exploitation.Exploitation.inputs` returns them.
    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        HOLDS with PROOF: the certificate proves its claim about these inputs. FAILS: it does not (another input than
        the sealed one, a broken seal, an incomplete proof); the claim itself may still be true, and ``evidence`` says
        so where the inputs differ. UNDECIDED: the
        arithmetic of this thread is not the one that proofs assume. See :func:`alignver.kernel.verify`.

    Raises
    ------
    InvalidInput
        Inputs that are missing, unknown or not finite real arrays; a certificate of another type, or a file that is not
        one.

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
    if not isinstance(certificate, Certificate | str | Path):
        raise InvalidInput("certificate", kind_of(certificate), "a Certificate or the path of one", "wrong-type")
    # Z alone may be of any form that open_rows accepts; its rows are read when the kernel needs them.
    rows = open_rows(inputs["Z"]) if set(inputs) == {"Z"} else None
    given: dict[str, Any] = {} if rows is None else {"Z": rows.source}
    if "X" in inputs:
        given |= _samples(certificate, inputs.pop("X"), inputs.pop("Y", None))
    for name, value in () if rows is not None else inputs.items():
        given[name] = host((as_vector if name == "y" else as_matrix)(value, name).array)
    try:
        words, options = "checking the certificate", dict[str, Any](threads=workers(), track=track)
        count = len(given["y"]) if "x" in given and "y" in given else 0  # balls of a network
        with single_threaded_blas(), threaded_flint(count):
            if remaining() < math.inf:  # the kernel knows no limits
                result = run_in_thread(words, verify, certificate, given, **options)
            else:
                with stage(words):
                    result = verify(certificate, given, **options)
    finally:
        if rows is not None:
            rows.close()
    if result.verdict is Verdict.FAILS and _OTHER_INPUT in result.reason:
        return dataclasses.replace(result, evidence=(_NOT_REFUTED,), next_steps=_SAME_INPUTS)
    return dataclasses.replace(result, next_steps=_NEXT_STEPS[result.verdict])


def _samples(certificate: Certificate | str | Path, X: Any, Y: Any) -> dict[str, Any]:
    """Return inputs and targets in the form that the kernel reads: those of a stream one after the other."""
    samples = open_samples(X, Y)
    source: Any = samples.source
    shape: Any = ()
    has_targets = Y is not None
    with contextlib.suppress(Tampered):  # the kernel reports it
        loaded = certificate if isinstance(certificate, Certificate) else load_certificate(certificate)
        shape, has_targets = loaded.inputs.get("X", {}).get("shape", ()), has_targets or "Y" in loaded.inputs
    if samples.streamed:
        source = Sequential(samples, shape)
    elif not isinstance(source, np.ndarray):
        source = as_numbers(source, "X")
    targets = targets_of(samples) if has_targets else None
    return {"X": source} if targets is None else {"X": source, "Y": targets}
