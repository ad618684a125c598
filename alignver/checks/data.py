"""What the data decide for every model: equal inputs, conflicting targets, and the loss that no training goes below."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from alignver.errors import InvalidInput
from alignver.kernel.certificate import LOSSES
from alignver.kernel.floats import arithmetic_fault
from alignver.proof.duplicate_inputs import LISTED, DuplicateInputs
from alignver.results import CheckResult, Rigor, Subject, Verdict, shown_down
from alignver.samples import Fingerprints, fingerprints, open_samples

__all__ = ["bound_sentence", "check_data", "conflict_sentence", "merge_sentence", "refutation"]

_REMEDIES = (
    "look at these samples, and drop or relabel one of each pair",
    "or add an input that tells them apart; augmentation does not",
)
STATEMENT = "Consistency of the data (equal inputs have equal targets)"
DISTINCT = "Distinct inputs (no two samples are equal)"


@np.errstate(all="ignore")
def check_data(
    X: Any,
    Y: Any = None,
    *,
    loss: str | None = None,
    dtype: str | None = None,
    X_test: Any = None,
    Y_test: Any = None,
) -> CheckResult:
    r"""Check that no two samples have equal inputs and different targets, and bound what every model has to lose.

    .. math:: x_i = x_j \;\Rightarrow\; y_i = y_j

    A model whose output is a function of one input gives equal inputs one output. So a group of k samples with equal
    inputs costs it, whatever its parameters, at least

    .. math:: \textstyle\sum_i \|y_i\|^2 - \|\sum_i y_i\|^2 / k, \qquad \sum_c C_c \ln (C / C_c), \qquad
              k - \max_c C_c

    in the squared loss, in the cross-entropy and in errors; C_c is the sum of column c of the group's targets (of
    labels: how many are c), C that of all columns. The rank of :math:`\phi` is at most the number of distinct inputs.

    Parameters
    ----------
    X : (n, ...) array, tensor or memory map; Dataset or DataLoader
        Inputs, one sample a row, real numbers of any dtype. A Dataset or DataLoader of torch, or anything that has a
        length and items, gives pairs (x, y) and is read twice. Memory: a few blocks of 64 MB, and some 200 bytes a
        sample.
    Y : (n,) or (n, m) array, optional
        Targets: labels, one-hot rows, or real numbers. One column of integers are labels for the cross-entropy. None:
        the question is whether the inputs are distinct.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"}, optional
        Of outputs before the last nonlinearity, in natural logarithms; the mean over samples of
        :math:`\|q - y\|^2`, or of the cross-entropy summed over outputs. Without it only errors are bounded, where the
        targets are integers.
    dtype : {"float16", "float32", "float64"}, optional
        Round the inputs to it first, as they are where they enter a module of that dtype.
    X_test, Y_test : optional
        Test samples, to be compared with the training samples; ``X_test`` as ``X``.

    Returns
    -------
    CheckResult
        PROOF. HOLDS with a certificate that has the digests of the distinct inputs; FAILS with two samples as the
        witness, and a certificate. :func:`alignver.recheck` takes X and Y. ``measured`` has ``samples``, ``distinct``,
        the pairs of ``equal`` inputs and of ``conflicts``, ``loss_lower``, ``errors_lower``, and of test samples
        ``test``. UNDECIDED only where the floating-point arithmetic of the thread is not IEEE 754.

    Raises
    ------
    InvalidInput
        NaN or Inf; samples of different shapes; objects or complex numbers; another number of targets than of inputs;
        targets that the loss has no meaning for; a stream that shuffles, augments or ends early.

    Notes
    -----
    Rigor: PROOF, about the data, for every theta and every model that is a function of one input: not one that sees the
    batch (BatchNorm in training mode), draws at random (dropout), or is trained on augmented inputs. Numbers are
    compared, not bits: 0.0 equals -0.0. Bounds are rounded down.

    Source: ``docs/data.md`` has the proofs, and the data sets of the paper.

    Examples
    --------
    >>> result = check_data([[0.0], [1.0], [0.0]], [0, 1, 1], loss="cross_entropy")
    >>> result.verdict, result.rigor
    (<Verdict.FAILS: 'FAILS'>, <Rigor.PROOF: 'PROOF'>)
    >>> result.reason
    'samples 0 and 2 have equal inputs and different labels (0, 1): no model fits both'
    >>> result.evidence[0]
    'every model has a cross-entropy loss of at least 0.462098 and at least 1 training error'
    """
    began = time.perf_counter()
    if loss is not None and loss not in LOSSES:
        raise InvalidInput("loss", f"loss={loss!r}", "one of " + ", ".join(map(repr, LOSSES)))
    if Y_test is not None and X_test is None:
        raise InvalidInput("Y_test", "targets without X_test", "both, or a Dataset as X_test")
    samples = open_samples(X, Y)
    tests = None if X_test is None else open_samples(X_test, Y_test, names=("X_test", "Y_test"))
    kind = None
    if tests is not None and samples.kind() != tests.kind():
        kind = "<f8"  # numbers of two dtypes are compared in one that holds both
    known = fingerprints(samples, cast=dtype, kind=kind)
    if loss is not None and known.targets is None:
        raise InvalidInput("Y", "no targets", f"targets for loss={loss!r}")
    duplicates = DuplicateInputs.of(known)
    lower, errors = duplicates.least_loss(loss)
    measured = _measured(duplicates, loss, lower, errors)
    evidence = [*_costs(duplicates, loss, lower, errors), *_pairs(duplicates, loss), *_ranks(duplicates)]
    if tests is not None:
        overlap, sentence = _overlap(duplicates, fingerprints(tests, cast=dtype, kind=kind), loss)
        measured["test"], evidence = overlap, [*evidence, sentence]
    if tests is not None and kind is not None and dtype is None:
        kinds = [np.dtype(part.kind()).name for part in (samples, tests)]
        evidence.append(
            f"X is {kinds[0]}, X_test {kinds[1]}: they are compared as they are; dtype='float32' rounds both first"
        )
    if samples.streamed:
        evidence.append("the samples were read twice, and were the same")
    cost = {"seconds": time.perf_counter() - began}
    common: dict[str, Any]
    fault = arithmetic_fault()
    if fault:
        reason = f"nothing is proved here: {fault}"
        common = {"measured": measured, "cost": cost, "subject": Subject.DATA, "code": "data-arithmetic"}
        return CheckResult("data", STATEMENT, Verdict.UNDECIDED, Rigor.NUMERICAL, reason, **common)
    statement = STATEMENT if known.targets is not None else DISTINCT
    common = {"evidence": tuple(evidence), "measured": measured, "cost": cost, "subject": Subject.DATA}
    common |= {"name": "data", "statement": statement, "rigor": Rigor.PROOF}
    common |= {"certificate": duplicates.certificate(loss)}
    if duplicates.conflicts.count:
        reason = conflict_sentence(duplicates, loss, "no model")
        common |= {"code": "data-conflict", "next_steps": _REMEDIES}
        return CheckResult(verdict=Verdict.FAILS, reason=reason, witness=_witness(duplicates), **common)
    if known.targets is None and duplicates.equal.count:
        i, j = duplicates.equal.pairs[0]
        return CheckResult(
            verdict=Verdict.FAILS,
            code="data-equal-inputs",
            reason=f"samples {i} and {j} have equal inputs: every model gives them one output",
            witness={"kind": "equal inputs", "samples": (i, j), "targets": None},
            **common,
        )
    common["code"] = "data-consistent" if known.targets is not None else "data-distinct"
    return CheckResult(verdict=Verdict.HOLDS, reason=_agreement(duplicates), **common)


def refutation(
    duplicates: DuplicateInputs, loss: str, *, name: str, statement: str, measured: dict[str, Any]
) -> CheckResult | None:
    """Return what a conflict says of a claim that every sample can be fitted: FAILS with PROOF; None without one."""
    if not duplicates.conflicts.count or arithmetic_fault():
        return None
    lower, errors = duplicates.least_loss(loss)
    return CheckResult(
        name=name,
        statement=statement,
        verdict=Verdict.FAILS,
        rigor=Rigor.PROOF,
        subject=Subject.DATA,
        code=f"{name}-data-conflict",
        next_steps=_REMEDIES,
        reason=conflict_sentence(duplicates, loss, "no theta"),
        evidence=(
            "this holds for every theta and every model",
            *_costs(duplicates, loss, lower, errors),
            *_pairs(duplicates, loss),
        ),
        measured={**_measured(duplicates, loss, lower, errors), **measured},
        witness=_witness(duplicates),
        certificate=duplicates.certificate(loss),
    )


def conflict_sentence(duplicates: DuplicateInputs, loss: str | None, subject: str) -> str:
    """Name the first conflict, its targets where they are short, and how many more there are."""
    i, j = duplicates.conflicts.pairs[0]
    labels = _labels(duplicates.known, (i, j), loss)
    noun = (
        "labels"
        if loss in ("cross_entropy", "binary_cross_entropy") or _are_classes(duplicates.known, loss)
        else "targets"
    )
    shown = f" ({', '.join(labels)})" if all(labels) else ""
    sentence = f"samples {i} and {j} have equal inputs and different {noun}{shown}: {subject} fits both"
    more = duplicates.conflicts.count - 1
    if more:
        others = _listed([f"{a} and {b}" for a, b in duplicates.conflicts.pairs[1:3]], more)
        sentence += f"; {more} other pair{'s' * (more > 1)} conflict{'s' * (more == 1)} ({others})"
    return sentence


def merge_sentence(duplicates: DuplicateInputs) -> str:
    """Say which samples count as one, and for whom the statement about the distinct ones is made."""
    merged, distinct = duplicates.n - duplicates.distinct, duplicates.distinct
    which = "1 sample repeats another" if merged == 1 else f"{merged} samples repeat others"
    pairs = _listed([f"{i} and {j}" for i, j in duplicates.equal.pairs[:2]], duplicates.equal.count)
    return (
        f"{which}, input and target ({pairs}): the question is asked of the {distinct} distinct "
        f"samples, and answered for all {duplicates.n}"
    )


def bound_sentence(loss: str, lower: float) -> str:
    """Say how low the loss of every model stays at least."""
    return f"every model has a {_spoken(loss)} loss of at least {shown_down(lower, 6)}"


def _measured(duplicates: DuplicateInputs, loss: str | None, lower: float, errors: int | None) -> dict[str, Any]:
    return {
        "samples": duplicates.n,
        "distinct": duplicates.distinct,
        "dtype": np.dtype(duplicates.known.record["dtype"]).name,
        "equal": duplicates.equal.plain(),
        "conflicts": duplicates.conflicts.plain(),
        "loss": loss,
        "loss_lower": None if loss is None else lower,
        "errors_lower": errors,
        "rank_phi_upper": duplicates.distinct,
    }


def _costs(duplicates: DuplicateInputs, loss: str | None, lower: float, errors: int | None) -> list[str]:
    """Say what every model loses at least: several labels a sample are outputs of their own, and counted so."""
    Y = duplicates.known.targets
    outputs = Y.shape[1] if Y is not None and loss == "binary_cross_entropy" else 1
    noun = "training error" if outputs == 1 else "wrong output"
    of = "" if outputs == 1 else f" (of {duplicates.n * outputs})"
    wrong = "" if not errors else f"at least {errors} {noun}{'s' * (errors > 1)}{of}"
    if loss is not None and lower > 0.0:
        return [bound_sentence(loss, lower) + (f" and {wrong}" if wrong else "")]
    return [f"every model makes {wrong}"] if wrong else []


def _pairs(duplicates: DuplicateInputs, loss: str | None) -> list[str]:
    """List the pairs of equal inputs, those in conflict with their targets."""
    equal, conflicts, known = duplicates.equal, duplicates.conflicts, duplicates.known
    lines = []
    if conflicts.count > 1:
        named = [(i, j, *_labels(known, (i, j), loss)) for i, j in conflicts.pairs]
        shown = [f"{i} and {j}" + (f" ({a}, {b})" if a and b else "") for i, j, a, b in named]
        lines.append(f"{conflicts.count} pairs in conflict: {_listed(shown, conflicts.count)}")
    others = [f"{i} and {j}" for i, j in equal.pairs if (i, j) not in conflicts.pairs]
    count = equal.count - conflicts.count
    if count and known.targets is not None:
        lines.append(
            f"{count} pair{'s' * (count > 1)} with equal targets" + (f": {_listed(others, count)}" * bool(others))
        )
    elif count:
        lines.append(f"{count} equal pair{'s' * (count > 1)}: {_listed(others, count)}")
    return lines


def _ranks(duplicates: DuplicateInputs) -> list[str]:
    n, distinct = duplicates.n, duplicates.distinct
    if distinct == n:
        return []
    return [
        f"{distinct} of {n} inputs are distinct: rank phi is at most {distinct} for every theta and all gates, below "
        f"n = {n}, so Assumption 4 fails"
    ]


def _agreement(duplicates: DuplicateInputs) -> str:
    if duplicates.distinct == duplicates.n:
        return "the only input is distinct" if duplicates.n == 1 else f"all {duplicates.n} inputs are distinct"
    pairs = duplicates.equal.count
    return f"equal inputs have equal targets, in {'the only pair' if pairs == 1 else f'all {pairs} pairs'} of them"


def _overlap(duplicates: DuplicateInputs, tests: Fingerprints, loss: str | None) -> tuple[dict[str, Any], str]:
    """Compare test samples with training samples: which are equal, and with which targets."""
    if tests.shape[1:] != duplicates.known.shape[1:]:
        got = f"samples of shape {tests.shape[1:]} beside {duplicates.known.shape[1:]} in X"
        raise InvalidInput("X_test", got, "samples of one shape")
    Y, Y_test = duplicates.known.targets, tests.targets
    compared = Y is not None and Y_test is not None
    if Y is not None and Y_test is not None and Y.shape[1] != Y_test.shape[1]:
        raise InvalidInput("Y_test", f"{Y_test.shape[1]} columns beside {Y.shape[1]} in Y", "targets of one form")
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(duplicates.known.digests):
        groups.setdefault(digest, []).append(i)
    pairs = [(i, groups[digest][0]) for i, digest in enumerate(tests.digests) if digest in groups]
    other: list[tuple[int, int]] = []
    if Y is not None and Y_test is not None:
        for i, _ in pairs:  # a training sample with another target, if there is one with this input
            unlike = (j for j in groups[tests.digests[i]] if not np.array_equal(Y_test[i], Y[j]))
            other += [(i, j) for j in itertools.islice(unlike, 1)]
    n = len(tests.digests)
    record: dict[str, Any] = {"samples": n, "seen": len(pairs), "pairs": pairs[:LISTED]}
    if compared:
        record |= {"conflicts": {"count": len(other), "pairs": other[:LISTED]}}
    if not pairs:
        return record, f"none of the {n} test samples is a training sample" if n > 1 else "the test sample is new"
    sentence = f"{len(pairs)} of {n} test samples equal{'s' * (len(pairs) == 1)} a training sample"
    if compared and other:
        (i, j), labels = other[0], [_label(tests, other[0][0], loss), _label(duplicates.known, other[0][1], loss)]
        shown = f", targets {labels[0]} and {labels[1]}" if all(labels) else ""
        sentence += f", {len(other)} of them with another target (test {i} and training {j}{shown})"
    else:
        sentence += f" (test {pairs[0][0]} and training {pairs[0][1]})" + (", with equal targets" if compared else "")
    return record, sentence


def _witness(duplicates: DuplicateInputs) -> dict[str, Any]:
    Y, pair = duplicates.known.targets, duplicates.conflicts.pairs[0]
    assert Y is not None
    return {"kind": "equal inputs", "samples": pair, "targets": [Y[i] for i in pair] if Y.shape[1] <= LISTED else None}


def _are_classes(known: Fingerprints, loss: str | None) -> bool:
    return loss is None and known.classes and known.targets is not None and bool(np.all(known.targets % 1.0 == 0.0))


def _labels(known: Fingerprints, pair: tuple[int, int], loss: str | None) -> tuple[str, str]:
    """Name the targets of two samples: in all digits where a few do not tell them apart."""
    first, second = (_label(known, k, loss) for k in pair)
    if first and first == second and known.targets is not None:
        first, second = (repr(float(known.targets[k, 0])) for k in pair)
    return first, second


def _label(known: Fingerprints, k: int, loss: str | None) -> str:
    """Name the target of a sample: its number, or its class of a one-hot row; empty for any other row."""
    assert known.targets is not None
    row = known.targets[k]
    if len(row) == 1:
        return f"{row[0]:g}"
    one_hot = loss != "squared" and row.max() == 1.0 and np.count_nonzero(row) == 1
    return str(int(row.argmax())) if one_hot else ""


def _listed(items: list[str], count: int) -> str:
    return ", ".join(items) + (", ..." if count > len(items) else "")


def _spoken(loss: str) -> str:
    return {"cross_entropy": "cross-entropy", "binary_cross_entropy": "binary cross-entropy"}.get(loss, loss)
