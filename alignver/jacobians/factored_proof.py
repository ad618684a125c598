"""The factors of a Jacobian's columns: what goes into the layers of a network, and what comes back through them.

Alignment proved through the verified Gram matrix of the layers' factors: no column of J is held, none left to trust.

What is proved is about the matrix whose layer factors (the inputs of the layers, and the outputs' gradients by their
results) are the floats that were computed, in exact arithmetic: rounding of their products is bounded
(:mod:`alignver.proof.factored_gram`). Every matrix in a ball around it has full row rank, so every target is in its
column space; the radius is what the rank rule takes for rounding of J, as for a Jacobian that is held.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.arrays import EPS
from alignver.jacobians.gram import GramianComputation
from alignver.jacobians.gram_planning import positions, shape, uniform
from alignver.jacobians.jacobian_form import Plan
from alignver.jacobians.layer_io import Conv, Product
from alignver.jacobians.operator import JacobianOperator
from alignver.jacobians.sample_blocks import Block
from alignver.kernel import Certificate, seal
from alignver.linalg import rank_rules
from alignver.linalg.rank_rules import Scale
from alignver.network.functional import parameter_layout
from alignver.network.inputs import as_asked, dtype_name
from alignver.network.preserve_state import preserve_state
from alignver.proof.factored_gram import FactoredRank, Layer, row_rank_by_factors
from alignver.results import CheckResult, Rigor, Subject, Tolerance, Verdict, shown_down

__all__ = ["Attempt", "LayerFactors", "arrays_of", "layer_factors", "prove_by_factors"]
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
        As in :func:`alignver.jacobians.gram.gram`; the factors themselves are widened to float64, which rounds nothing.
    budget : int
        Bytes that the factors may take.

    Returns
    -------
    LayerFactors

    Raises
    ------
    InvalidInput
        What :func:`alignver.jacobians.gram.gram` refuses.

    Examples
    --------
    >>> import torch
    >>> found = layer_factors(torch.nn.Linear(2, 1), [[1.0, 2.0], [3.0, 4.0]])
    >>> found.layers[0].inputs[:, 0].tolist(), found.layers[0].gradients.shape
    ([[1.0, 2.0, 1.0], [3.0, 4.0, 1.0]], (1, 2, 1, 1))
    """
    work = GramianComputation.of(model, None, False, chunk_size)
    with preserve_state(work.model):
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


def _chosen(work: GramianComputation, budget: int) -> list[str]:
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


STORED = 1 << 26  # bytes of factors that a certificate holds; of more it holds the digests
_PROBES = 8  # products that estimate the norm of columns without factors
STEP = "gram of layer factors"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A result with a proof, or why there is none; and in which dtype the factors were computed, and rounded."""

    result: CheckResult | None
    reason: str
    dtype: str = ""
    computed_in: str = ""


def prove_by_factors(
    model: nn.Module,
    x: torch.Tensor,
    y: np.ndarray[Any, np.dtype[np.float64]],
    *,
    rule: str,
    tolerance: float | None,
    dtype: str | None,
    chunk_size: int | None,
    chosen: Plan,
    asked: bool,
) -> Attempt:
    """Try to prove that the Jacobian has full row rank from the factors of its layers.

    ``chosen`` is the engine that comes next; a proof that would take longer is not tried, unless it was ``asked`` for.
    """
    found = layer_factors(model, x, dtype=dtype, chunk_size=chunk_size)
    if not found.layers:
        return Attempt(None, "no layer has factors that fit")
    flops = sum(layer.flops for layer in found.layers)
    if flops > chosen.flops and not asked:
        return Attempt(
            None, f"the layers' factors would take {flops:.0e} operations, {chosen.engine} {chosen.flops:.0e}"
        )
    own = str(next(model.parameters()).dtype).rpartition(".")[2] if dtype in (None, "same") else str(dtype)
    rest = _norm_of_the_rest(model, x, found, dtype, chunk_size)
    limit: list[Tolerance] = []

    def radius(size: float) -> float:
        whole, N = math.hypot(size, rest), found.n * found.m_y
        scale = Scale(N, found.d, whole, math.sqrt(found.d) * whole, EPS[found.computed_in], EPS[own])
        limit.append(rank_rules.tolerance(rule, scale, tolerance))
        return min(limit[-1].value, 1.7e308)

    proof = row_rank_by_factors(found.layers, radius)
    if not proof.proved:
        return Attempt(None, proof.reason)
    return Attempt(_result(found, proof, y, limit[-1]), "", own, found.computed_in)


def arrays_of(found: LayerFactors) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the factors as matrices, a row for each position: A0, B0, A1, ... in the order of the layers."""
    named = {}
    for k, layer in enumerate(found.layers):
        named[f"A{k}"] = layer.inputs.reshape(-1, layer.inputs.shape[2])
        named[f"B{k}"] = layer.gradients.reshape(-1, layer.gradients.shape[3])
    return named


def _norm_of_the_rest(
    model: nn.Module, x: torch.Tensor, found: LayerFactors, dtype: str | None, size: int | None
) -> float:
    """Estimate, from above, the Frobenius norm of the columns without factors: ||J^T g||^2 has mean ||J||_F^2."""
    if not found.left_out:
        return 0.0
    operator = JacobianOperator(model, x, dtype=dtype, chunk_size=size)
    columns = parameter_layout(model)
    kept = torch.cat([torch.full((n,), name in found.left_out) for name, n in zip(columns.names, columns.sizes)])
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(_PROBES):
        g = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
        product = operator.rmatvec(g.to(operator.dtype).to(operator.device))
        squares.append(float(torch.linalg.vector_norm(product.cpu()[kept], dtype=torch.float64)) ** 2)
    return math.sqrt(float(np.mean(squares)) + 3.0 * float(np.std(squares, ddof=1)) / math.sqrt(_PROBES))


def _certificate(
    found: LayerFactors, proof: FactoredRank, y: np.ndarray[Any, np.dtype[np.float64]]
) -> tuple[Certificate, int, bool]:
    """Return the certificate, the bytes of the factors, and whether it holds them."""
    arrays = arrays_of(found)
    size = sum(array.nbytes for array in arrays.values())
    stored = size <= STORED
    constants: dict[str, Any] = {key: proof.constants[key] for key in ("shift", "s_min")}
    constants |= {"samples": found.n, "outputs": found.m_y, "dtype": found.computed_in}
    layers = [{"name": layer.name, "positions": int(layer.inputs.shape[1])} for layer in found.layers]
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


def _result(
    found: LayerFactors, proof: FactoredRank, y: np.ndarray[Any, np.dtype[np.float64]], limit: Tolerance
) -> CheckResult:
    certificate, size, stored = _certificate(found, proof, y)
    radius = float(proof.constants["radius"])
    about = (
        f"every matrix within {shown_down(radius)} (spectral norm) of the one whose layer factors, inputs and "
        "backpropagated outputs, are the floats that were computed"
    )
    evidence = [
        f"proved for {about}; method: {STEP}; the radius is the tolerance of the rule {limit.rule}, which covers the "
        "rounding errors of the computed Jacobian",
    ]
    if found.left_out:
        names = ", ".join(found.left_out[:3]) + (", ..." if len(found.left_out) > 3 else "")
        evidence.append(
            f"{len(found.left_out)} parameters have no factors here ({names}): their columns can only add to the rank"
        )
    where = (
        "in the certificate"
        if stored
        else "not in the certificate, which has their digests: the model gives them again"
    )
    evidence.append(f"{len(found.layers)} layers, {size / 1e6:.1f} MB of factors, {where}")
    measured = {
        "rows": found.n * found.m_y,
        "columns": found.d,
        "columns_with_factors": sum(layer.columns for layer in found.layers),
        "proof": {
            "verdict": Verdict.HOLDS.value,
            "step": STEP,
            "about": about,
            "s_min_lower": proof.s_min,
            "radius": radius,
            "norm_of_factored_columns": proof.constants["size"],
            "factors_bytes": size,
        },
    }
    return CheckResult(
        name="membership",
        statement="Membership of y in the column space of J",
        verdict=Verdict.HOLDS,
        rigor=Rigor.PROOF,
        subject=Subject.COMPUTED_MATRIX,
        code="membership-factored-gram",
        reason=f"J has full row rank throughout the ball (s_min >= {shown_down(proof.s_min)} at the centre): "
        "every y is in its column space",
        evidence=tuple(evidence),
        measured=measured,
        tolerance=limit,
        certificate=certificate,
    )
