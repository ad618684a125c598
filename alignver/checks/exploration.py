"""Is the last hidden layer wide enough (Assumption 4)? Proved at sizes where phi itself cannot be formed.

The same proof gives rank n of the matrices of an exploitation phase (Lemma 5), for its gates and output weights.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import time
from typing import Any

import numpy as np

from alignver import require
from alignver.arrays import accelerator, as_matrix, as_vector, host
from alignver.checks.exploration_report import (
    STATEMENT,
    Setting,
    check_gates,
    exploration_result,
    peak_bytes,
    refute_by_columns,
    refute_by_rows,
    staircase_result,
)
from alignver.errors import InvalidInput
from alignver.features.cluster import Cluster
from alignver.features.rows import directions, open_rows, scan_rows
from alignver.features.staircase import certify_staircase, find_staircase
from alignver.features.threads import dense_flops, single_threaded_blas, threads_for
from alignver.kernel.machine import arithmetic_fault
from alignver.limits import limited
from alignver.linalg import rank_rules
from alignver.progress import announce, track
from alignver.proof import Certificate
from alignver.proof.duplicate_inputs import DuplicateInputs
from alignver.proof.rounding import FloatArray, mul_down
from alignver.results import CheckResult, Rigor, Subject, Verdict, shown_up
from alignver.samples import fingerprints, open_samples
from alignver.theory.exploitation import Exploitation

METHODS = ("auto", "staircase", "gram", "dense")
_MOST = 10**7  # units or directions: each takes memory, here and in a certificate
_ROOM = 0.25  # a check scales rows by other powers of two, within a factor of two of these


@limited("exploration", STATEMENT)
@np.errstate(all="ignore")
def check_safe_exploration(
    Z: Any,
    *,
    width: int | None = None,
    q: Any = None,
    method: str = "auto",
    rule: str = "golub",
    delta: float | None = None,
    delta_is_estimate: bool = False,
    certify: bool = True,
    add_constant: bool = False,
    weights: Any = None,
    tries: int = 8,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    client: Any = None,
    X: Any = None,
    layer: str | None = None,
    batch_size: int = 256,
    max_seconds: float | None = None,
    max_memory: int | None = None,
) -> CheckResult:
    r"""Check whether some gates q of the given width make the feature matrix phi of full row rank.

    .. math:: \exists q \in \mathbb{R}^{m \times h}: \mathrm{rank}\, \phi(q) = n, \qquad
              \phi(q)_{i*} = (\tilde\sigma(z_i^\top q_1) z_i^\top, \ldots, \tilde\sigma(z_i^\top q_h) z_i^\top)

    with the logistic gate. ``staircase`` constructs such a q, at the smallest possible width, from blocks that are
    proved one by one; ``gram`` gives a proof for a given or sampled q by a Cholesky factorization of
    :math:`(S S^\top) \circ (Z Z^\top)`; ``dense`` decides numerically from the singular values of phi.

    Parameters
    ----------
    Z : (n, m) array, numpy.memmap, or iterable of row blocks
        The outputs of layer H - 2 with the constant 1 as last column. float32 input is not copied to float64 as a
        whole. For a CuPy array or a CUDA tensor, ``gram`` factors on that GPU. Or a torch module: its features at
        ``X``, with the constant added, are enclosed with proved errors, and HOLDS with PROOF by the staircase is about
        the network in real arithmetic. Where that is not proved, or ``q``, ``delta``, ``method="gram"`` or ``"dense"``
        is given, the result is about the features as the module computes them, and says so.
    width : int, optional
        h. None: the smallest width that can be proved (or the columns of ``q``).
    q : (m, h) array, optional
        The gates; None leaves the choice to the method.
    method : {"auto", "staircase", "gram", "dense"}
        ``auto``: staircase, or for a given q gram, and dense if gram proves nothing and phi is small.
    rule : str
        Rank rule that decides for ``dense``; the proved bound of s_min(phi) is compared with every rule.
    delta : float, optional
        Bound of each row's error (2-norm). The proof then holds for every Z within it.
    delta_is_estimate : bool
        ``delta`` is an estimate and not a bound: the verdict is NUMERICAL.
    certify : bool
        False: no certificate, and the verdict is NUMERICAL.
    add_constant : bool
        Append the constant column.
    weights : (h,) array, optional
        Weights w of the last layer: the statement is about :math:`\phi(q) (\mathrm{diag}(w) \otimes I)`.
    tries : int
        Directions that the staircase may try.
    seed : int
        Of the directions and of a sampled q.
    folder : path, optional
        Where blocks of an iterable, tiles of the Cholesky factor and the enclosed features of a model are stored;
        tiles and enclosed features stay there, and a later call continues from them.
    client : dask.distributed.Client, optional
        Prove the staircase's blocks and compute the factor's tiles on its workers. ``gram`` then needs a ``folder``
        that all of them share with this process. ``dense`` runs in this process.
    X : array, Dataset or DataLoader, optional
        The inputs that Z was computed from, as :func:`~alignver.checks.data.check_data` takes them. If two of them are
        equal, rank phi is below n for every theta, width and q. For a model, its inputs, in a form that
        :func:`~alignver.check_alignment` takes.
    layer : str, optional
        For a model: the submodule whose output is z without its constant; None is the output of the model.
    batch_size : int
        For a model: samples per forward pass where the module itself computes the features.
    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        HOLDS with PROOF and certificate; FAILS with PROOF and a witness (too few columns, equal rows, the rank of Z);
        UNDECIDED; or NUMERICAL.

    Raises
    ------
    InvalidInput
        NaN or Inf (the message names the row), no constant column, a width below 1, q or weights of the wrong shape,
        unknown names, a client that is closed, workers that cannot read the file or folder; a model without ``X``, or
        ``layer`` without a model.

    References
    ----------
    Assumption 4 and Table 2 of Kawaguchi, Zhang, Deng (2022). The staircase and its proof:
    :mod:`alignver.features.staircase`.

    Examples
    --------
    >>> import numpy as np
    >>> Z = np.column_stack([np.random.default_rng(0).standard_normal((40, 4)), np.ones(40)])
    >>> result = check_safe_exploration(Z)
    >>> result.verdict, result.rigor, result.measured["width"]
    (<Verdict.HOLDS: 'HOLDS'>, <Rigor.PROOF: 'PROOF'>, 8)
    >>> check_safe_exploration(Z, width=7).reason
    'width 7 times 5 features is 35 columns, fewer than 40 samples'
    """
    began = time.perf_counter()
    if is_module(Z):
        options = {"width": width, "q": q, "method": method, "rule": rule, "delta": delta, "certify": certify}
        options |= {"delta_is_estimate": delta_is_estimate, "weights": weights, "tries": tries, "seed": seed}
        result = _check_model(Z, X, layer, batch_size, folder, {**options, "client": client})
        return dataclasses.replace(result, cost=_cost(began))
    if layer is not None:
        raise InvalidInput("layer", f"{layer!r} with features", "a model in place of Z", "conflicting-arguments")
    require.one_of("method", method, METHODS)
    require.booleans(certify=certify, add_constant=add_constant, delta_is_estimate=delta_is_estimate)
    if method == "staircase" and q is not None:
        need = "method='gram' or method='dense': the staircase constructs its own gates"
        raise InvalidInput("q", "gates with method='staircase'", need, "conflicting-arguments")
    rank_rules.find(rule)
    folder = None if folder is None else require.path("folder", folder)
    width = None if width is None else require.integer("width", width, least=1, most=_MOST)
    tries = require.integer("tries", tries, least=1, most=_MOST)
    seed = require.integer("seed", seed, least=0, most=2**128)
    radius = 0.0 if delta is None else require.real("delta", delta, least=0)
    cluster = None if client is None else Cluster(client)
    place = accelerator(Z)
    rows = open_rows(Z, add_constant=add_constant, folder=folder)
    try:
        gates = _gates(q, rows.m, width)
        width = width if gates is None else int(gates.shape[1])
        w = _weights(weights, width)
        refuted = None if X is None else equal_inputs(X, rows.n)
        if refuted is not None:
            return dataclasses.replace(refuted, cost=_cost(began))
        announce(f"safe exploration of {rows.n} samples, {rows.m} features" + f", width {width}" * (width is not None))
        setting = Setting(rows, width, rule, radius, w, tries, seed, place=place, cluster=cluster)
        if method in ("gram", "dense") or gates is not None:
            with threads_for(dense_flops(rows.n, (width or rows.n) * rows.m)):
                result = check_gates(setting, gates, method, folder)
        else:
            with single_threaded_blas():  # from the scan on: BLAS threads spin after a product and slow the rest down
                result = _staircase(setting)
    finally:
        rows.close()
    if result.rigor is Rigor.PROOF and result.verdict is Verdict.HOLDS and (delta_is_estimate or not certify):
        why = "delta is an estimate" if delta_is_estimate else "no certificate was requested"
        evidence = (*result.evidence, f"numerical: {why}")
        result = dataclasses.replace(result, rigor=Rigor.NUMERICAL, certificate=None, evidence=evidence)
    return dataclasses.replace(result, cost=_cost(began))


def is_module(value: Any) -> bool:
    """Whether a value is a torch module, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _check_model(
    model: Any, X: Any, layer: str | None, batch_size: int, folder: Any, options: dict[str, Any]
) -> CheckResult:
    """Check the exact features of a model if they can be enclosed, else those that the module computes."""
    module: Any = importlib.import_module("alignver.network.enclosed_features")  # which loads torch
    if X is None:
        raise InvalidInput("X", "no inputs", "the inputs of the model", "wrong-type")
    model, X, _ = module.adapted(model, X)
    features = module.ModelFeatures.of(model, X, layer, batch_size)  # refuses a wrong layer before anything is decided
    refuted = equal_inputs(X)
    if refuted is not None:
        return refuted
    width = options["width"]
    refutable = isinstance(width, int) and width * features.m < features.n  # for the exact features as for all others
    reason = "" if refutable else _why_not_enclosed(options)
    if not reason and not refutable:
        enclosed = features.enclosed(folder)
        if isinstance(enclosed, str):
            reason = enclosed
        else:
            proved = check_safe_exploration(enclosed.Z, add_constant=True, **{**options, "delta": enclosed.delta})
            if proved.verdict is Verdict.HOLDS and isinstance(proved.certificate, Certificate):
                result: CheckResult = features.about_the_network(proved, enclosed)
                return result
            reason = f"its features are only proved to within {shown_up(enclosed.delta)} ({proved.reason})"
    folder = folder if options["method"] == "gram" or options["q"] is not None else None
    result = check_safe_exploration(features.computed(), add_constant=True, folder=folder, **options)
    if result.code == "exploration-count":
        counted = "true of the exact features as well: only their number is used"
        return dataclasses.replace(result, subject=Subject.NETWORK, evidence=(counted, *result.evidence))
    if refutable:
        return result
    return dataclasses.replace(result, evidence=(f"nothing is proved about the network: {reason}", *result.evidence))


def _why_not_enclosed(options: dict[str, Any]) -> str:
    """Return why the features of a model are not enclosed; empty if they are."""
    if options["q"] is not None or options["method"] in ("gram", "dense"):
        return "the errors of its features are proved for the staircase only"
    if options["delta"] is not None:
        return "delta was given"
    return "" if options["certify"] else "no certificate was requested"


def equal_inputs(X: Any, n: int | None = None) -> CheckResult | None:
    """Return FAILS with PROOF, for every theta, if two of n inputs are equal; None if all of them are distinct.

    Examples
    --------
    >>> equal_inputs([[0.0], [1.0], [0.0]]).reason
    'samples 0 and 2 have equal inputs: rank phi is at most 2, below n = 3, for every theta, every width and all gates'
    """
    duplicates = DuplicateInputs.of(fingerprints(open_samples(X)))
    if n is not None and duplicates.n != n:
        got = f"{duplicates.n} samples for {n} rows of Z"
        raise InvalidInput("X", got, "the inputs that Z was computed from", "wrong-shape")
    if duplicates.distinct == duplicates.n or arithmetic_fault():
        return None
    i, j = duplicates.equal.pairs[0]
    more = duplicates.equal.count - 1
    others = f" ({more} other pair{'s' * (more > 1)} as well)" if more else ""
    return exploration_result(
        verdict=Verdict.FAILS,
        rigor=Rigor.PROOF,
        reason=f"samples {i} and {j} have equal inputs{others}: rank phi is at most {duplicates.distinct}, "
        f"below n = {duplicates.n}, for every theta, every width and all gates",
        evidence=("proved for the data; the proof does not cover the data without the repeated samples",),
        measured={
            "samples": duplicates.n,
            "distinct": duplicates.distinct,
            "equal": duplicates.equal.plain(),
            "rank_phi_upper": duplicates.distinct,
        },
        subject=Subject.DATA,
        code="exploration-equal-inputs",
        next_steps=("drop the samples that repeat another, and check again",),
        witness={"kind": "equal inputs", "samples": (i, j), "pairs": duplicates.equal.count},
        certificate=duplicates.certificate(),
    )


def _staircase(setting: Setting) -> CheckResult:
    if setting.weights is not None and not setting.weights.all():
        used = setting.weights[setting.weights != 0.0]
        if not used.size:
            raise InvalidInput("weights", "only zeros", "at least one weight that is not zero")
        idle = int(setting.weights.size - used.size)
        setting = dataclasses.replace(setting, weights=used, width=int(used.size), idle=idle)
    rows, width = setting.rows, setting.width
    least = -(-rows.n // rows.m)
    fault = arithmetic_fault()
    if fault:
        return _undecided(setting, least, fault)
    scan = scan_rows(rows, directions(rows, setting.tries, setting.seed, moved=setting.delta > 0.0))
    refuted = refute_by_rows(setting, scan)
    if refuted is not None:
        return refuted
    # One direction first: if it fails, the rank of Z may be the cause, which takes less time than eight directions.
    delta, cluster = setting.delta, setting.cluster
    search = find_staircase(rows, scan, width, delta=delta, tries=1, thorough=False, cluster=cluster)
    if search.staircase is None:
        refuted = refute_by_columns(setting, scan)
        if refuted is not None:
            return refuted
        search = find_staircase(rows, scan, width, delta=delta, cluster=cluster)
    if search.staircase is not None:
        certificate = certify_staircase(search.staircase, rows, scan, delta)
        return staircase_result(setting, search.staircase, certificate)
    return _undecided(setting, least, search.reason, search.attempts)


def _undecided(setting: Setting, least: int, reason: str, attempts: int = 0) -> CheckResult:
    width = setting.width
    widths = f"width {width} (smallest possible: {least})" if width is not None else f"any width from {least} on"
    tried = f"{attempts} directions were tried; more directions (tries=) or a larger width may help"
    return exploration_result(
        verdict=Verdict.UNDECIDED,
        rigor=Rigor.NUMERICAL,
        code="exploration-not-proved",
        next_steps=(
            "try more directions (tries=), or a larger width (width=)",
            "use other features: float64, or of another layer",
        ),
        reason=f"nothing was proved for {widths}: {reason}",
        evidence=(*((tried,) if attempts else ()), *setting.remarks()),
        measured=setting.measured(),
    )


def _gates(q: Any, m: int, width: int | None) -> FloatArray | None:
    if q is None:
        return None
    gates = np.ascontiguousarray(host(as_matrix(q, "q").array))
    if gates.shape[0] != m or (width is not None and gates.shape[1] != width):
        need = f"({m}, {'h' if width is None else width}): a column of {m} numbers for each hidden unit"
        raise InvalidInput("q", f"shape {gates.shape}", need, "wrong-shape")
    return gates


def _weights(weights: Any, width: int | None) -> FloatArray | None:
    if weights is None:
        return None
    if width is None:
        need = "width=h or q, which they belong to"
        raise InvalidInput("weights", "weights without a width", need, "conflicting-arguments")
    w = np.ascontiguousarray(host(as_vector(weights, "weights").array))
    if w.size != width:
        raise InvalidInput("weights", f"{w.size} weights", f"{width}, one for each hidden unit", "wrong-shape")
    return w


def _cost(began: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - began, **peak_bytes()}


@dataclasses.dataclass(frozen=True)
class Ranks:
    """What is proved about the matrix A_j of each output.

    Attributes
    ----------
    entries : tuple
        ``{"s_min"}``, a lower bound, if rank n is proved, else None.
    reasons : tuple of str
        Why rank n is not proved, for the other outputs.
    refuted : bool
        Whether it is proved that no gates give rank n: too few columns, or equal rows of Z.
    """

    entries: tuple[dict[str, float] | None, ...]
    reasons: tuple[str, ...]
    refuted: bool = False

    @property
    def all(self) -> bool:
        """Whether every output has rank n."""
        return all(entry is not None for entry in self.entries)


def prove_ranks(model: Exploitation) -> Ranks:
    r"""Prove rank n of each :math:`A_j = \phi(R^{(j)}) (\mathrm{diag}(W_{j*}) \otimes I)`, by its Gram matrix.

    The cost is a verified Cholesky factorization of order n for each output.

    Notes
    -----
    Rigor: PROOF for the entries that are not None; None has no meaning, unless ``refuted``.

    Examples
    --------
    >>> import numpy as np
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> prove_ranks(model).all
    True
    """
    entries: list[dict[str, float] | None] = []
    reasons = []
    refuted = False
    for j in track(range(model.m_y), "rank of A_j"):
        result = check_safe_exploration(model.Z, q=model.steep_gates[j], weights=model.output_weights[j], method="gram")
        certificate = result.certificate
        if result.verdict is Verdict.HOLDS and isinstance(certificate, Certificate):
            entries.append({"s_min": mul_down(_ROOM, float(certificate.constants["s_min"]))})
        else:
            entries.append(None)
            reasons.append(f"rank n of output {j}: {result.verdict}, {result.reason}")
            refuted |= result.verdict is Verdict.FAILS  # the Gram matrix only proves; a refutation is about Z alone
    return Ranks(tuple(entries), tuple(reasons), refuted)
