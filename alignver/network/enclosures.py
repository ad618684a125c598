r"""Theorems about a network at its parameters and inputs, from enclosures of its exact Jacobian.

The network is the function of real arithmetic that its graph writes down, under the conventions of
:doc:`the guide to networks as graphs </structure>`. The kernel computes enclosures of its values and gradients
(:mod:`alignver.kernel.network.balls`); this module chooses the precision and says how much alignment there is:

.. math:: \kappa = \min\{\|\beta\| : J \beta = y\}.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.arrays import available_memory
from alignver.errors import InvalidInput
from alignver.features.threads import threaded_flint
from alignver.kernel import Certificate, exact, seal
from alignver.kernel.failure import NotProved, Unsupported
from alignver.kernel.machine import require_ieee
from alignver.kernel.network import alignment, ball_matrices, balls, norm_alignment
from alignver.kernel.network.dependences import Dependences
from alignver.kernel.network.graph import parse
from alignver.kernel.network.program import compiled, unpacked
from alignver.kernel.network.tape import Program
from alignver.network.budget import Reach, reach
from alignver.network.leaves import refused
from alignver.network.trace import NetworkGraph, trace_model
from alignver.results import Verdict, shown_down, shown_up

_BATCHES = ((64, 128), (1024, 64))  # entries of an input, and samples in a batch of a graph
_FEWEST = 16  # of larger inputs
_MASKED = -1.7976931348623157e308  # stands for minus infinity: parameters are finite numbers
_BITS, _MOST_BITS = (128, 384, 1024), (2048, 4096)  # the latter where the samples of a batch show the need
_INDEPENDENT = "no row and no column is known to be an exact combination of others"
_PIECEWISE = {"relu", "leaky_relu", "relu6", "abs", "clamp", "threshold"}  # of which polynomials have one term
_CONSTANTS, _POLYNOMIALS = (5.0, 1e-4), (20.0, 1.5e-3)  # times the balls, and seconds for an entry of J
_HOW = {
    "balls": "with balls of {bits} bits",
    "exact": "by exact dependences of rows and columns, and balls of {bits} bits",
    "norms": "with norm-wise enclosures in float64",
}
_QUICK = 1.0  # seconds that balls may take before float64 is tried
_MOST_CONDITION = 1e11  # condition number of J J^T up to which float64 can prove that it is definite
_EASY = 1e12  # condition number of J J^T up to which 128 bits are tried
_BALL_BYTES = 3 * 48  # an entry of J J^T, of a factor and of a residual; 48 is the size of FLINT's arb_struct
_REACHED = 150  # rows up to which rho is enclosed
_REPEATED = Fraction(1, 10**6)  # share of a bound in float64 that a re-check with other roundings may lose
_PERMUTATIONS = 20
_ROUNDING = 2.0**-52  # of y: an exact fit that is rounded to float64 is at most 2^-53 ||y|| away
_MAC, _ENTRY = 2e-8, 1.2e-5  # seconds for a multiplication in a matrix product, and for a function of an entry


@dataclasses.dataclass(frozen=True, eq=False)
class EnclosedNetwork:
    """A traced network with its parameters and inputs as numbers.

    Attributes
    ----------
    traced : NetworkGraph
    parameters : (1, p) float64
        The values of the leaves of the graph, one after the other.
    x : (n, k) float64
        The inputs as they enter the graph.
    """

    traced: NetworkGraph
    parameters: Any
    x: Any

    @classmethod
    def of(cls, model: nn.Module, x: torch.Tensor, rows: int | None = None) -> EnclosedNetwork:
        """Trace a model for inputs.

        Parameters
        ----------
        model : torch.nn.Module
            In eval mode.
        x : torch.Tensor
            (n, ...).
        rows : int, optional
            The samples in a batch of the graph; by default at most 128, fewer of larger inputs.

        Raises
        ------
        InvalidInput
            As :func:`alignver.network.trace.trace_model`.

        Examples
        --------
        >>> network = EnclosedNetwork.of(nn.Linear(2, 1), torch.ones(3, 2))
        >>> network.parameters.shape, network.x.shape
        ((1, 3), (3, 2))
        """
        n = len(x)
        if rows is None:
            entries = math.prod(x.shape[1:])
            most = next((samples for limit, samples in _BATCHES if entries <= limit), _FEWEST)
            rows = -(-n // -(-n // most))
        padded = torch.cat([x, x[-1:].expand(max(0, rows - n), *x.shape[1:])])
        traced = trace_model(model, padded, rows=rows)
        values = [
            traced.tensors[k] for k, node in enumerate(traced.graph.nodes) if node.op in ("parameter", "constant")
        ]
        for k, node in enumerate(traced.graph.nodes):
            if node.op == "parameter" and bool(torch.isneginf(traced.tensors[k]).any()):
                raise refused(model, f"the parameter {node.args['name']!r} has the entry -inf")
        flat = [np.zeros(0), *(value.detach().cpu().double().reshape(-1).numpy() for value in values)]
        if any(bool((value == _MASKED).any()) and bool(np.isneginf(value).any()) for value in flat):
            raise refused(model, "a constant has both minus infinity and the smallest float64")
        parameters = np.concatenate(flat)[None, :]
        parameters[np.isneginf(parameters)] = _MASKED
        return cls(traced, parameters, x.detach().cpu().double().reshape(n, -1).numpy())

    @functools.cached_property
    def program(self) -> Program:
        """The program of the first batch.

        Raises
        ------
        NotProved
            For an operation without a rule.
        """
        rows, *rest = next(node.out[0][1] for node in self.traced.graph.nodes if node.op == "input")
        batch = self.x[np.minimum(np.arange(rows), len(self.x) - 1)].reshape(rows, *rest)
        return compiled(self.traced.graph, unpacked(self.traced.graph, self.parameters[0]), batch)

    def seconds(self, bits: int) -> float:
        """Estimate the time of a proof in balls."""
        program, n = self.program, len(self.x)
        m_y, share, N = program.columns, n / program.samples, n * program.columns
        products, entries = 0.7 * N**3, 0.0
        for step in program.steps:
            if step.kind == "affine":
                (G, R, k), columns = step.args["rows"], step.shape[-1]
                products += share * G * R * k * columns * (1 + 2 * m_y)
                one = program.samples == R  # one row for each sample: the gradients are not formed
                products += 0.6 * N**2 * G * (k + columns if one else k * columns)
                entries += 0.0 if one else N * G * k * columns / 16
            elif step.kind == "matmul":
                products += share * step.size * program.steps[step.of[0]].shape[-1] * (1 + 2 * m_y)
            elif step.owner is not None:
                entries += share * step.size * (1.0 if step.kind == "map" else (1 + m_y) / 16)
        return (1.0 + bits / 400) * (_MAC * products + _ENTRY * entries)

    @staticmethod
    def least_seconds(d: int, n: int, m_y: int) -> float:
        """Bound the estimates from below before a model is traced: every parameter is used once for each sample."""
        return _MAC / 40 * d * n * (1 + 2 * m_y)

    @property
    def seconds_in_floats(self) -> float:
        """Estimate the time of a proof with norm-wise enclosures; infinite for a Jacobian that is too large."""
        n, N = len(self.x), len(self.x) * self.program.columns
        wide, width = self.trainable >= N, self.trainable
        entries = N * self.trainable
        for step in self.program.steps if wide else ():
            if step.kind == "affine" and step.args["rows"][1] == self.program.samples:  # in factors
                (G, _, k), columns = step.args["rows"], step.shape[-1]
                entries -= G * (N * k * columns - n * k - N * columns)
                width -= G * (k * columns - k - columns)
        if max(entries, N * N) > norm_alignment.MOST_ENTRIES:
            return math.inf
        order = min(N, self.trainable)
        work = 10.0 * order**3 + 2.0 * N * (N * width if wide else self.trainable**2)
        return self.seconds(53) / 40 + 2e-11 * work + 2e-8 * entries

    @property
    def seconds_of_dependences(self) -> float:
        """Estimate the time of the exact dependences of a Jacobian."""
        kinds = ("map", "softmax", "log_softmax", "logsumexp", "normalize", "quotient")
        functions = {step.args.get("fn", step.kind) for step in self.program.steps if step.kind in kinds}
        times, entry = _CONSTANTS if functions <= _PIECEWISE else _POLYNOMIALS
        return times * self.seconds(_BITS[0]) + entry * self.trainable * len(self.x) * self.program.columns

    @property
    def trainable(self) -> int:
        """The number of parameters that can be trained."""
        return sum(math.prod(node.out[0][1]) for node in self.traced.graph.nodes
                   if node.op == "parameter" and node.args["trainable"])  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkProof:
    """What is proved about the alignment of a network.

    Attributes
    ----------
    verdict : Verdict
        HOLDS or FAILS.
    reason : str
    certificate : Certificate
    how : str
        The arithmetic of the enclosures, in words.
    kappa : (float, float)
        An enclosure of kappa; infinite where y is outside of the column space.
    shuffled : float
        The median of kappa for 20 permutations of the targets, NaN if they were not computed.
    seconds : float
    reach : tuple of Reach
        How closely y is reached by parameters of norms that are powers of ten.
    hidden : tuple of str
        Where autograd's derivatives are not those of the function, which this is about.
    """

    verdict: Verdict
    reason: str
    certificate: Certificate
    how: str
    kappa: tuple[float, float]
    shuffled: float
    seconds: float
    reach: tuple[Reach, ...] = ()
    hidden: tuple[str, ...] = ()


def prove_alignment(
    network: EnclosedNetwork,
    y: Any,
    m_y: int,
    *,
    seconds: float,
    condition: Callable[[], float],
    deficient: bool = False,
) -> NetworkProof | str:
    """Prove that targets are in the column space of the Jacobian of a network, or that they are not.

    Parameters
    ----------
    network : EnclosedNetwork
    y : (n m_y,) float64
        The targets, output by output.
    m_y : int
    seconds : float
        The largest estimated time of a precision that is tried.
    condition : callable
        Returns about the condition number of the Gram matrix of J, of which the precision depends.
    deficient : bool
        J is known to have neither full row rank nor full column rank: exact dependences alone can decide.

    Returns
    -------
    NetworkProof or str
        Why nothing is proved.

    Examples
    --------
    >>> network = EnclosedNetwork.of(nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]]))
    >>> prove_alignment(network, np.array([1.0, 3.0]), 1, seconds=1.0, condition=lambda: 1.0).verdict
    <Verdict.FAILS: 'FAILS'>
    """
    began = time.perf_counter()
    y, wide = np.asarray(y, dtype=np.float64), network.trainable >= len(y)
    reasons: list[str] = []
    try:
        require_ieee(threaded=True)
        in_balls = network.seconds(_BITS[0]) if balls.available() else math.inf
        in_floats = network.seconds_in_floats
        if min(in_balls, in_floats) > seconds:
            return f"enclosures would take about {min(in_balls, in_floats):.0f} s"
        level = math.inf if deficient else condition()
        if in_balls > _QUICK and level <= _MOST_CONDITION and in_floats <= seconds:
            try:
                return _by_norms(network, y, m_y, wide, began)
            except NotProved as error:
                reasons.append(f"in float64: {error}")
        if in_balls > seconds:
            words = f"would take about {in_balls:.0f} s" if balls.available() else "need python-flint"
            return "; ".join((*reasons, f"balls {words}"))
        size = _BALL_BYTES * len(y) ** 2
        if available_memory() < size:
            return "; ".join((*reasons, f"balls would take more than {size / 1e6:.3g} MB"))
        small = network.trainable * len(y) <= alignment.MOST_EXACT and network.seconds_of_dependences <= seconds
        if deficient and not small:
            return "J has neither full row rank nor full column rank, and is too large for its exact dependences"
        needed = 0.0 if level <= _EASY or deficient else _needed_bits(network, _BITS[1]) if wide else _BITS[1]
        reduced = functools.partial(_by_dependences, [])
        attempt, looked = reduced if deficient else _holds if wide else _fails, deficient or not small
        precisions = [bits for bits in (*_BITS, *_MOST_BITS) if bits >= needed] or _MOST_BITS[-1:]
        for bits in precisions:
            estimate = network.seconds(bits)
            far = bits > max(precisions[0], _BITS[-1]) and estimate > _QUICK
            if far or time.perf_counter() - began + estimate > seconds:
                reasons.append(f"balls of {bits} bits would take about {estimate:.0f} s")
                break
            try:
                return attempt(network, y, m_y, bits, began)
            except NotProved as error:
                reasons.append(f"{error} ({bits} bits)")
                if "precision" not in str(error) and "decided" not in str(error):
                    break
                if looked or "singular" not in str(error):
                    continue
            looked = True
            try:
                return reduced(network, y, m_y, bits, began)
            except NotProved as error:
                reasons.append(f"{error} ({bits} bits)")
                attempt = attempt if _INDEPENDENT in str(error) else reduced
    except (NotProved, Unsupported) as error:
        reasons.append(str(error))
    return "; ".join(reasons)


def _needed_bits(network: EnclosedNetwork, bits: int) -> float:
    """Estimate the precision for which J J^T is definite, from the pivots of the samples of one batch.

    Their bits grow with the number of samples, at most in proportion to it.
    """
    n, few = len(network.x), network.program.samples
    if n <= few:
        return bits
    try:
        with balls.precision(bits):
            leaves = alignment.jacobian(network.traced.graph, network.parameters[0], network.x[:few])
            pivots = ball_matrices.definite(balls.gram(leaves)).pivots()
    except NotProved:
        return bits + 1.0
    whole, half = (-2.0 * min(pivots[: -(-len(pivots) // share)]) for share in (1, 2))
    growth = math.log2(whole / half) if whole > half > 1.0 else 0.0
    return max(float(bits), whole * math.pow(n / few, min(growth, 1.0)) + 64.0)


def _permuted(y: Any, m_y: int) -> Any:
    """Return the targets, and permutations of samples with all of their targets, as columns."""
    random, grid = np.random.default_rng(0), y.reshape(m_y, -1)
    others = [grid[:, random.permutation(grid.shape[1])].reshape(-1) for _ in range(_PERMUTATIONS)]
    return np.stack([y, *others], axis=1)


def _by_norms(network: EnclosedNetwork, y: Any, m_y: int, wide: bool, began: float) -> NetworkProof | str:
    J = norm_alignment.jacobian(network.traced.graph, network.parameters[0], network.x, factored=wide)
    if not wide:
        A = np.concatenate([block.dense() for block in J.blocks], axis=1)
        shift = _half_smallest_eigenvalue(A.T @ A)
        low = exact.rounded_down(norm_alignment.misaligned(J, y, shift) * (1 - _REPEATED))
        return _outside(network, y, low, math.inf, {"shift": shift}, "norms", began)
    M, scale, _, _ = norm_alignment.scaled_gram(J)
    shift = _half_smallest_eigenvalue(M)
    lower, upper, _ = norm_alignment.aligned(J, y, shift)
    spare = (upper - lower) / 2 + upper * _REPEATED  # another number of threads rounds differently
    kappa = exact.rounded_down(exact.sqrt_down(lower - spare)), exact.rounded_up(exact.sqrt_up(upper + spare))
    targets = _permuted(y, m_y) * scale[:, None]
    squares = np.einsum("nk,nk->k", targets, np.linalg.solve(M, targets))
    shuffled = math.sqrt(max(0.0, float(np.median(squares[1:]))))
    return _inside(network, y, kappa, shuffled, {"shift": shift}, "norms", began)


def _half_smallest_eigenvalue(M: Any) -> float:
    """Return about half of the smallest eigenvalue of a Gram matrix."""
    smallest = float(np.linalg.eigvalsh(M)[0])
    if not smallest > 0.0:
        raise NotProved("the Gram matrix is not definite in float64")
    return smallest / 2.0


def _holds(network: EnclosedNetwork, y: Any, m_y: int, bits: int, began: float) -> NetworkProof:
    targets = _permuted(y, m_y)
    with balls.precision(bits), threaded_flint(len(y)):
        leaves = alignment.jacobian(network.traced.graph, network.parameters[0], network.x)
        M, proved = alignment.full_row_rank(leaves, len(y))
        kappa = alignment.ends(proved.form(y))
        shuffled = statistics.median(float(balls.root(square)) for square in proved.estimates(targets[:, 1:]))
        reached = reach(M, y, kappa[1]) if len(y) <= _REACHED else ()
    proof = _inside(network, y, kappa, shuffled, {"bits": bits}, "balls", began)
    return dataclasses.replace(proof, reach=reached, seconds=time.perf_counter() - began)


def _fails(network: EnclosedNetwork, y: Any, m_y: int, bits: int, began: float) -> NetworkProof | str:
    with balls.precision(bits), threaded_flint(len(y)):
        leaves = alignment.jacobian(network.traced.graph, network.parameters[0], network.x)
        low, high = alignment.ends(alignment.independent(leaves, y))
    return _outside(network, y, low, high, {"bits": bits}, "balls", began)


@dataclasses.dataclass
class _Reduced:
    """The exact dependences of a Jacobian, which are known once and for all precisions."""

    J: Dependences
    rows: list[int]
    consistent: bool
    first: int
    generators: tuple[Any, list[int]]

    @classmethod
    def of(cls, network: EnclosedNetwork, y: Any) -> _Reduced:
        """Find the dependences, and the split of the columns that has the fewest generators."""
        J = alignment.dependences(network.traced.graph, network.parameters[0], network.x, len(y))
        rows = J.row_basis(y)
        consistent = len(rows) == len(J.row_basis(np.zeros_like(y)))
        leaves = {s.args["leaf"]: s.size for s in network.program.steps if s.args.get("trainable")}  # those in use
        sizes = [leaves[k] for k in sorted(leaves)]
        first, best = 0, J.generators(0)
        narrow = itertools.accumulate(sizes[:-1]) if network.program.columns > 1 else ()
        for split in (J.J.shape[1], *narrow):
            other = J.generators(split)
            if len(other[0]) + len(other[1]) < len(best[0]) + len(best[1]):
                first, best = split, other
        return cls(J, rows, consistent, first, best)

    @property
    def bound(self) -> int:
        """A bound of the rank."""
        return min(len(self.rows), len(self.generators[0]) + len(self.generators[1]))


def _by_dependences(
    known: list[_Reduced], network: EnclosedNetwork, y: Any, m_y: int, bits: int, began: float
) -> NetworkProof | str:
    """Decide by rows and columns of which the others are exact combinations; these remain known for more bits."""
    with balls.precision(bits):
        if known:
            leaves = alignment.jacobian(network.traced.graph, network.parameters[0], network.x)
            known[0].J.J = balls.columns(leaves)
        else:
            known.append(_Reduced.of(network, y))
        J, rows, generators = known[0].J, known[0].rows, known[0].generators
        whole = known[0].consistent and known[0].bound == min(J.J.shape)
        reasons: list[str] = [_INDEPENDENT] if whole else []
        ways: list[list[int] | None] = [rows] if known[0].consistent and not whole else []
        ways += [[]] if known[0].consistent else []
        ways += [] if whole else [None]
        for basis in ways:
            try:
                square = J.missed(y, generators) if basis is None else J.reached(y, basis)
            except NotProved as error:
                reasons.append(str(error))
                continue
            ends = alignment.ends(square)
            if basis is None:
                data = {"first": np.array([known[0].first], dtype=np.int64)}
                return _outside(network, y, *ends, {"bits": bits}, "exact", began, data)
            by = "it satisfies all dependences of the rows" if basis else "some columns give exactly these numbers"
            reason, data = f"y is in the column space of J: {by}", {"basis": np.array(basis, dtype=np.int64)}
            return _inside(network, y, ends, math.nan, {"bits": bits}, "exact", began, data, reason)
    raise NotProved(next((reason for reason in reasons if "singular" in reason), reasons[0]))


def _inside(
    network: EnclosedNetwork,
    y: Any,
    kappa: tuple[float, float],
    shuffled: float,
    constants: dict[str, Any],
    method: str,
    began: float,
    data: dict[str, Any] | None = None,
    reason: str = "J has full row rank, so every y is in its column space",
) -> NetworkProof:
    if not math.isfinite(kappa[1]):
        raise NotProved("kappa is beyond the largest float, although y is in the column space of J")
    certificate = _sealed(network, y, "network-alignment", method, {**constants, "kappa": list(kappa)}, data)
    how = _HOW[method].format(**constants)
    seconds, hidden = time.perf_counter() - began, network.traced.hidden
    return NetworkProof(Verdict.HOLDS, reason, certificate, how, kappa, shuffled, seconds, hidden=hidden)


def _outside(
    network: EnclosedNetwork,
    y: Any,
    low: float,
    high: float,
    constants: dict[str, Any],
    method: str,
    began: float,
    data: dict[str, Any] | None = None,
) -> NetworkProof | str:
    size = float(np.linalg.norm(y))
    if high <= _ROUNDING * size:
        return f"y is outside of the column space of J, but only {shown_up(high)} is proved, less than its rounding"
    reason = f"y is at least {shown_down(low)} away from the column space of J (||y|| = {size:.3g})"
    certificate = _sealed(network, y, "network-misalignment", method, {**constants, "distance": low}, data)
    how, seconds = _HOW[method].format(**constants), time.perf_counter() - began
    infinite, hidden = (math.inf, math.inf), network.traced.hidden
    return NetworkProof(Verdict.FAILS, reason, certificate, how, infinite, math.nan, seconds, hidden=hidden)


def _sealed(
    network: EnclosedNetwork,
    y: Any,
    claim: str,
    method: str,
    constants: dict[str, Any],
    data: dict[str, Any] | None = None,
) -> Certificate:
    inputs = {"parameters": network.parameters, "x": network.x, "y": y}
    return seal(claim, method, inputs, {"graph": network.traced.data, **(data or {})}, constants)


def traced_again(
    certificate: Certificate, trace: Callable[[int], EnclosedNetwork], most: int
) -> tuple[EnclosedNetwork, str]:
    """Trace a model as it was for a certificate; return the network, and how their graphs relate, in a sentence.

    Parameters
    ----------
    certificate : Certificate
    trace : callable
        Traces the model for batches of a number of samples.
    most : int
        The largest number of samples in a batch.

    Raises
    ------
    InvalidInput
        The certificate has no graph, or that of another network.
    """
    need = "one that was made for this model and these data: the same code, weights and version of torch"
    try:
        graph = parse(certificate.data["graph"])
        rows = next(node.out[0][1][0] for node in graph.nodes if node.op == "input")
    except Exception as error:  # a document that anyone may have written
        raise InvalidInput("certificate", "no graph of a network", need) from error
    if not 1 <= rows <= most:
        raise InvalidInput("certificate", f"a graph for batches of {rows} samples", need)
    network = trace(rows)
    if not np.array_equal(network.traced.data, certificate.data["graph"]):
        raise InvalidInput("certificate", "the graph of another network than this model's", need)
    return network, "the graph in the certificate is the one that this model is traced to"
