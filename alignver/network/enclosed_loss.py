r"""The training loss of a network with proved bounds, and its distance from the infimum.

The kernel encloses the outputs of the network in real arithmetic, for its parameters and inputs as they are stored
(:mod:`alignver.kernel.network.optimality`): norm-wise in float64, which costs about as much as two forward passes, and
in balls where that is not close and the network is small. This module chooses the arithmetic and seals the claims.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.features.threads import ordered, single_threaded_blas, threads_for
from alignver.kernel import Certificate, seal
from alignver.kernel.data import least_loss
from alignver.kernel.exact import rounded_down, rounded_up
from alignver.kernel.failure import NotProved, Unsupported
from alignver.kernel.machine import require_ieee
from alignver.kernel.network import balls, optimality
from alignver.kernel.network.graph import parse
from alignver.kernel.optimality import loss_interval
from alignver.network.enclosed_features import batch_rows, network_inputs
from alignver.network.enclosures import EnclosedNetwork, traced_again
from alignver.progress import stage
from alignver.results import Verdict

_BITS: tuple[int | None, ...] = (None, 128, 384)  # None: norm-wise in float64
_MOST_ROWS, _MOST_ENTRIES = 512, 1 << 22  # of a batch: what all batches share is worth its time for many samples
_QUICK = 1.0  # seconds that balls may take where they are only closer
_CLOSE = Fraction(1, 10**3)  # share of the loss that may be the width of its enclosure
_ROOM, _TINY = Fraction(1, 2**30), Fraction(1, 2**900)  # for logarithms and exponentials of another library
_PRODUCT, _ENTRY = 1.5e-9, 3e-8  # seconds for a product in a matrix product, and for an entry of another step
_BALL_PRODUCT, _BALL_ENTRY, _BALL_FUNCTION = 3e-8, 1e-6, 1.2e-5  # the same in balls, and for a function of an entry


@dataclasses.dataclass(frozen=True)
class _Loss:
    """Bounds of a loss; the wide ones also hold for the computed outputs of another machine."""

    lower: Fraction
    upper: Fraction
    errors: int | None
    wide_lower: Fraction
    wide_upper: Fraction


@dataclasses.dataclass(frozen=True, eq=False)
class OptimalityProof:
    """What is proved about the training loss of a network.

    Attributes
    ----------
    verdict : Verdict
        HOLDS or FAILS with a certificate, or UNDECIDED.
    lower, upper : float
        Bounds of the loss.
    floor : float
        A lower bound of the loss of every function of the inputs.
    gap : float
        If the verdict is FAILS, a lower bound of the distance from the infimum, otherwise an upper bound.
    errors : int or None
        The largest possible number of training errors; None for the squared loss.
    bits : int or None
        The precision of the balls; None for norm-wise enclosures in float64.
    certificate : Certificate or None
    inputs : mapping
        What the certificate is about: ``parameters``, ``x`` and ``Y``.
    rounded : bool
        Whether the inputs were rounded to the dtype of the parameters.
    why : str
        Why nothing is decided.
    seconds : float
    """

    verdict: Verdict
    lower: float
    upper: float
    floor: float
    gap: float
    errors: int | None
    bits: int | None
    certificate: Certificate | None
    inputs: Mapping[str, Any]
    rounded: bool
    why: str
    seconds: float

    @property
    def how(self) -> str:
        """The arithmetic of the enclosures."""
        return "norm-wise enclosures in float64" if self.bits is None else f"balls of {self.bits} bits"


def output_network(model: nn.Module, X: Any, *, rows: int | None = None) -> tuple[EnclosedNetwork, bool]:
    """Trace a model for inputs; return it, and whether the inputs are rounded to the dtype of its parameters.

    Parameters
    ----------
    model : torch.nn.Module
        Copied, and traced in eval mode on the CPU.
    X : array or tensor
        (n, ...).
    rows : int, optional
        The samples in a batch of the graph; None chooses by the size of a sample.

    Raises
    ------
    InvalidInput
        The model cannot be copied or traced.

    Examples
    --------
    >>> network, rounded = output_network(nn.Linear(2, 3), [[0.1, 1.0], [1.0, 0.0]])
    >>> network.program.columns, rounded
    (3, True)
    """
    twin, x = network_inputs(model, X)
    network = _traced(twin, x, batch_rows(x) if rows is None else rows)
    if rows is None:
        larger = min(_MOST_ROWS, len(x), _MOST_ENTRIES // _entries(network))
        count = -(-len(x) // max(1, larger))
        if larger >= 2 * network.program.samples:
            network = _traced(twin, x, -(-len(x) // count))
    given = np.asarray(X.detach().cpu().double() if hasattr(X, "detach") else X, dtype=np.float64)
    return network, not np.array_equal(given.reshape(network.x.shape), network.x)


def _traced(model: nn.Module, x: torch.Tensor, rows: int) -> EnclosedNetwork:
    """Trace a model whose programs are to have no gradients; its document still says which parameters have."""
    network = EnclosedNetwork.of(model, x, rows)
    graph = optimality.without_gradients(network.traced.graph)
    return dataclasses.replace(network, traced=dataclasses.replace(network.traced, graph=graph))


def _entries(network: EnclosedNetwork) -> int:
    """Return the entries of all steps of the program of a sample, with the rows that products gather."""
    program, total = network.program, 1
    for step in program.steps:
        if step.owner is not None:
            total += step.size + (math.prod(step.args["rows"]) if step.kind == "affine" else 0)
    return -(-total // program.samples)


def prove_optimality(
    model: nn.Module,
    X: Any,
    Y: Any,
    loss: str,
    *,
    tolerance: float,
    seconds: float,
    better: Callable[[], Mapping[str, Any]] | None = None,
) -> OptimalityProof | str:
    r"""Prove that a training loss is within a tolerance of its infimum, or that it is not.

    .. math:: \mathcal L(\theta) - \inf \mathcal L \le \mathcal L(\theta) - b, \qquad
              b \le \tfrac1n \sum_i \ell(g(x_i), y_i) \text{ for every function } g

    Parameters
    ----------
    model : torch.nn.Module
    X : array or tensor
        (n, ...).
    Y : (n, m_y) float64
        Targets; 0 and 1 for the cross-entropies.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"}
    tolerance : float
    seconds : float
        The largest estimated time of the enclosures.
    better : callable, optional
        Returns values of trainable parameters, by name, that may have a smaller loss.

    Returns
    -------
    OptimalityProof or str
        Why the outputs are not enclosed.

    Raises
    ------
    InvalidInput
        The loss is not defined for the targets.

    Notes
    -----
    Rigor: PROOF about the network in real arithmetic, at the floats of its parameters and inputs. Source: sections 3.2
    and 3.3 of Kawaguchi, Zhang, Deng (2022) for the gap; the rules of :mod:`alignver.kernel.network.normwise` and
    :mod:`alignver.kernel.network.balls` for the outputs.

    Examples
    --------
    >>> import torch
    >>> line = nn.Linear(1, 1)
    >>> _ = line.weight.data.fill_(2.0), line.bias.data.fill_(1.0)
    >>> Y = np.array([[1.0], [3.0]])
    >>> prove_optimality(line, [[0.0], [1.0]], Y, "squared", tolerance=1e-9, seconds=1.0).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    began = time.perf_counter()
    try:
        require_ieee(threaded=True)
        with stage("enclosing the outputs"):
            network, rounded = output_network(model, X)
            with threads_for(len(network.x) * network.parameters.size):
                return _decided(network, Y, loss, tolerance, seconds, better, rounded, began)
    except InvalidInput as error:
        if error.argument == "Y":
            raise
        return error.got
    except (NotProved, Unsupported) as error:
        return str(error)


def _decided(
    network: EnclosedNetwork,
    Y: Any,
    loss: str,
    tolerance: float,
    seconds: float,
    better: Callable[[], Mapping[str, Any]] | None,
    rounded: bool,
    began: float,
) -> OptimalityProof | str:
    first, _ = optimality.distinct(network.x)
    floor = Fraction(least_loss(first, Y, loss)[0])
    bounds, bits, reasons = _closest(network, Y, loss, floor, Fraction(tolerance), seconds)
    if bounds is None:
        return "; ".join(reasons)
    gap = max(rounded_up(bounds.wide_upper * (1 + _ROOM) + _TINY - floor), 0.0)
    lower, upper = rounded_down(bounds.lower), rounded_up(bounds.upper)
    verdict, certificate, why = Verdict.UNDECIDED, None, "; ".join(reasons)
    inputs, graph = {"parameters": network.parameters, "x": network.x, "Y": Y}, network.traced.data
    constants, method = {"loss": loss, "gap": gap, "bits": bits}, "norms" if bits is None else "balls"
    if gap <= tolerance:
        verdict = Verdict.HOLDS
        content = {**constants, "errors": bounds.errors}
        certificate = seal("network-optimality", method, inputs, {"graph": graph}, content)
    elif bounds.lower - floor > tolerance and better is not None:
        values = {name: np.asarray(value, dtype=np.float64).reshape(-1) for name, value in better().items()}
        lead = _excess(network, values, Y, loss, bits, bounds) if values else 0.0
        why = "no better parameters were found"
        if lead > tolerance:
            verdict, gap = Verdict.FAILS, lead
            data = {"graph": graph, **{f"better{k}": value for k, value in enumerate(values.values())}}
            content = {**constants, "gap": lead, "changed": list(values)}
            certificate = seal("network-suboptimality", method, inputs, data, content)
    elapsed = time.perf_counter() - began
    return OptimalityProof(
        verdict, lower, upper, float(floor), gap, bounds.errors, bits, certificate, inputs, rounded, why, elapsed
    )


def _closest(
    network: EnclosedNetwork, Y: Any, loss: str, floor: Fraction, tolerance: Fraction, seconds: float
) -> tuple[_Loss | None, int | None, list[str]]:
    """Return the bounds of the loss, by balls if those in float64 are not close and balls are quick or needed."""
    best, chosen_bits, reasons = None, None, list[str]()
    for bits in _BITS if balls.available() else _BITS[:1]:
        estimate = _seconds(network, bits)
        decided = best is not None and (best.wide_upper - floor <= tolerance or best.lower - floor > tolerance)
        if estimate > (min(_QUICK, seconds) if decided else seconds):
            if not decided:
                what = "enclosures" if bits is None else f"balls of {bits} bits"
                reasons.append(f"{what} would take about {estimate:.0f} s")
            continue
        try:
            bounds = _loss(network, network.parameters[0], Y, loss, bits)
        except NotProved as error:
            reasons.append(str(error))
            continue
        if best is None or bounds.wide_upper < best.wide_upper:
            best, chosen_bits = bounds, bits
        if best.wide_upper - best.wide_lower <= _CLOSE * best.wide_upper:
            break
    return best, chosen_bits, reasons


def _loss(network: EnclosedNetwork, theta: Any, Y: Any, loss: str, bits: int | None) -> _Loss:
    """Return bounds of the loss; others compute outputs that are two radii away at most."""

    def run(enclose: Callable[[int], Any], starts: Any) -> Iterator[Any]:
        return ordered(enclose, ((start,) for start in starts))

    with single_threaded_blas():
        f, radius = optimality.outputs(parse(network.traced.data), theta, network.x, bits, run)
    if f.shape != Y.shape:
        raise NotProved(f"outputs of shape {f.shape} for targets of shape {Y.shape}")
    lower, upper, _ = loss_interval(f, radius, Y, loss)
    wide_lower, wide_upper, errors = loss_interval(f, (3.0 + 2.0**-20) * radius, Y, loss)
    return _Loss(lower, upper, errors, wide_lower, wide_upper)


def _excess(
    network: EnclosedNetwork, values: Mapping[str, Any], Y: Any, loss: str, bits: int | None, bounds: _Loss
) -> float:
    """Return a lower bound of what the loss exceeds that of other parameters by; 0 if there is none."""
    try:
        theta = optimality.changed(parse(network.traced.data), network.parameters[0], dict(values))
        smaller = _loss(network, theta, Y, loss, bits)
    except NotProved:
        return 0.0
    lead = bounds.wide_lower * (1 - _ROOM) - smaller.wide_upper * (1 + _ROOM) - _TINY
    return max(rounded_down(lead), 0.0)


def _seconds(network: EnclosedNetwork, bits: int | None) -> float:
    """Estimate the time of an enclosure of all outputs."""
    program = network.program
    products, entries, functions = 0, 0, 0
    for step in program.steps:
        if step.kind == "affine":
            products += math.prod(step.args["rows"]) * step.shape[-1]
        elif step.kind == "matmul":
            products += step.size * program.steps[step.of[0]].shape[-1]
        elif step.kind == "map":
            functions += step.size
        else:
            entries += step.size
    count = -(-len(network.x) // program.samples)
    if bits is None:
        return count * (_PRODUCT * products + _ENTRY * (entries + functions))
    work = _BALL_PRODUCT * products + _BALL_ENTRY * entries + _BALL_FUNCTION * functions
    return count * (1.0 + bits / 400) * work


def inputs_again(certificate: Certificate, model: nn.Module, X: Any, Y: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Recompute the inputs of a certificate about the training loss of a network: trace the model, compare the graphs.

    Parameters
    ----------
    certificate : Certificate
    model : torch.nn.Module
    X, Y
        As :func:`prove_optimality` takes them.

    Returns
    -------
    inputs : dict of str to array
        For :func:`alignver.recheck`.
    notes : tuple of str
        How the graph in the certificate relates to the model, in sentences.

    Raises
    ------
    InvalidInput
        The certificate is of another kind, or about another network.

    Examples
    --------
    >>> import alignver
    >>> net, X, Y = nn.Linear(1, 1), [[0.0], [1.0]], np.array([[1.0], [3.0]])
    >>> proved = prove_optimality(net, X, Y, "squared", tolerance=1e3, seconds=1.0)
    >>> alignver.recheck(proved.certificate, **inputs_again(proved.certificate, net, X, Y)[0]).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    network, note = traced_again(certificate, lambda rows: output_network(model, X, rows=rows)[0], _MOST_ROWS)
    return {"parameters": network.parameters, "x": network.x, "Y": Y}, (note,)
