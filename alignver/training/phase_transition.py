"""The transition from exploration to exploitation: perturb, freeze the gates, prove ranks, repair gates and features.

The perturbation and the frozen gates are lines 9 and 10 of Algorithm 1.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from alignver.errors import InvalidInput, LostGuarantee, kind_of
from alignver.proof.rounding import FloatArray
from alignver.training.exploitation import CachedProblem, as_model, wide
from alignver.training.gated_network import GatedNetwork
from alignver.training.guarantee import Guarantee, guarantee

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares s of :func:`reset_features`, in increasing order: the first with a proof of rank n changes the least."""


def initial_values(model: nn.Module, network: GatedNetwork) -> dict[str, torch.Tensor]:
    """Return the initial values, in ``model``, of the trainable parameters before the last hidden layer."""
    # With duplicates: the first name of a shared parameter may be that of a layer that was replaced.
    given = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: given[name].detach()
        for name, p in network.body.named_parameters()
        if p.requires_grad and not is_lazy(given[name])  # a lazy parameter has no values yet
    }


def reset_features(
    network: GatedNetwork,
    inputs: torch.Tensor,
    initial: Mapping[str, torch.Tensor],
    outputs: FloatArray,
    *,
    loss: str,
    repair: str,
    seed: int,
    prove: bool | None,
) -> Guarantee | None:
    r"""Move the parameters before the last hidden layer towards their initial values until rank n is proved.

    .. math:: \theta \leftarrow (1 - s)\, \theta^\tau + s\, \theta^0, \qquad s = \tfrac1{16}, \tfrac18, \ldots, 1

    Units that died in exploration can give different samples equal features, or features too close for any gate to
    separate them. New gates do not help there. The initial features are those of a random network, which separates the
    samples (Assumption 3). Theorem 4 needs only that the features stay constant during exploitation: exploration may
    end anywhere. The weights of the last hidden layer are refitted so that the outputs on the samples stay the same,
    which rank n makes possible. Ash and Adams (2020) shrink towards initial values for another purpose.

    Parameters
    ----------
    network : GatedNetwork
        In eval mode, gates frozen. Its body ends at the first share with a proof, or is restored if there is none.
    inputs : (n, ...) tensor
    initial : mapping
        From :func:`initial_values`.
    outputs : (n, m_y) array
        Outputs of the network on the samples.
    loss, repair, seed, prove
        As in :func:`~alignver.training.guarantee.guarantee`.

    Returns
    -------
    Guarantee or None
        The guarantee of the new features, whose ``model`` and ``weights`` are not yet in the network; None if rank n
        is not proved for any share.
    """
    parameters = {name: p for name, p in network.body.named_parameters() if name in initial}
    trained = {name: p.detach().clone() for name, p in parameters.items()}
    for share in SHARES if parameters else ():
        _set(parameters, {name: torch.lerp(value, initial[name].to(value), share) for name, value in trained.items()})
        model = as_model(network, CachedProblem(network, inputs).Z)
        repaired = guarantee(
            model, wide(network.head.hidden), loss=loss, mode=repair, seed=seed, prove=prove, outputs=outputs
        )
        if repaired.proved:
            return dataclasses.replace(repaired, feature_reset=share)
    _set(parameters, trained)
    return None


@torch.no_grad()
def _set(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, p in parameters.items():
        p.copy_(values[name])


@torch.no_grad()
def perturb(network: nn.Module, epsilon: float, generator: torch.Generator) -> None:
    """Add epsilon times a standard normal number to every trainable parameter, drawn in float64 on the CPU."""
    for p in network.parameters():
        if p.requires_grad:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.add_((epsilon * noise).to(device=p.device, dtype=p.dtype))


def enter(
    network: GatedNetwork,
    inputs: torch.Tensor,
    *,
    loss: str,
    repair: str,
    seed: int,
    prove: bool | None,
    initial: Mapping[str, torch.Tensor],
) -> tuple[Guarantee, CachedProblem]:
    """Freeze the gates of a network, prove their ranks, and repair them if needed; the network stays in eval mode.

    Where no gates have rank n, the features are repaired too (:func:`reset_features`), from their ``initial``
    parameters. Proofs are about the numbers that the network holds: after a repair, the values rounded to its dtype
    are proved again.
    """
    network.eval()  # the theory needs z to be a function of x alone
    head = network.head
    head.freeze()
    problem = CachedProblem(network, inputs)
    model, weights = as_model(network, problem.Z), wide(head.hidden)
    result = guarantee(model, weights, loss=loss, mode=repair, seed=seed, prove=prove)
    before, outputs = result.before, model.outputs(weights)
    if repair != "none" and before is not None and not result.proved:
        reset = reset_features(network, inputs, initial, outputs, loss=loss, repair=repair, seed=seed, prove=prove)
        result = result if reset is None else reset
    if result.model is not model:
        with torch.no_grad():
            head.hidden.copy_(torch.from_numpy(result.weights.copy()))
            head.output.copy_(torch.from_numpy(result.model.output_weights.copy()))
            head.freeze(torch.from_numpy(result.model.gates.transpose(0, 2, 1).copy()))
        problem = CachedProblem(network, inputs)
        rounded, weights = as_model(network, problem.Z), wide(head.hidden)
        fresh = guarantee(rounded, weights, loss=loss, mode="none", prove=prove)
        moved = float(np.abs(rounded.outputs(weights) - outputs).max())
        result = dataclasses.replace(
            fresh, before=before, replaced=result.replaced, moved=moved, feature_reset=result.feature_reset
        )
    result = dataclasses.replace(result, notes=frozen_layers(network))
    _warn(result, repair)
    return result, problem


def _warn(result: Guarantee, repair: str) -> None:
    if result.before is None or result.before.all:
        return
    count, outputs, width = sum(entry is None for entry in result.before.entries), result.model.m_y, result.model.h
    message = f"rank n of the trained gates is not proved for {count} of {outputs} outputs"
    if result.proved:
        units = sum(len(replaced) for replaced in result.replaced)
        message += f"; the gates of {units} of {width * outputs} units were replaced"
        if result.feature_reset:
            message += f", the features moved {result.feature_reset:g} of the way back to the initial ones"
        message += ", and now it is"
    elif result.before.refuted:
        message += f", and no gates have it: {result.before.reasons[0]}"
    elif repair == "none":
        message += ", and repair='none' leaves it so: a global minimum is not guaranteed"
    else:
        message += f", nor after repair={repair!r}: a global minimum is not guaranteed"
    warnings.warn(message, LostGuarantee, stacklevel=4)


def frozen_layers(network: nn.Module) -> tuple[str, ...]:
    """Return a sentence for each kind of layer that behaves differently in exploitation than in exploration."""
    modules: list[Any] = list(network.modules())
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    drops = sum(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0.0 for module in modules)
    notes = []
    if norms:
        layers = "1 BatchNorm layer keeps its" if norms == 1 else f"{norms} BatchNorm layers keep their"
        notes.append(f"{layers} statistics from tau on (eval mode): z is a function of x alone")
    if drops:
        notes.append(f"dropout is off from tau on ({drops} layer{'' if drops == 1 else 's'})")
    return tuple(notes)


def require_independent_samples(network: nn.Module) -> None:
    """Raise for layers that couple the samples of a batch in eval mode too: z is then not a function of x alone.

    Raises
    ------
    InvalidInput
        BatchNorm without running statistics.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            need = "track_running_stats=True, so that the layer treats each sample alike from tau on"
            got = f"{name!r}, {kind_of(module)} without running statistics"
            raise InvalidInput("model", got, need, code="unsupported-model")
