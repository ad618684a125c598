"""Features that tell the samples apart, where the trained ones do not: some of the way back to the initial ones.

Lines 9 and 10 of Algorithm 1 and what goes with them: perturb, freeze, prove, repair.
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

from alignver.errors import InvalidInput
from alignver.proof.rounding import FloatArray
from alignver.training.exploitation import CachedProblem, as_model, wide
from alignver.training.gated_network import GatedNetwork
from alignver.training.guarantee import Guarantee, guarantee

__all__ = [
    "SHARES",
    "enter",
    "initial_values",
    "perturb",
    "reset_features",
    "same_for_each_sample",
    "still_layers",
]
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""How far back is tried: the first share that rank n is proved for is the smallest change."""


def initial_values(model: nn.Module, network: GatedNetwork) -> dict[str, torch.Tensor]:
    """Return the values that the trainable parameters before the last hidden layer had in the model as it was given."""
    # By all of its names: the first name of a shared parameter may be that of a layer that was replaced.
    given = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: given[name].detach()
        for name, p in network.body.named_parameters()
        if p.requires_grad and not is_lazy(given[name])  # which had no values yet
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
    r"""Take the parameters before the last hidden layer back until rank n is proved, and keep the outputs.

    .. math:: \theta \leftarrow (1 - s)\, \theta^\tau + s\, \theta^0, \qquad s = \tfrac1{16}, \tfrac18, \ldots, 1

    Units that died in exploration give different samples features that differ by nothing, or by less than any gate can
    tell. No gates mend that. The initial features are those of a random network, which tells samples apart
    (Assumption 3), and whatever the features are, theorem 4 asks of exploitation only that they stay: exploration may
    end anywhere. The outputs on the samples are kept by the weights of the last hidden layer, which rank n makes
    possible. Shrinking towards fresh values is what Ash and Adams (2020) do for another purpose.

    Parameters
    ----------
    network : GatedNetwork
        In eval mode, gates frozen. Its body is left at the share that is proved, or as it was.
    inputs : (n, ...) tensor
    initial : mapping
        Of :func:`initial_values`.
    outputs : (n, m_y) array
        What the network gives on the samples.
    loss, repair, seed, prove
        As in :func:`~alignver.training.guarantee.guarantee`.

    Returns
    -------
    Guarantee or None
        Of the new features, its ``model`` and ``weights`` not yet in the network; None where no share is proved.
    """
    parameters = {name: p for name, p in network.body.named_parameters() if name in initial}
    trained = {name: p.detach().clone() for name, p in parameters.items()}
    for share in SHARES if parameters else ():
        _set(parameters, {name: torch.lerp(value, initial[name].to(value), share) for name, value in trained.items()})
        model = as_model(network, CachedProblem(network, inputs).Z)
        found = guarantee(
            model, wide(network.head.hidden), loss=loss, mode=repair, seed=seed, prove=prove, outputs=outputs
        )
        if found.proved:
            return dataclasses.replace(found, taken_back=share)
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
    """Freeze the gates of a network, prove their ranks, and repair them if need be; in eval mode from here on.

    Where no gates have rank n, the features are repaired too, from their ``initial`` parameters
    (:mod:`alignver.training.phase_transition`). Proofs are about the numbers that the network holds: after a repair,
    what was rounded to its dtype is proved again.
    """
    network.eval()  # the theory needs z to be a function of x alone
    head = network.head
    head.freeze()
    problem = CachedProblem(network, inputs)
    model, weights = as_model(network, problem.Z), wide(head.hidden)
    found = guarantee(model, weights, loss=loss, mode=repair, seed=seed, prove=prove)
    before, outputs = found.before, model.outputs(weights)
    if repair != "none" and before is not None and not found.proved:
        further = reset_features(network, inputs, initial, outputs, loss=loss, repair=repair, seed=seed, prove=prove)
        found = found if further is None else further
    if found.model is not model:
        with torch.no_grad():
            head.hidden.copy_(torch.from_numpy(found.weights.copy()))
            head.output.copy_(torch.from_numpy(found.model.output_weights.copy()))
            head.freeze(torch.from_numpy(found.model.gates.transpose(0, 2, 1).copy()))
        problem = CachedProblem(network, inputs)
        rounded, weights = as_model(network, problem.Z), wide(head.hidden)
        fresh = guarantee(rounded, weights, loss=loss, mode="none", prove=prove)
        moved = float(np.abs(rounded.outputs(weights) - outputs).max())
        found = dataclasses.replace(
            fresh, before=before, replaced=found.replaced, moved=moved, taken_back=found.taken_back
        )
    found = dataclasses.replace(found, notes=still_layers(network))
    _warn(found, repair)
    return found, problem


def _warn(found: Guarantee, repair: str) -> None:
    if found.before is None or found.before.all:
        return
    count = sum(entry is None for entry in found.before.entries)
    said = f"rank n of the trained gates is not proved for {count} of {found.model.m_y} outputs"
    units = sum(len(own) for own in found.replaced)
    if found.proved:
        said += f"; the gates of {units} of {found.model.h * found.model.m_y} units were replaced"
        if found.taken_back:
            said += f", the features taken {found.taken_back:g} of the way back to the initial ones"
        said += ", and now it is"
    elif found.before.refuted:
        said += f", and no gates have it: {found.before.reasons[0]}"
    elif repair == "none":
        said += ", and repair='none' leaves it so: a global minimum is not promised"
    else:
        said += f", nor after repair={repair!r}: a global minimum is not promised"
    warnings.warn(said, RuntimeWarning, stacklevel=4)


def still_layers(network: nn.Module) -> tuple[str, ...]:
    """Say which layers behave in another way in exploitation than in exploration."""
    modules: list[Any] = list(network.modules())
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    drops = sum(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0.0 for module in modules)
    said = []
    if norms:
        layers = "1 BatchNorm layer keeps its" if norms == 1 else f"{norms} BatchNorm layers keep their"
        said.append(f"{layers} statistics from tau on (eval mode): z is a function of x alone")
    if drops:
        said.append(f"dropout is off from tau on ({drops} layer{'' if drops == 1 else 's'})")
    return tuple(said)


def same_for_each_sample(network: nn.Module) -> None:
    """Refuse layers that mix the samples of a batch in eval mode too: z is then no function of x.

    Raises
    ------
    InvalidInput
        BatchNorm without running statistics.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            need = "track_running_stats=True, so that the layer treats each sample alike from tau on"
            raise InvalidInput("model", f"{name!r}, a {type(module).__name__} without running statistics", need)
