"""The factors of a Jacobian's columns: what goes into the layers of a network, and what comes back through them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.models.gram.blocks import Block
from alignver.models.gram.engine import Work
from alignver.models.gram.planning import positions, shape, uniform
from alignver.models.gram.uses import Conv, Product
from alignver.models.guard import unchanged
from alignver.models.precision import as_asked, dtype_name
from alignver.proof.factored import Layer

__all__ = ["LayerFactors", "layer_factors"]

BUDGET = 1 << 29  # bytes of factors in float64, unless the caller says otherwise


@dataclasses.dataclass(frozen=True, eq=False)
class LayerFactors:
    """Factors of some columns of the Jacobian of a model.

    Attributes
    ----------
    layers : tuple of Layer
        For linear layers and convolutions, the inputs A (with a constant 1 for the bias) and the gradients B of the
        outputs by the layer's result: the columns ``sum_t b_t a_t^T`` are the derivatives by weight and bias.
    left_out : tuple of str
        Parameters whose columns they do not have: of another kind, or too large.
    n, m_y, d : int
        Samples, outputs, parameters.
    computed_in : str
        The coarsest dtype of a forward pass.
    """

    layers: tuple[Layer, ...]
    left_out: tuple[str, ...]
    n: int
    m_y: int
    d: int
    computed_in: str


def layer_factors(
    model: nn.Module, X: Any, *, dtype: str | None = "float64", chunk_size: int | None = None, budget: int = BUDGET
) -> LayerFactors:
    """Return the factors of the columns of linear layers and convolutions, the smallest ones first, up to a budget.

    Parameters
    ----------
    model, X, dtype, chunk_size
        As in :func:`alignver.models.gram.gram`; the factors themselves are widened to float64, which rounds nothing.
    budget : int
        Bytes that the factors may take.

    Returns
    -------
    LayerFactors

    Raises
    ------
    InvalidInput
        What :func:`alignver.models.gram.gram` refuses.

    Examples
    --------
    >>> import torch
    >>> found = layer_factors(torch.nn.Linear(2, 1), [[1.0, 2.0], [3.0, 4.0]])
    >>> found.layers[0].inputs[:, 0].tolist(), found.layers[0].gradients.shape
    ([[1.0, 2.0, 1.0], [3.0, 4.0, 1.0]], (1, 2, 1, 1))
    """
    work = Work.of(model, None, False, chunk_size)
    with unchanged(work.model):
        work.bind(X, None, dtype)
        with as_asked(work.function.device, work.function.dtype):
            planned = work.plan({})
            wanted = _chosen(work, budget)
            blocks, wrong = [], set[str]()
            for start in range(0, len(work.x), planned.samples) if wanted else ():
                made, disagreeing = work.block(work.x[start : start + planned.samples], range(work.m_y), wanted)
                blocks.append(made)
                wrong |= disagreeing
    names = [name for name in wanted if name not in wrong and all(_regular(name, made) for made in blocks)]
    layers, covered = [], set[str]()
    for name in names:
        bias = _bias(name, blocks, wrong)
        covered |= {name} if bias is None else {name, bias}
        layers += _layers(name, blocks, bias is not None)
    left = tuple(name for name in work.function.slots.names if name not in covered)
    d = work.function.slots.d
    return LayerFactors(tuple(layers), left, len(work.x), work.m_y, d, dtype_name(work.computed_in))


def _chosen(work: Work, budget: int) -> list[str]:
    """Choose weights of one use or several alike, and their biases, cheapest first."""
    found = work.found
    sizes: dict[str, int] = {}
    for name in work.function.slots.names:
        uses = [use for use in found.uses if name in use.slots]
        if name in found.loose or not uses or not uniform(name, uses):
            continue
        if not all(isinstance(use, Product | Conv) for use in uses):
            continue
        count = 0
        for use in uses:
            a, b, groups = shape(use)
            count += positions(use, found.n) * groups * (a + 1 + b * work.m_y)
        sizes[name] = count * len(work.x) * 8
    chosen: list[str] = []
    for name in sorted(sizes, key=sizes.__getitem__):
        if sizes[name] <= budget:
            chosen.append(name)
            budget -= sizes[name]
    biases = {use.bias for use in found.uses if use.weight in chosen and use.bias is not None}
    return [name for name in work.function.slots.names if name in chosen or name in biases - found.loose]


def _regular(name: str, block: Block) -> bool:
    parts = block.parts[name]
    return bool(parts) and uniform(name, [part.use for part in parts])


def _bias(name: str, blocks: list[Block], wrong: set[str]) -> str | None:
    """Return the bias that rides on a weight: used wherever the weight is, and nowhere else."""
    biases = {part.use.bias for block in blocks for part in block.parts[name]}
    bias = biases.pop() if len(biases) == 1 else None
    if bias is None or bias in wrong or any(block.parts.get(bias) != block.parts[name] for block in blocks):
        return None
    return bias


def _layers(name: str, blocks: list[Block], bias: bool) -> list[Layer]:
    """Return the factors of a weight, one pair for each group of a convolution, all uses as positions of one sum."""
    inputs = torch.cat([torch.cat([part.inputs for part in block.parts[name]], 3) for block in blocks])  # (n, g, a, T)
    gradients = torch.cat([torch.cat([part.gradients for part in block.parts[name]], 4) for block in blocks], 1)
    result = []
    for g in range(inputs.shape[1]):
        A, B = _wide(inputs[:, g].transpose(1, 2)), _wide(gradients[:, :, g].transpose(2, 3))
        if bias:
            A = np.concatenate([A, np.ones((*A.shape[:2], 1))], axis=2)
        if A.shape[2] and B.shape[3]:  # a weight without entries has no columns
            result.append(Layer(name if inputs.shape[1] == 1 else f"{name}[{g}]", A, B))
    return result


def _wide(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.ascontiguousarray(tensor.detach().cpu().double().numpy())
