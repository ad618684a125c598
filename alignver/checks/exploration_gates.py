"""Safe exploration for gates that are given or sampled: the Gram matrix proves, the singular values of phi decide."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.checks import exploration_words
from alignver.checks.exploration_words import STATEMENT, Setting, rules_settled, size_line
from alignver.checks.rank import check_rank
from alignver.errors import InvalidInput
from alignver.kernel import Certificate, seal
from alignver.kernel.environment import arithmetic_fault
from alignver.phi.cholesky import Definite, prove_definite
from alignver.phi.dense import dense_phi
from alignver.phi.hadamard import scaled_gram
from alignver.phi.refute import by_columns, by_count, by_equal_rows
from alignver.phi.survey import Survey, directions, survey
from alignver.proof.rounding import FloatArray, add_up, mul_up, sqrt_up
from alignver.results import CheckResult, Rigor, Subject, Verdict

__all__ = ["check"]

_DENSE_BYTES = 2_000_000_000
"""Largest phi that ``dense`` forms: its SVD takes hours beyond that."""

_DENSE_QUICK = 200_000_000
"""Largest phi that ``auto`` forms where the Gram matrix proved nothing: a minute's SVD."""


def check(
    setting: Setting, gates: FloatArray | None, method: str, folder: str | os.PathLike[str] | None
) -> CheckResult:
    """Check given gates (m, h), or gates sampled from the standard normal distribution as the paper does."""
    rows = setting.rows
    sampled = gates is None
    if gates is None:
        width = setting.width if setting.width is not None else -(-2 * rows.n // rows.m)
        gates = np.random.default_rng(setting.seed).standard_normal((rows.m, width))
    setting = dataclasses.replace(setting, width=int(gates.shape[1]))
    how = f"q sampled from the standard normal distribution, seed {setting.seed}" if sampled else "q as given"
    fault = arithmetic_fault()
    if fault and method != "gram" and 8 * rows.n * rows.m * gates.shape[1] <= _DENSE_QUICK and not setting.delta:
        return _by_svd(setting, gates, how, sampled)
    if fault:
        return _nothing_proved(setting, how, {**setting.measured(), "method": method}, fault)
    found = survey(rows, directions(rows, 1, setting.seed))
    refuted = _refuted(setting, found)
    if refuted is not None:
        return refuted
    proof = None
    if method in ("auto", "gram"):
        proof = _by_gram(setting, gates, how, folder, found)
        if proof.verdict is Verdict.HOLDS:
            return proof
        refuted = _refuted_by_columns(setting, found)
        size = 8 * rows.n * rows.m * gates.shape[1]
        if refuted is not None or method == "gram" or size > _DENSE_QUICK or setting.delta:
            return proof if refuted is None else refuted
    result = _by_svd(setting, gates, how, sampled)
    if proof is not None:
        return dataclasses.replace(result, evidence=(*result.evidence, proof.reason))
    refuted = None if result.verdict is Verdict.HOLDS else _refuted_by_columns(setting, found)
    return result if refuted is None else refuted


def _refuted(setting: Setting, found: Survey) -> CheckResult | None:
    rows, width = setting.rows, setting.width
    assert width is not None
    refuted = by_count(rows.n, rows.m, width, found.record, rows.added)
    if refuted is None and not setting.delta:
        refuted = by_equal_rows(rows, found, width)
    return None if refuted is None else exploration_words.refutation(setting, refuted)


def _refuted_by_columns(setting: Setting, found: Survey) -> CheckResult | None:
    """Refute by the rank of Z: looked at where nothing was proved, since it can take a pass over Z and seconds."""
    assert setting.width is not None
    refuted = None if setting.delta else by_columns(setting.rows, found, setting.width)
    return None if refuted is None else exploration_words.refutation(setting, refuted)


def _by_gram(
    setting: Setting, q: FloatArray, how: str, folder: str | os.PathLike[str] | None, found: Survey
) -> CheckResult:
    rows, width = setting.rows, int(q.shape[1])
    Z = rows.read(0, rows.n)
    gram = scaled_gram(Z, q, setting.weights, setting.delta)
    if isinstance(gram, str):
        definite = Definite(False, 0.0, 0.0, 0.0, 0.0, gram)
    else:
        definite = prove_definite(gram, folder=folder, place=setting.place, cluster=setting.cluster)
    measured = {**setting.measured(), "method": "gram", "margin": definite.margin, "shift": definite.shift}
    line = size_line(setting, width)
    if not definite.proved or isinstance(gram, str):
        return _nothing_proved(setting, how, measured, definite.reason)
    # Of D phi as computed, and of how far the exact one may be; undone by the largest 2^-e.
    norm = mul_up(add_up(sqrt_up(gram.trace), gram.moved), 2.0 ** -int(gram.exponents.min()))
    sentence, bounds, table = rules_settled(setting, width, definite.s_min, norm)
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=Verdict.HOLDS,
        rigor=Rigor.NUMERICAL if definite.taken else Rigor.PROOF,
        subject=Subject.COMPUTED_MATRIX,
        code="exploration-gram",
        reason=line,
        evidence=(how, f"verified Cholesky factorization of phi phi^T{_taken(definite)}", sentence, *setting.remarks()),
        measured={**measured, "s_min_lower": definite.s_min, "norm_upper": norm, "rules": table},
        bounds=bounds,
        certificate=_certificate(setting, q, definite, gram.exponents, found),
    )


def _nothing_proved(setting: Setting, how: str, measured: dict[str, Any], why: str) -> CheckResult:
    assert setting.width is not None
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=Verdict.UNDECIDED,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code="exploration-gates-not-proved",
        next_steps=("method='staircase', which makes gates of its own", "float64 features, or a smaller delta"),
        reason=f"nothing was proved about these gates: {why}",
        evidence=(size_line(setting, setting.width), how, *setting.remarks()),
        measured=measured,
    )


def _taken(definite: Definite) -> str:
    """Say what was not computed here. The origin of tiles in a folder is unknown; the certificate does without them."""
    if not definite.taken:
        return ""
    return f", {definite.taken} of its tile columns from the folder: no proof until the certificate has been verified"


def _certificate(
    setting: Setting, q: FloatArray, definite: Definite, exponents: npt.NDArray[np.int64], found: Survey
) -> Certificate:
    rows = setting.rows
    constants = {
        "rank": rows.n,
        "width": int(q.shape[1]),
        "add_constant": rows.added,
        "s_min": definite.s_min,
        "delta": setting.delta,
    }
    data = {"gates": q, "scaling": exponents} | ({} if setting.weights is None else {"weights": setting.weights})
    return seal("exploration-gates", "gram", {"Z": found.record}, data, constants)


def _by_svd(setting: Setting, q: FloatArray, how: str, sampled: bool) -> CheckResult:
    rows, width = setting.rows, int(q.shape[1])
    if 8 * rows.n * rows.m * width > _DENSE_BYTES:
        size = 8e-9 * rows.n * rows.m * width
        raise InvalidInput(
            "method", f"'dense' for a phi of {size:.1f} GB", "'staircase' or 'gram', which never form it"
        )
    if setting.delta:
        raise InvalidInput("delta", "a radius with method='dense'", "'staircase' or 'gram': a proof covers a ball")
    with np.errstate(all="ignore"):
        phi = dense_phi(rows.read(0, rows.n), q, setting.weights)
    if not bool(np.all(np.isfinite(phi))):
        raise InvalidInput("q", f"entries up to {np.abs(q).max():.1e}", "gates whose products with Z and w are finite")
    named = ("press", "golub")
    ranks = {rule: check_rank(phi, rank=rows.n, method="svd", rule=rule, certify=False) for rule in named}
    if setting.rule in ranks:
        deciding = ranks[setting.rule]
    else:
        deciding = check_rank(phi, rank=rows.n, method="svd", rule=setting.rule, certify=False)
    verdict, reason = deciding.verdict, f"phi has {deciding.reason}"
    if sampled and verdict is Verdict.FAILS:
        verdict = Verdict.UNDECIDED
        reason += "; that refutes the sampled gates only: another seed, or method='staircase', may do"
    said = ", ".join(f"{rule} says rank {result.measured['rank']}" for rule, result in ranks.items())
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code=f"exploration-{deciding.code}",
        next_steps=deciding.next_steps,
        reason=reason,
        evidence=(size_line(setting, width), how, f"{said} of {rows.n}", *setting.remarks()),
        measured={**setting.measured(), "method": "dense", **_levels(deciding)},
        tolerance=deciding.tolerance,
    )


def _levels(result: CheckResult) -> dict[str, object]:
    keys = ("rank", "smallest_level", "largest_singular_value", "rules")
    return {key: result.measured[key] for key in keys}
