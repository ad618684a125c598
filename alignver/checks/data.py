"""What the data decide for every model: equal inputs, conflicting targets, and lower bounds of the loss."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from alignver.errors import InvalidInput
from alignver.kernel.machine import arithmetic_fault
from alignver.limits import limited
from alignver.proof.duplicate_inputs import LISTED, DuplicateInputs
from alignver.results import CheckResult, Rigor, Subject, Verdict, shown_down
from alignver.samples import Fingerprints, fingerprints, open_samples
from alignver.theory.losses import loss_name

_REMEDIES = (
    "look at these samples, and drop or relabel one of each pair",
    "or add an input that distinguishes them; augmentation does not",
)
STATEMENT = "Consistency of the data (equal inputs have equal targets)"
DISTINCT = "Distinct inputs (no two samples are equal)"


@limited("data", STATEMENT, Subject.DATA)
@np.errstate(all="ignore")
def check_data(
    X: Any,
    Y: Any = None,
    *,
    loss: str | None = None,
    dtype: str | None = None,
    X_test: Any = None,
    Y_test: Any = None,
    max_seconds: float | None = None,
    max_memory: int | None = None,
) -> CheckResult:
    r"""Check that no two samples have equal inputs and different targets, and bound the loss of every model from below.

    .. math:: x_i = x_j \;\Rightarrow\; y_i = y_j

    A model whose output is a function of one input has the same output for equal inputs. So the loss of a group of k
    samples with equal inputs is, for all parameters, at least

    .. math:: \textstyle\sum_i \|y_i\|^2 - \|\sum_i y_i\|^2 / k, \qquad \sum_c C_c \ln (C / C_c), \qquad
              k - \max_c C_c

    for the squared loss, the cross-entropy and the number of errors; C_c is the sum of column c of the group's targets
    (for labels: how many are c), C the sum over all columns. The rank of :math:`\phi` is at most the number of distinct
    inputs.

    Parameters
    ----------
    X : (n, ...) array, tensor or memory map; dict of arrays; Dataset or DataLoader, also of dicts or tuples
        Inputs, one sample per row, real numbers of any dtype. A Dataset or DataLoader of torch, or any object with a
        length and items, gives pairs (x, y) and is read twice. Memory: a few blocks of 64 MB, and about 200 bytes per
        sample.
    Y : (n,) or (n, m) array, optional
        Targets: labels, one-hot rows, or real numbers. One column of integers are labels for the cross-entropy. None:
        the check is whether the inputs are distinct.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"}, optional
        Of outputs before the last nonlinearity, in natural logarithms; the mean over samples of
        :math:`\|q - y\|^2`, or of the cross-entropy summed over outputs. Without it only errors are bounded, if the
        targets are integers.
    dtype : {"float16", "float32", "float64"}, optional
        Round the inputs to it first, as for a module of that dtype.
    X_test, Y_test : optional
        Test samples, which are compared with the training samples; ``X_test`` as ``X``.

    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        PROOF. HOLDS with a certificate that has the digests of the distinct inputs; FAILS with two samples as the
        witness, and a certificate. :func:`alignver.recheck` takes X and Y. ``measured`` has ``samples``, ``distinct``,
        the pairs of ``equal`` inputs and of ``conflicts``, ``loss_lower``, ``errors_lower``, and ``test`` for test
        samples. UNDECIDED only if the floating-point arithmetic of the thread is not IEEE 754.

    Raises
    ------
    InvalidInput
        NaN or Inf; samples of different shapes; objects or complex numbers; different numbers of targets and inputs;
        targets that the loss is not defined for; a stream that shuffles, augments or ends early.

    Notes
    -----
    Rigor: PROOF, about the data, for every theta and every model that is a function of one input. This excludes models
    that depend on the batch (BatchNorm in training mode), draw at random (dropout), or are trained on augmented inputs.
    Numbers are compared, not bits: 0.0 equals -0.0. Bounds are rounded down.

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
    if loss is not None:
        loss = loss_name(loss)
    if Y_test is not None and X_test is None:
        need = "both, or a Dataset as X_test"
        raise InvalidInput("Y_test", "targets without X_test", need, "conflicting-arguments")
    samples = open_samples(X, Y)
    tests = None if X_test is None else open_samples(X_test, Y_test, names=("X_test", "Y_test"))
    mixed = tests is not None and samples.kind() != tests.kind()
    kind = "<f8" if mixed else None  # float64 holds the numbers of both dtypes
    known = fingerprints(samples, cast=dtype, kind=kind)
    if loss is not None and known.targets is None:
        raise InvalidInput("Y", "no targets", f"targets for loss={loss!r}", "conflicting-arguments")
    duplicates = DuplicateInputs.of(known)
    lower, errors = duplicates.least_loss(loss)
    measured = _measured(duplicates, loss, lower, errors)
    evidence = [*_costs(duplicates, loss, lower, errors), *_pairs(duplicates, loss), *_ranks(duplicates)]
    if tests is not None:
        overlap, sentence = _overlap(duplicates, fingerprints(tests, cast=dtype, kind=kind), loss)
        measured["test"], evidence = overlap, [*evidence, sentence]
    if tests is not None and mixed and dtype is None:
        kinds = [np.dtype(part.kind()).name for part in (samples, tests)]
        evidence.append(
            f"X is {kinds[0]}, X_test {kinds[1]}: they are compared without rounding; dtype='float32' rounds both first"
        )
    if samples.streamed:
        evidence.append("the samples were read twice, and were the same")
    common: dict[str, Any] = {"name": "data", "subject": Subject.DATA, "measured": measured}
    common["cost"] = {"seconds": time.perf_counter() - began}
    fault = arithmetic_fault()
    if fault:
        return CheckResult(
            statement=STATEMENT,
            verdict=Verdict.UNDECIDED,
            rigor=Rigor.NUMERICAL,
            code="data-arithmetic",
            next_steps=(
                "torch.set_flush_denormal(False), or a fresh process; alignver doctor says what is wrong here",
            ),
            reason=f"nothing is proved here: {fault}",
            **common,
        )
    common |= {"statement": DISTINCT if known.targets is None else STATEMENT, "rigor": Rigor.PROOF}
    common |= {"evidence": tuple(evidence), "certificate": duplicates.certificate(loss)}
    if duplicates.conflicts.count:
        return CheckResult(
            verdict=Verdict.FAILS,
            code="data-conflict",
            next_steps=_REMEDIES,
            reason=conflict_sentence(duplicates, loss, "no model"),
            witness=_witness(duplicates),
            **common,
        )
    if known.targets is None and duplicates.equal.count:
        i, j = duplicates.equal.pairs[0]
        return CheckResult(
            verdict=Verdict.FAILS,
            code="data-equal-inputs",
            next_steps=("drop the samples that repeat another, or give Y: equal targets do not conflict",),
            reason=f"samples {i} and {j} have equal inputs: every model gives them the same output",
            witness={"kind": "equal inputs", "samples": (i, j), "targets": None},
            **common,
        )
    code = "data-distinct" if known.targets is None else "data-consistent"
    return CheckResult(verdict=Verdict.HOLDS, code=code, reason=_agreement(duplicates), **common)


def refutation(
    duplicates: DuplicateInputs, loss: str, *, name: str, statement: str, measured: dict[str, Any]
) -> CheckResult | None:
    """Return FAILS with PROOF for the claim that every sample can be fitted; None without a conflict."""
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
    """Name the first conflict, its targets if they are short, and the number of other conflicts."""
    i, j = duplicates.conflicts.pairs[0]
    labels = _labels(duplicates.known, (i, j), loss)
    classes = loss in ("cross_entropy", "binary_cross_entropy") or _are_classes(duplicates.known, loss)
    noun = "labels" if classes else "targets"
    shown = f" ({', '.join(labels)})" if all(labels) else ""
    sentence = f"samples {i} and {j} have equal inputs and different {noun}{shown}: {subject} fits both"
    more = duplicates.conflicts.count - 1
    if more:
        others = _listed([f"{a} and {b}" for a, b in duplicates.conflicts.pairs[1:3]], more)
        sentence += f"; {more} other pair{'s' * (more > 1)} conflict{'s' * (more == 1)} ({others})"
    return sentence


def merge_sentence(duplicates: DuplicateInputs) -> str:
    """Say which samples are merged, and that the statement is about all of them."""
    merged, distinct = duplicates.n - duplicates.distinct, duplicates.distinct
    which = "1 sample repeats another" if merged == 1 else f"{merged} samples repeat others"
    pairs = _listed([f"{i} and {j}" for i, j in duplicates.equal.pairs[:2]], duplicates.equal.count)
    return (
        f"{which}, input and target ({pairs}): the check is made for the {distinct} distinct "
        f"samples, and its answer is valid for all {duplicates.n}"
    )


def bound_sentence(loss: str, lower: float) -> str:
    """State the lower bound of the loss of every model."""
    name = loss.replace("_entropy", "-entropy").replace("_", " ")
    return f"every model has a {name} loss of at least {shown_down(lower, 6)}"


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
    """State the least loss of every model; with several labels per sample, each of them counts as an output."""
    Y = duplicates.known.targets
    outputs = Y.shape[1] if Y is not None and loss == "binary_cross_entropy" else 1
    noun = "training error" if outputs == 1 else "wrong output"
    of = "" if outputs == 1 else f" (of {duplicates.n * outputs})"
    wrong = "" if not errors else f"at least {errors} {noun}{'s' * (errors > 1)}{of}"
    if loss is not None and lower > 0.0:
        return [bound_sentence(loss, lower) + (f" and {wrong}" if wrong else "")]
    return [f"every model makes {wrong}"] if wrong else []


def _pairs(duplicates: DuplicateInputs, loss: str | None) -> list[str]:
    """List the pairs of equal inputs; for those in conflict, with their targets."""
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
        return "there is only one input" if duplicates.n == 1 else f"all {duplicates.n} inputs are distinct"
    pairs = duplicates.equal.count
    return f"equal inputs have equal targets ({pairs} pair{'s' * (pairs > 1)} of equal inputs)"


def _overlap(duplicates: DuplicateInputs, tests: Fingerprints, loss: str | None) -> tuple[dict[str, Any], str]:
    """Compare test samples with training samples: which are equal, and with which targets."""
    if tests.shape[1:] != duplicates.known.shape[1:]:
        got = f"samples of shape {tests.shape[1:]}, but {duplicates.known.shape[1:]} in X"
        raise InvalidInput("X_test", got, "samples of one shape", "wrong-shape")
    Y, Y_test = duplicates.known.targets, tests.targets
    compared = Y is not None and Y_test is not None
    if Y is not None and Y_test is not None and Y.shape[1] != Y_test.shape[1]:
        got = f"{Y_test.shape[1]} columns, but {Y.shape[1]} in Y"
        raise InvalidInput("Y_test", got, "targets of one form", "wrong-shape")
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(duplicates.known.digests):
        groups.setdefault(digest, []).append(i)
    pairs = [(i, groups[digest][0]) for i, digest in enumerate(tests.digests) if digest in groups]
    other: list[tuple[int, int]] = []
    if Y is not None and Y_test is not None:
        for i, _ in pairs:  # the first training sample with this input and another target
            different = (j for j in groups[tests.digests[i]] if not np.array_equal(Y_test[i], Y[j]))
            other += [(i, j) for j in itertools.islice(different, 1)]
    n = len(tests.digests)
    record: dict[str, Any] = {"samples": n, "seen": len(pairs), "pairs": pairs[:LISTED]}
    if compared:
        record |= {"conflicts": {"count": len(other), "pairs": other[:LISTED]}}
    if not pairs:
        return (
            record,
            f"none of the {n} test samples is a training sample"
            if n > 1
            else "the test sample is not a training sample",
        )
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
    """Name the targets of two samples: with all digits if a few do not distinguish them."""
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
