"""The training loss of a network and its distance from the infimum: proved, or as the module computes it."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from alignver.checks.data import bound_sentence, conflict_sentence
from alignver.errors import InvalidInput, kind_of
from alignver.features.threads import threads_for
from alignver.network.adapt import adapted
from alignver.network.enclosed_features import model_inputs, network_inputs
from alignver.network.enclosed_loss import OptimalityProof, prove_optimality
from alignver.network.functional import running_copy
from alignver.network.inputs import as_targets, in_dtype_of, reporting_input_errors
from alignver.network.preserve_state import eval_mode, preserve_random_states
from alignver.proof.duplicate_inputs import DuplicateInputs
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict, shown_down, shown_up
from alignver.samples import fingerprints, open_samples
from alignver.theory.losses import loss_name, sample_loss

_BATCH = 256
_STEPS = 200
_MOST_CHANGED = 60  # parameters that are changed together: a certificate has 64 arrays at most
_TRAIN = "train longer: other parameters may have a smaller loss"
_BUDGET = "for a proof about the network, allow its enclosures more time: budget_seconds="
_WORDS = {Verdict.HOLDS: "below", Verdict.FAILS: "above", Verdict.UNDECIDED: "undecided"}

_result = functools.partial(
    CheckResult, name="optimality", statement="Global optimality (Theorems 4 and 5)", subject=Subject.NETWORK
)


@preserve_random_states()
def check_network(
    model: nn.Module, X: Any, Y: Any, *, loss: Any, tolerance: float, certify: bool, seconds: float
) -> CheckResult:
    """Check the training loss of a model; the arguments are those of :func:`~alignver.check_optimality`."""
    model, X, Y = adapted(model, X, Y)
    if X is None or Y is None:
        raise InvalidInput("Y" if Y is None else "X", "nothing", "X= and Y=, inputs and targets", "wrong-type")
    loss = loss_name(loss)
    x = network_inputs(model, X)[1]
    outputs = outputs_as_run(model, X)
    if outputs.ndim > 2:
        raise InvalidInput("model", f"outputs of shape {outputs.shape}", "a row of outputs per sample", "wrong-shape")
    values = outputs.reshape(len(outputs), -1)
    n, m_y = values.shape
    targets = sample_loss(loss, m_y).targets(as_targets(Y, n), n, m_y)
    as_run = loss_as_run(values, targets, loss)
    proof: OptimalityProof | str = "no certificate was requested"
    if certify:
        search = functools.partial(better_parameters, model, X, targets, loss, seconds=seconds)
        proof = prove_optimality(model, X, targets, loss, tolerance=tolerance, seconds=seconds, better=search)
    measured = {"loss": loss, "samples": n, "outputs": m_y, "loss_as_run": as_run}
    words = (
        f"the loss of a sample is the sum over its {m_y} outputs: a mean over them, as torch's, is {m_y} times smaller"
    )
    summed = () if m_y == 1 or loss == "cross_entropy" else (words,)
    if isinstance(proof, OptimalityProof):
        conflicts = _conflicts(x, targets, loss)
        return _about_the_network(proof, tolerance, as_run, dtype_of(model), (*summed, *conflicts), measured)
    floor = _duplicates(x, targets).least_loss(loss)[0]
    gap = as_run - floor
    below = gap <= tolerance
    above = "" if below else "; parameters with a smaller loss may or may not exist"
    return _result(
        verdict=Verdict.HOLDS if below else Verdict.UNDECIDED,
        rigor=Rigor.NUMERICAL,
        reason=f"the loss of the module as it runs exceeds its lower bound {floor:.6g} by {shown_up(gap)} "
        f"(tolerance: {tolerance:.3g}){above}",
        code="optimality-run-below" if below else "optimality-run-above",
        next_steps=() if below else (_TRAIN, *((_BUDGET,) if certify else ())),
        evidence=(f"nothing is proved about the network: {proof}", *summed),
        measured={**measured, "infimum_lower": floor},
        bounds=(Bound("L(theta) - inf L", gap, "<=", tolerance),),
    )


def with_proof(
    stored: CheckResult, proof: OptimalityProof | str, tolerance: float, as_run: float, dtype: str
) -> CheckResult:
    """Return what is proved about a network, with the result about its stored features as evidence; else that result.

    Parameters
    ----------
    stored : CheckResult
        About the last layers, from features as they were computed.
    proof : OptimalityProof or str
    tolerance : float
    as_run : float
        The loss of the module as it runs.
    dtype : str
        Of the module.
    """
    measured = {**stored.measured, "loss_as_run": as_run}
    undecided = isinstance(proof, OptimalityProof) and proof.verdict is Verdict.UNDECIDED
    if not isinstance(proof, OptimalityProof) or (undecided and proof.lower - proof.floor <= tolerance):
        why = proof if isinstance(proof, str) else f"its loss is only proved to be within {_interval(proof)}"
        evidence = (f"nothing is proved about the network: {why}", "about the features as stored", *stored.evidence)
        return dataclasses.replace(stored, evidence=evidence, measured=measured)
    conflicts = stored.evidence[:2] if "conflicts" in stored.measured else ()
    kept = {name: value for name, value in measured.items() if not name.startswith(("gap_", "loss_value"))}
    matrix = {"verdict": stored.verdict.value, "rigor": stored.rigor.value, "reason": stored.reason}
    result = _about_the_network(proof, tolerance, as_run, dtype, conflicts, {**kept, "stored_features": matrix})
    line = f"about the features as stored: {stored.verdict}, {stored.rigor.value.lower()}: {stored.reason}"
    others = (entry for entry in stored.evidence if entry not in conflicts and "training errors" not in entry)
    return dataclasses.replace(result, evidence=(*result.evidence, line, *others), next_steps=stored.next_steps)


def _about_the_network(
    proof: OptimalityProof, tolerance: float, as_run: float, dtype: str, conflicts: tuple[str, ...], measured: Any
) -> CheckResult:
    above = proof.verdict is Verdict.FAILS
    shown = f"more than {shown_down(proof.gap)}" if above else f"at most {shown_up(proof.gap)}"
    reason = f"the training loss of the network exceeds its global infimum by {shown} (tolerance: {tolerance:.3g})"
    if proof.verdict is Verdict.UNDECIDED:
        reason += f", and the loss is proved to be at least {shown_down(proof.lower)}: {proof.why}"
    apart = max(proof.lower - as_run, as_run - proof.upper, 0.0)
    errors: tuple[str, ...] = ()
    bounds = [Bound("L(theta) - inf L", proof.gap, "<=", tolerance)]
    if proof.errors is not None:
        bounds.append(Bound("training errors", proof.errors, "<=", 0))
        errors = (f"at most {proof.errors} training errors" if proof.errors else "no training errors, proved",)
    rounded = ("the inputs are rounded to the dtype of the parameters",) if proof.rounded else ()
    numbers: dict[str, Any] = {"loss_lower": proof.lower, "loss_upper": proof.upper, "infimum_lower": proof.floor}
    numbers |= {"gap_lower" if above else "gap_upper": proof.gap, "training_errors": proof.errors}
    numbers |= {"loss_as_run": as_run, "enclosed_by": proof.how}
    return _result(
        verdict=proof.verdict,
        rigor=Rigor.NUMERICAL if proof.verdict is Verdict.UNDECIDED else Rigor.PROOF,
        reason=reason,
        code=f"optimality-network-{_WORDS[proof.verdict]}",
        next_steps=()
        if proof.verdict is Verdict.HOLDS
        else ("train longer: parameters with a smaller loss are in the certificate",)
        if above
        else (_TRAIN,),
        evidence=(
            f"in real arithmetic, at its parameters as they are: the loss is within {_interval(proof)}, by {proof.how}",
            f"the module as it runs, in {dtype}: {as_run:.6g}"
            + (f", which is off by {shown_up(apart)}" if apart else ", which is in this interval"),
            *conflicts,
            *errors,
            *rounded,
        ),
        measured={**measured, **numbers},
        bounds=tuple(bounds),
        witness={"kind": "better parameters", "gap_lower": proof.gap} if above else None,
        certificate=proof.certificate,
    )


def _interval(proof: OptimalityProof) -> str:
    return f"[{shown_down(proof.lower, 6)}, {shown_up(proof.upper, 6)}]"


def _duplicates(x: torch.Tensor, targets: Any) -> DuplicateInputs:
    wide = x.double() if x.is_floating_point() else x
    return DuplicateInputs.of(dataclasses.replace(fingerprints(open_samples(wide)), targets=targets))


def _conflicts(x: torch.Tensor, targets: Any, loss: str) -> tuple[str, ...]:
    """Return sentences about equal inputs with different targets, which bound the loss of every model."""
    data = _duplicates(x, targets)
    if not data.conflicts.count:
        return ()
    return conflict_sentence(data, loss, "no model"), bound_sentence(loss, data.least_loss(loss)[0])


def dtype_of(model: nn.Module) -> str:
    """Return the dtype in which a model computes, by its first parameter."""
    first = next(model.parameters(), None)
    return "float64" if first is None else str(first.dtype).removeprefix("torch.")


@torch.no_grad()
def outputs_as_run(model: nn.Module, X: Any) -> Any:
    """Return the outputs of a model in eval mode, as it computes them, in float64.

    Raises
    ------
    InvalidInput
        The model raises, writes to its parameters or buffers, or does not return a dense real tensor with a row for
        each sample.
    """
    x = in_dtype_of(model, model_inputs(model, X))
    size = sum(parameter.numel() for parameter in model.parameters())
    with threads_for(len(x) * size), running_copy(model) as twin, eval_mode(twin), reporting_input_errors(twin, x):
        parts = [twin(part.clone()) for part in torch.split(x, _BATCH)]  # it may write to its input
    tensors = all(isinstance(part, torch.Tensor) and part.ndim and part.layout == torch.strided for part in parts)
    if not tensors or parts[0].is_complex():
        got, need = kind_of(parts[0]), "a model that returns a dense tensor of real numbers"
        raise InvalidInput("model", got, need, "unsupported-model")
    outputs = torch.cat([part.detach().cpu().double() for part in parts]).numpy()
    if len(outputs) != len(x) or not np.isfinite(outputs).all():
        got = f"outputs of shape {outputs.shape}" if len(outputs) != len(x) else "outputs that are NaN or Inf"
        raise InvalidInput("model", got, "a finite row of outputs for each sample", "unsupported-model")
    return outputs


def loss_as_run(outputs: Any, targets: Any, loss: str) -> float:
    """Return the mean loss of outputs, with an exact sum.

    Examples
    --------
    >>> loss_as_run(np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]]), "squared")
    2.0
    """
    losses = sample_loss(loss, targets.shape[1]).values(outputs, targets)
    return math.fsum(losses.tolist()) / len(targets)


def better_parameters(model: nn.Module, X: Any, targets: Any, loss: str, *, seconds: float) -> dict[str, Any]:
    """Return values of the trainable parameters with a smaller loss, by L-BFGS in float64.

    Parameters
    ----------
    model : torch.nn.Module
        Copied.
    X : array or tensor
    targets : (n, m_y) float64
    loss : str
    seconds : float
        After which the search ends.

    Returns
    -------
    dict of str to array
        Empty if there are none, or if the model does not run in float64.
    """
    twin, x = network_inputs(model, X)
    twin, x = twin.double(), x.double() if x.is_floating_point() else x
    trainable = [(name, p) for name, p in twin.named_parameters() if p.requires_grad][-_MOST_CHANGED:]
    if not trainable:
        return {}
    y, ends = torch.from_numpy(np.array(targets)), time.perf_counter() + seconds
    optimizer = torch.optim.LBFGS(
        [p for _, p in trainable], max_iter=_STEPS, history_size=20, tolerance_grad=0.0, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    best, values = math.inf, dict[str, Any]()

    def closure() -> torch.Tensor:
        nonlocal best, values
        optimizer.zero_grad()
        value = _torch_loss(twin(x.clone()).reshape(y.shape), y, loss)
        if float(value.detach()) < best:
            best, values = float(value.detach()), {name: p.detach().clone() for name, p in trainable}
        if time.perf_counter() > ends:
            raise TimeoutError
        value.backward(inputs=[p for _, p in trainable])  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return value

    try:
        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    except TimeoutError:
        pass  # the best so far
    except Exception:  # the user's code, which may need its own dtype
        return {}
    return {name: value.numpy().reshape(-1) for name, value in values.items()}


def _torch_loss(outputs: torch.Tensor, y: torch.Tensor, loss: str) -> torch.Tensor:
    if loss == "squared":
        return ((outputs - y) ** 2).sum(1).mean()
    if loss == "binary_cross_entropy" or y.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(1).mean()
    return F.cross_entropy(outputs, y)
