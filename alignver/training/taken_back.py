"""Features that tell the samples apart, where the trained ones do not: some of the way back to the initial ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from alignver.proof.rounding import FloatArray
from alignver.training.exploitation import CachedProblem, as_model, wide
from alignver.training.guarantee import Guarantee, guarantee
from alignver.training.surgery import GatedNetwork

__all__ = ["SHARES", "features_taken_back", "initial_values"]

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


def features_taken_back(
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
