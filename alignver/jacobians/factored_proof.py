"""Proof of full row rank from the layers' factors of the Jacobian, without a column of J in memory.

The factors of a layer are its inputs and the gradients of the network's outputs by the layer's results.

The proof concerns the matrix whose layer factors are the computed floating-point numbers, in exact arithmetic: the
rounding errors of their products are bounded (:mod:`alignver.proof.factored_gram`). Every matrix in a ball around it
has full row rank, so every target is in its column space. The radius is the tolerance of the rank rule for the rounding
errors of J, as for a Jacobian in memory.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.arrays import EPS, accelerator, available_memory
from alignver.features.cholesky import row_rank_by_tiles
from alignver.features.cluster import Cluster
from alignver.jacobians.contractions import joined_factors
from alignver.jacobians.gram import GramianComputation
from alignver.jacobians.gram_planning import positions, shape, uniform
from alignver.jacobians.jacobian_form import Plan
from alignver.jacobians.layer_io import Conv, Product
from alignver.jacobians.operator import JacobianOperator
from alignver.jacobians.sample_blocks import Block
from alignver.kernel import Certificate, seal
from alignver.linalg import rank_rules
from alignver.linalg.rank_rules import FACTOR, Scale
from alignver.network.functional import parameter_layout
from alignver.network.inputs import dtype_name, resolve_dtype
from alignver.proof.factored_gram import FactoredRank, Layer, row_rank_by_factors
from alignver.results import CheckResult, Rigor, Subject, Tolerance, Verdict, shown_down

BUDGET = 1 << 29  # bytes of factors in float64 that are always permitted
_BLOCK = 1 << 30  # bytes of one pass; it does not depend on free memory, so that a second run has the same digits
_TILED = 8192  # rows from which on one factorization in tiles is faster than several of a whole matrix
STORED = 1 << 26  # largest factors, in bytes, that a certificate holds; of larger ones it holds the digests
_PROBES = 8  # products that estimate the norm of columns without factors
STEP = "gram of layer factors"
_STATEMENT = "Membership of y in the column space of J"

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True, eq=False)
class LayerFactors:
    """Factors of some columns of the Jacobian of a model.

    Attributes
    ----------
    layers : tuple of Layer
        For linear layers and convolutions, the inputs A (with a constant 1 for the bias) and the gradients B of the
        outputs by the layer's result: the columns ``sum_t b_t a_t^T`` are the derivatives by weight and bias.
    left_out : tuple of str
        Parameters without factors: of another kind, or too large.
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
    model: nn.Module,
    X: Any,
    *,
    dtype: str | None = "float64",
    chunk_size: int | None = None,
    budget: int | None = None,
) -> LayerFactors:
    """Return the factors of the columns of linear layers and convolutions; the smallest factors that fit in a budget.

    Parameters
    ----------
    model, X, dtype, chunk_size
        As in :func:`alignver.jacobians.gram.gram`; the factors are converted to float64, which is exact.
    budget : int, optional
        Largest number of bytes of the factors; by default an eighth of those of a triangle of the Gram matrix, and at
        least 512 MiB.

    Returns
    -------
    LayerFactors

    Raises
    ------
    InvalidInput
        As :func:`alignver.jacobians.gram.gram`.

    Examples
    --------
    >>> import torch
    >>> factors = layer_factors(torch.nn.Linear(2, 1), [[1.0, 2.0], [3.0, 4.0]])
    >>> factors.layers[0].inputs[:, 0].tolist(), factors.layers[0].gradients.shape
    ([[1.0, 2.0, 1.0], [3.0, 4.0, 1.0]], (1, 2, 1, 1))
    """
    with GramianComputation.open(model, X, dtype=dtype, chunk_size=chunk_size) as computation:
        x, layout, m_y = computation.x, computation.function.layout, computation.m_y
        size = computation.plan({}, room=max(_BLOCK, 64 * layout.d)).samples
        slots = _slots_within(computation, max(BUDGET, (len(x) * m_y) ** 2 // 2) if budget is None else budget)
        blocks, wrong = [], set[str]()
        for start in range(0, len(x), size) if slots else ():
            made, disagreeing = computation.block(x[start : start + size], range(m_y), slots)
            blocks.append(made)
            wrong |= disagreeing
    layers, covered = [], set[str]()
    for name in slots:
        if name in wrong or not all(_regular(name, made) for made in blocks):
            continue
        bias = _bias(name, blocks, wrong)
        covered |= {name} if bias is None else {name, bias}
        layers += _layers(name, blocks, bias is not None)
    left_out = tuple(name for name in layout.names if name not in covered)
    return LayerFactors(tuple(layers), left_out, len(x), m_y, layout.d, dtype_name(computation.computed_in))


def _slots_within(computation: GramianComputation, budget: int) -> list[str]:
    """Return the weights with uniform uses, the smallest factors first, that fit in the budget, and their biases."""
    scan, layout = computation.scan, computation.function.layout
    sizes: dict[str, int] = {}
    for name in layout.names:
        uses = [use for use in scan.uses if name in use.slots]
        if name in scan.loose or not uses or not uniform(name, uses):
            continue
        if not all(isinstance(use, Product | Conv) for use in uses):
            continue
        count = 0
        for use in uses:
            a, b, groups = shape(use)
            count += positions(use, scan.n) * groups * (a + 1 + b * computation.m_y)
        sizes[name] = count * len(computation.x) * 8
    weights: list[str] = []
    for name in sorted(sizes, key=sizes.__getitem__):
        if sizes[name] <= budget:
            weights.append(name)
            budget -= sizes[name]
    biases = {use.bias for use in scan.uses if use.weight in weights and use.bias is not None}
    return [name for name in layout.names if name in weights or name in biases - scan.loose]


def _regular(name: str, block: Block) -> bool:
    parts = block.parts[name]
    return bool(parts) and uniform(name, [part.use for part in parts])


def _bias(name: str, blocks: list[Block], wrong: set[str]) -> str | None:
    """Return the bias that is used with a weight at each of its uses, and nowhere else."""
    biases = {part.use.bias for block in blocks for part in block.parts[name]}
    bias = biases.pop() if len(biases) == 1 else None
    if bias is None or bias in wrong or any(block.parts.get(bias) != block.parts[name] for block in blocks):
        return None
    return bias


def _layers(name: str, blocks: list[Block], bias: bool) -> list[Layer]:
    """Return the factors of a weight, one pair for each group of a convolution; all uses are positions of one sum."""
    factors = [joined_factors(block.parts[name]) for block in blocks]
    inputs, gradients = torch.cat([A for A, _ in factors]), torch.cat([B for _, B in factors], 1)
    result = []
    for g in range(inputs.shape[1]):
        A, B = _wide(inputs[:, g].transpose(1, 2)), _wide(gradients[:, :, g].transpose(2, 3))
        if bias:
            A = np.concatenate([A, np.ones((*A.shape[:2], 1))], axis=2)
        if A.shape[2] and B.shape[3]:  # a weight without entries has no columns
            result.append(Layer(name if inputs.shape[1] == 1 else f"{name}[{g}]", A, B))
    return result


def _wide(tensor: torch.Tensor) -> Matrix:
    return np.ascontiguousarray(tensor.detach().cpu().double().numpy())


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A result with a proof, or the reason why there is none.

    ``dtype`` is the dtype of computation of the factors, ``computed_in`` the coarsest dtype that they are rounded to.
    """

    result: CheckResult | None
    reason: str
    dtype: str = ""
    computed_in: str = ""


def prove_by_factors(
    model: nn.Module,
    x: torch.Tensor,
    y: Matrix,
    *,
    rule: str,
    tolerance: float | None,
    dtype: str | None,
    chunk_size: int | None,
    plan: Plan,
    required: bool,
    certify: bool = True,
    memory: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    cluster: Cluster | None = None,
) -> Attempt:
    """Try to prove that the Jacobian has full row rank from the factors of its layers.

    ``plan`` is the engine that comes next; a proof that would take longer is tried only if ``required`` is set. Without
    ``certify`` the same computation makes a numerical answer: at every tolerance up to ten times the rule's.

    The Gram matrix is factored in memory, with the largest provable bound of s_min, or in tiles
    (:func:`~alignver.features.cholesky.row_rank_by_tiles`): if it is large, does not fit in ``memory`` bytes, or its
    tiles belong in ``folder`` or are computed on ``cluster``; on the model's GPU if it is on one.
    """
    factors = layer_factors(model, x, dtype=dtype, chunk_size=chunk_size)
    if not factors.layers:
        return Attempt(None, "no layer has factors that fit")
    flops = sum(layer.flops for layer in factors.layers)
    if flops > plan.flops and not required:
        reason = f"the layers' factors would take {flops:.0e} operations, {plan.engine} {plan.flops:.0e}"
        return Attempt(None, reason)
    compute = dtype_name(resolve_dtype(model, dtype))
    rest = _norm_of_the_rest(model, x, factors, dtype, chunk_size)
    limit: list[Tolerance] = []

    def radius(size: float) -> float:
        whole, N = math.hypot(size, rest), factors.n * factors.m_y
        scale = Scale(N, factors.d, whole, math.sqrt(factors.d) * whole, EPS[factors.computed_in], EPS[compute])
        limit.append(rank_rules.tolerance(rule, scale, tolerance))
        return min(limit[-1].value * (1.0 if certify else FACTOR), 1.7e308)

    N = factors.n * factors.m_y
    room = available_memory() if memory is None else memory
    if folder is not None or cluster is not None or N > _TILED or room < 8 * 5 * N * N:
        proof = row_rank_by_tiles(factors.layers, radius, folder=folder, place=accelerator(x), cluster=cluster)
    else:
        proof = row_rank_by_factors(factors.layers, radius)
    if not proof.proved:
        return Attempt(None, proof.reason)
    result = _proved(factors, proof, y, limit[-1]) if certify else _numerical(factors, proof, limit[-1])
    return Attempt(result, "", compute, factors.computed_in)


def arrays_of(factors: LayerFactors) -> dict[str, Matrix]:
    """Return the factors as matrices with a row for each position: A0, B0, A1, ... in the order of the layers."""
    named = {}
    for k, layer in enumerate(factors.layers):
        named[f"A{k}"] = layer.inputs.reshape(-1, layer.inputs.shape[2])
        named[f"B{k}"] = layer.gradients.reshape(-1, layer.gradients.shape[3])
    return named


def _norm_of_the_rest(
    model: nn.Module, x: torch.Tensor, factors: LayerFactors, dtype: str | None, size: int | None
) -> float:
    """Estimate, from above, the Frobenius norm of the columns without factors: ||J^T g||^2 has mean ||J||_F^2."""
    if not factors.left_out:
        return 0.0
    operator = JacobianOperator(model, x, dtype=dtype, chunk_size=size)
    layout = parameter_layout(model)
    rest = torch.cat([torch.full((n,), name in factors.left_out) for name, n in zip(layout.names, layout.sizes)])
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(_PROBES):
        g = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
        product = operator.rmatvec(g.to(operator.dtype).to(operator.device))
        squares.append(float(torch.linalg.vector_norm(product.cpu()[rest], dtype=torch.float64)) ** 2)
    return math.sqrt(float(np.mean(squares)) + 3.0 * float(np.std(squares, ddof=1)) / math.sqrt(_PROBES))


def _certificate(factors: LayerFactors, proof: FactoredRank, y: Matrix) -> tuple[Certificate, int, bool]:
    """Return the certificate, the bytes of the factors, and whether the certificate holds them."""
    arrays = arrays_of(factors)
    size = sum(array.nbytes for array in arrays.values())
    stored = size <= STORED
    constants: dict[str, Any] = {key: proof.constants[key] for key in ("shift", "s_min")}
    constants |= {"samples": factors.n, "outputs": factors.m_y, "dtype": factors.computed_in}
    layers = [{"name": layer.name, "positions": int(layer.inputs.shape[1])} for layer in factors.layers]
    ball = {"kind": "norm", "value": float(proof.constants["radius"])}
    assert proof.exponents is not None
    certificate = seal(
        "factored-membership",
        "factored gram",
        {"y": y} if stored else {"y": y, **arrays},
        {"scaling": proof.exponents, **(arrays if stored else {})},
        {**constants, "layers": layers, "ball": ball},
    )
    return certificate, size, stored


def _numerical(factors: LayerFactors, proof: FactoredRank, limit: Tolerance) -> CheckResult:
    return CheckResult(
        name="membership",
        statement=_STATEMENT,
        verdict=Verdict.HOLDS,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code="membership-at-tolerance",
        reason=f"J has full row rank at tolerances below {shown_down(proof.s_min)}: every y is in its column space",
        evidence=(f"tolerance {limit.value:.1e} by the rule {limit.rule}", *_columns(factors)),
        measured={**_sizes(factors), "rank": factors.n * factors.m_y, "residual": 0.0, "turns_at": proof.s_min},
        tolerance=limit,
    )


def _columns(factors: LayerFactors) -> tuple[str, ...]:
    if not factors.left_out:
        return ()
    names = ", ".join(factors.left_out[:3]) + (", ..." if len(factors.left_out) > 3 else "")
    count = len(factors.left_out)
    return (f"{count} parameters have no factors here ({names}): their columns can only add to the rank",)


def _sizes(factors: LayerFactors) -> dict[str, Any]:
    return {
        "rows": factors.n * factors.m_y,
        "columns": factors.d,
        "columns_with_factors": sum(layer.columns for layer in factors.layers),
    }


def _proved(factors: LayerFactors, proof: FactoredRank, y: Matrix, limit: Tolerance) -> CheckResult:
    certificate, size, stored = _certificate(factors, proof, y)
    radius = float(proof.constants["radius"])
    about = (
        f"every matrix within {shown_down(radius)} (spectral norm) of the one whose layer factors, inputs and "
        "backpropagated outputs, are the floats that were computed"
    )
    evidence = [
        f"proved for {about}; method: {STEP}; the radius is the tolerance of the rule {limit.rule}, which covers the "
        "rounding errors of the computed Jacobian",
        *_columns(factors),
    ]
    where = "in the certificate" if stored else "recomputed from the model: the certificate has their digests only"
    evidence.append(f"{len(factors.layers)} layers, {size / 1e6:.1f} MB of factors, {where}")
    # The origin of tiles that were read from a folder is unknown. The certificate does not use them.
    if proof.taken:
        words = "column of the factorization comes" if proof.taken == 1 else "columns of the factorization come"
        evidence.append(f"{proof.taken} tile {words} from the folder: no proof until the certificate is verified")
    measured = {
        **_sizes(factors),
        "proof": {
            "verdict": Verdict.HOLDS.value,
            "step": STEP,
            "about": about,
            "s_min_lower": proof.s_min,
            "radius": radius,
            "norm_of_factored_columns": proof.constants["size"],
            "factors_bytes": size,
            "tiles_taken": proof.taken,
        },
    }
    return CheckResult(
        name="membership",
        statement=_STATEMENT,
        verdict=Verdict.HOLDS,
        rigor=Rigor.NUMERICAL if proof.taken else Rigor.PROOF,
        subject=Subject.COMPUTED_MATRIX,
        code="membership-factored-gram",
        reason=f"J has full row rank throughout the ball (s_min >= {shown_down(proof.s_min)} at the centre): "
        "every y is in its column space",
        evidence=tuple(evidence),
        measured=measured,
        tolerance=limit,
        certificate=certificate,
    )
