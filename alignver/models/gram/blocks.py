"""One block of samples and outputs: forward once, backward for every output, and what was found checked."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch

from alignver.models.functional import Functional
from alignver.models.gram.capture import captured
from alignver.models.gram.owners import Layout, codes, layouts
from alignver.models.gram.parts import Part
from alignver.models.gram.uses import Use

__all__ = ["Block", "block", "disagreeing", "survey"]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The factors of some rows of J.

    Attributes
    ----------
    x : torch.Tensor
        The inputs of its samples.
    outputs : range
        Its outputs.
    parts : dict of str to list of Part
        For each slot that has a formula, its uses.
    """

    x: torch.Tensor
    outputs: range
    parts: Mapping[str, list[Part]]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.x)

    @property
    def m(self) -> int:
        """Number of outputs."""
        return len(self.outputs)

    @property
    def rows(self) -> int:
        """Number of rows of J, output-major."""
        return self.n * self.m


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What a pass over a few samples found: the uses, where their samples are, and the slots with other uses."""

    n: int
    uses: Sequence[Use]
    layouts: Sequence[Layout | None]
    loose: frozenset[str]


def leaves(function: Functional) -> dict[str, torch.Tensor]:
    """Return the slots as leaves of a new graph."""
    return {name: value.detach().requires_grad_() for name, value in function.theta.items()}


def survey(function: Functional, x: torch.Tensor) -> Survey:
    """Look for the structure of a model on a few samples.

    A slot is loose where the graph still reaches it although every recorded use was cut out (a use of another kind),
    or where a use has its samples on no axis.
    """
    theta = leaves(function)
    out, uses = captured(function, theta, x)
    loose: set[str] = set()
    if out.requires_grad:
        found = torch.autograd.grad(
            out, list(theta.values()), torch.ones_like(out), retain_graph=True, allow_unused=True
        )
        loose = {name for name, gradient in zip(theta, found) if gradient is not None}
    where = layouts(uses, out, None) if uses else []
    loose.update(name for use, layout in zip(uses, where) if layout is None for name in use.slots)
    return Survey(len(x), uses, where, frozenset(loose))


def block(
    function: Functional, x: torch.Tensor, outputs: range, wanted: Iterable[str], known: Sequence[Layout | None]
) -> Block:
    """Differentiate a block of samples and outputs by the results of all recorded uses of ``wanted`` slots."""
    names = set(wanted)
    parts: dict[str, list[Part]] = {name: [] for name in names}
    if not names:
        return Block(x, outputs, parts)
    theta = leaves(function)
    out, uses = captured(function, theta, x)
    where = layouts(uses, out, known)
    chosen = [
        (use, layout) for use, layout in zip(uses, where) if layout is not None and not names.isdisjoint(use.slots)
    ]
    raws = _backward(out, [use for use, _ in chosen], outputs) if chosen else []
    for (use, layout), raw in zip(chosen, raws):
        if raw is None:
            continue  # no output depends on it
        part = Part(use, layout, raw, len(x))
        for name in {*use.slots} & names:
            parts[name].append(part)
    return Block(x, outputs, parts)


def _backward(out: torch.Tensor, uses: Sequence[Use], outputs: range) -> list[torch.Tensor | None]:
    """Return, for each use, the gradients of every output of the range, (m, *shape); None where there are none.

    The gradient of one output of all samples at once: samples do not depend on each other, so each row gets the
    gradient of its own sample's output.
    """
    edges = [use.edge for use in uses]
    eye = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)[outputs.start : outputs.stop]
    weights = eye[:, None, :].expand(len(eye), *out.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about batching rules that torch lacks: slower, not wrong
            return list(
                torch.autograd.grad(out, edges, weights, retain_graph=True, allow_unused=True, is_grads_batched=True)
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # an operation that vmap refuses: one output at a time
        found: list[torch.Tensor | None] = [None] * len(uses)
        for j, weight in enumerate(weights):
            for k, g in enumerate(torch.autograd.grad(out, edges, weight, retain_graph=True, allow_unused=True)):
                if g is not None:
                    if found[k] is None:
                        found[k] = g.new_zeros((len(weights), *g.shape))
                    found[k][j] = g  # type: ignore[index]  # made in the line above
        return found


def disagreeing(function: Functional, found: Block) -> frozenset[str]:
    """Compare a block with an ordinary backward pass through the model, and name the slots that differ.

    With weights v_i w_j that no structure of a network has, sum_ij v_i w_j grad f_j(x_i) is computed from the parts and
    by autograd. Every sample, output and use enters; agreement is asked up to sqrt(eps) of the gradient's norm.
    """
    names = [name for name in function.slots.names if name in found.parts]
    if not names:
        return frozenset()
    theta = {
        name: value.detach().requires_grad_() if name in found.parts else value
        for name, value in function.theta.items()
    }
    out = function(theta, function.batch(found.x)).reshape(found.n, -1)[:, found.outputs.start : found.outputs.stop]
    samples = codes(found.n, out.detach())
    outputs = torch.cos(torch.arange(1, found.m + 1, device=out.device)).to(out.dtype)
    right: Sequence[torch.Tensor | None] = [None] * len(names)
    if out.requires_grad:
        right = torch.autograd.grad(out, [theta[n] for n in names], samples[:, None] * outputs, allow_unused=True)
    uses = {part for parts in found.parts.values() for part in parts}
    mixed = {part: part.mix(outputs, samples) for part in uses}
    eps = torch.finfo(function.dtype).eps
    sizes = [0.0 if g is None else float(torch.linalg.vector_norm(g)) for g in right]
    # A gradient that is zero but for rounding differs from its like by about eps of the largest there is.
    noise = 1e3 * eps * max(sizes)
    wrong = set()
    for name, wanted, size in zip(names, right, sizes):
        rest = torch.zeros_like(function.theta[name]) if wanted is None else wanted
        for part in found.parts[name]:
            rest = mixed[part].subtract(name, rest)
        if not float(torch.linalg.vector_norm(rest)) <= math.sqrt(eps) * size + noise:
            wrong.add(name)
    return frozenset(wrong)
