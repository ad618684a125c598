"""The common model structure of a torch model: which parameters enter the outputs linearly (Assumption 1)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.checks.structure import STATEMENT, Indicator, check_structure, indicator
from alignver.errors import InvalidInput
from alignver.jacobians.jacobian import bind
from alignver.jacobians.operator import differentiable, push, push_twice
from alignver.network.functional import Functional
from alignver.network.inputs import dtype_name
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, validate_model
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict

__all__ = ["check_common_structure", "structure_here"]

_DRAWN = (0.5, 1.0, 2.0, 1.0)  # how far from theta the others are drawn, in root mean squares of each slot
_SIGNS = 2  # products with random signs that estimate the size of the terms
_FEW = 8  # samples that the search for S looks at
_ENTRIES = 256  # up to so many parameters, S is looked for among single entries too
_CHUNK = 256

Subset = Mapping[str, torch.Tensor]
"""S as masks of zeros and ones: slots that are not in it count as zeros."""


def check_common_structure(
    model: nn.Module,
    X: Any,
    *,
    S: Sequence[str] | None = None,
    tolerance: float | None = None,
    dtype: str | None = "float64",
    seed: int = 0,
) -> CheckResult:
    """Check whether some parameters S give the outputs as ``f(x_i, theta) = sum_{k in S} theta_k df/dtheta_k``.

    ``f_X(theta) = J(theta) nu(theta)`` with nu equal to theta on S and zero elsewhere: one Jacobian-vector product at
    the model's theta, and at four others drawn around it, since the assumption is about every theta.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`alignver.jacobians.jacobian.jacobian`; left as it was.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...).
    S : sequence of str, optional
        Names of parameters, or of modules for all of their parameters. By default S is looked for: first the
        parameters of the module that runs last, then every union of parameter tensors (by least squares on their
        products, the last ones first), and in models of at most 256 parameters every set of single entries.
    tolerance : float, optional
        The largest relative residual that counts as rounding; by default from eps and the number of terms
        (:func:`alignver.checks.structure.check_structure`).
    dtype : str, optional
        ``"float64"``, or None or ``"same"`` for the model's own.
    seed : int
        Of the other thetas; the global random state is not touched.

    Returns
    -------
    CheckResult
        HOLDS is STATISTICAL: a sample of thetas stands for all. FAILS is NUMERICAL: a theta (``witness``) where the
        given S does not give f; or, S not being given, a model whose outputs no weights on its single parameters give
        at all. UNDECIDED where no union of parameter tensors does in a model too large for more.
        ``measured["S"]`` names the parameters.

    Raises
    ------
    InvalidInput
        A model or inputs that no check can be about; a name in S that no parameter has.

    References
    ----------
    Kawaguchi, Zhang, Deng (2022), Assumption 1.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> result = check_common_structure(model, torch.randn(20, 2))
    >>> print(result.verdict, result.measured["S"])
    HOLDS ('2.weight', '2.bias')
    >>> print(check_common_structure(model, torch.randn(20, 2), S=["0"]).verdict)
    FAILS
    """
    began = time.perf_counter()
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidInput("seed", f"seed={seed!r}", "an integer from 0 to 2**63 - 1")
    model = validate_model(model)
    with preserve_state(model):
        function, x = bind(model, X, dtype, include_frozen=False)
        with differentiable(function):
            probed = probe(function, x)
            at = _At(function, x, probed.m_y, dtype_name(probed.computed_in), seed)
            if S is None:
                result = _search(at, tolerance)
            else:
                result = _confirm(at, _named(function, S), tolerance)
    fixed = list(function.slots.fixed)
    more = (f"frozen, so no part of theta: {_listed(fixed)}",) if fixed and result.verdict is not Verdict.HOLDS else ()
    seconds = {"seconds": time.perf_counter() - began}
    return dataclasses.replace(result, evidence=(*result.evidence, *more), cost=seconds)


def structure_here(model: nn.Module, X: Any, S: Sequence[str]) -> tuple[CheckResult, float]:
    """Return :func:`~alignver.checks.structure.check_structure` at the model's own theta alone, and ``||nu||``.

    Arguments are those of :func:`check_common_structure`, S by name.

    Examples
    --------
    >>> structure_here(nn.Linear(2, 1), torch.ones(3, 2), ["weight", "bias"])[0].verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    model = validate_model(model)
    with preserve_state(model):
        function, x = bind(model, X, "float64", include_frozen=False)
        with differentiable(function):
            probed = probe(function, x)
            at = _At(function, x, probed.m_y, dtype_name(probed.computed_in), 0)
            chosen = _named(function, S)
            nu = {name: function.theta[name] * mask for name, mask in chosen.items()}
            f, p = (part.double().cpu() for part in at.product(function, x, nu))
    terms = sum(int(mask.sum()) for mask in chosen.values())
    size = math.sqrt(math.fsum(float(part.double().square().sum()) for part in nu.values()))
    return check_structure([f], [p], terms=terms, computed_in=at.computed_in), size


@dataclasses.dataclass(frozen=True, eq=False)
class _At:
    """A bound model, its data, and the thetas that it is looked at."""

    function: Functional
    x: torch.Tensor
    m_y: int
    computed_in: str
    seed: int

    @property
    def eps(self) -> float:
        return float(torch.finfo(getattr(torch, self.computed_in)).eps)

    def thetas(self, count: int = len(_DRAWN)) -> Iterator[tuple[str, Functional]]:
        """The model's own theta, then others: each slot moved by normal numbers of its own size."""
        yield "the model's theta", self.function
        generator = torch.Generator().manual_seed(self.seed)
        for t in range(count):
            spread = _DRAWN[t % len(_DRAWN)]
            moved = {}
            for name, value in self.function.theta.items():
                size = float(value.square().mean().sqrt()) if value.numel() else 0.0
                size = size or max(1, value[0].numel() if value.ndim > 1 else value.numel()) ** -0.5
                step = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                moved[name] = value + (spread * size * step).to(value.dtype).to(value.device)
            yield f"theta {t + 1} of seed {self.seed}", dataclasses.replace(self.function, theta=moved)

    def product(self, there: Functional, x: torch.Tensor, tangents: Subset) -> tuple[torch.Tensor, torch.Tensor]:
        """f and J times the tangents, (n, m_y) each."""
        found = []
        for part in torch.split(x, _CHUNK):
            try:
                found.append(push(there, part, tangents, self.m_y) if tangents else self._outputs(there, part))
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError:  # no forward mode
                found.append(push_twice(there, part, tangents, self.m_y))
        return torch.cat([f for f, _ in found]), torch.cat([p for _, p in found])

    def _outputs(self, there: Functional, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f = there(there.theta, there.batch(x)).detach().reshape(-1, self.m_y).to(there.dtype)
        return f, torch.zeros_like(f)


def _confirm(at: _At, S: Subset, tolerance: float | None) -> CheckResult:
    """Compare f with J nu on all samples at all thetas."""
    terms = int(sum(int(mask.sum()) for mask in S.values()))
    generator = torch.Generator().manual_seed(at.seed)
    outputs, products, magnitudes, labels, skipped = [], [], [], [], 0
    for label, there in at.thetas():
        nu = {name: there.theta[name] * mask for name, mask in S.items()}
        f, p = at.product(there, at.x, nu)
        if not bool(torch.isfinite(f).all() and torch.isfinite(p).all()):
            skipped += 1
            continue
        squares = []
        for _ in range(_SIGNS if terms else 0):
            signs = {n: (torch.randint(0, 2, v.shape, generator=generator) * 2 - 1).to(v) for n, v in nu.items()}
            squares.append(at.product(there, at.x, {n: v * signs[n] for n, v in nu.items()})[1].square().mean())
        # E (sum s_k t_k)^2 = sum t_k^2 for random signs s_k, and sum |t_k| <= sqrt(terms) (sum t_k^2)^(1/2).
        magnitudes.append(math.sqrt(terms * float(torch.stack(squares).mean())) if squares else 0.0)
        outputs.append(f.double().cpu().numpy())
        products.append(p.double().cpu().numpy())
        labels.append(label)
    if not outputs:
        raise InvalidInput("model", "derivatives that are NaN or Inf at its theta", "a differentiable model")
    result = check_structure(
        outputs,
        products,
        terms=terms,
        magnitudes=magnitudes,
        tolerance=tolerance,
        computed_in=at.computed_in,
        labels=labels,
    )
    if result.verdict is Verdict.HOLDS and len(outputs) < 3:
        reason = f"f = J nu at {len(outputs)} theta; at {skipped} others the outputs overflow, too few are left"
        result = dataclasses.replace(result, verdict=Verdict.UNDECIDED, reason=reason, bounds=())
    names = _entries(S)
    sentence = f"S: {_listed(names)} ({terms} of {at.function.slots.d} parameters)" if names else "S is empty"
    evidence = (sentence, *result.evidence, "Assumption 1 is about every theta: a sample of them was looked at")
    if result.verdict is Verdict.FAILS:
        evidence = evidence[:-1]
    measured = {**result.measured, "S": names, "parameters": at.function.slots.d, "n": len(at.x), "m_y": at.m_y}
    return dataclasses.replace(result, evidence=evidence, measured={**measured, "seed": at.seed, "skipped": skipped})


def _search(at: _At, tolerance: float | None) -> CheckResult:
    """Look for S: where the model ends, then among unions of slots, then among single entries."""
    few = at.x[:: max(1, len(at.x) // _FEW)][:_FEW]
    order = _last_first(at.function, few)
    last = _owned(at.function, order[0])
    ones = {name: torch.ones_like(value) for name, value in at.function.theta.items()}
    found = _confirm(at, {name: ones[name] for name in last}, tolerance)
    if found.verdict is Verdict.HOLDS:
        return found
    groups = [{name: ones[name]} for name in order]
    rows = max(1, len(few) * at.m_y)
    weights = _weights(at, few, groups, max(len(_DRAWN), -(-2 * len(groups) // rows)))
    best = weights.chosen()
    if best is not None and weights.residual < math.sqrt(at.eps):
        return _confirm(at, {order[k]: ones[order[k]] for k in best}, tolerance)
    if at.function.slots.d <= _ENTRIES:
        single = [mask for name in order for mask in _single(name, ones[name])]
        weights = _weights(at, few, single, max(len(_DRAWN), -(-2 * len(single) // rows)))
        best = weights.chosen()
        if best is not None and weights.residual < math.sqrt(at.eps):
            union: dict[str, torch.Tensor] = {}
            for k in best:
                for name, mask in single[k].items():
                    union[name] = union.get(name, torch.zeros_like(mask)) + mask
            return _confirm(at, union, tolerance)
        return _refuted(at, weights)
    return _undecided(at, weights)


def _weights(at: _At, few: torch.Tensor, groups: Sequence[Subset], count: int) -> Indicator:
    """Weights on groups of parameters that give f from their products, at several thetas; rows of equal weight."""
    rows, targets = [], []
    for _, there in at.thetas(count):
        found = [at.product(there, few, {n: there.theta[n] * mask for n, mask in group.items()}) for group in groups]
        f = found[0][0].reshape(-1)
        G = torch.stack([p.reshape(-1) for _, p in found], dim=1)
        if not bool(torch.isfinite(G).all() and torch.isfinite(f).all()):
            continue
        scale = max(float(f.abs().max()), float(G.abs().max())) or 1.0
        rows.append((G / scale).double().cpu().numpy())
        targets.append((f / scale).double().cpu().numpy())
    return indicator(np.concatenate(rows), np.concatenate(targets), at.eps)


def _refuted(at: _At, weights: Indicator) -> CheckResult:
    """No single entries do: for want of any real weights, or because the only ones are not 0 and 1."""
    limit = 10.0 * math.sqrt(at.eps)
    measured = {
        "S": None,
        "weights_residual": weights.residual,
        "weights": weights.weights,
        "parameters": at.function.slots.d,
        "n": len(at.x),
        "m_y": at.m_y,
        "computed_in": at.computed_in,
        "seed": at.seed,
    }
    bounds: tuple[Bound, ...] = ()
    if weights.residual > limit:
        reason = (
            f"no S: even real weights on theta_k df/dtheta_k leave {weights.residual:.1e} of f at "
            "the thetas that were looked at"
        )
        bounds = (Bound("residual of any weights", weights.residual, ">", limit),)
    elif weights.unique and weights.residual < math.sqrt(at.eps):
        off = max(weights.weights, key=lambda w: min(abs(w), abs(w - 1.0)))
        reason = f"no S: the only weights that give f are not all 0 or 1 (one is {off:.3g})"
    else:
        return _undecided(at, weights)
    return CheckResult(
        name="structure",
        statement=STATEMENT,
        verdict=Verdict.FAILS,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code="structure-no-weights",
        next_steps=("end the network with a linear layer whose parameters are all trainable",),
        reason=reason,
        evidence=("weights by least squares over all parameters at once, at the model's theta and others drawn",),
        measured=measured,
        bounds=bounds,
        witness={"seed": at.seed, "weights": weights.weights},
    )


def _undecided(at: _At, weights: Indicator) -> CheckResult:
    return CheckResult(
        name="structure",
        statement=STATEMENT,
        verdict=Verdict.UNDECIDED,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code="structure-not-found",
        next_steps=("name the parameters: S=",),
        reason="no union of whole parameter tensors gives f = J nu; name S if some entries of them should",
        evidence=(f"weights on the tensors, by least squares, leave {weights.residual:.1e} of f",),
        measured={"S": None, "weights_residual": weights.residual, "parameters": at.function.slots.d, "seed": at.seed},
    )


def _last_first(function: Functional, x: torch.Tensor) -> list[str]:
    """Order the slots by when a module that holds them last ran, the latest first."""
    clock: dict[int, int] = {}
    handles = []
    for module in function.model.modules():

        def note(module: nn.Module, args: Any, output: Any) -> None:
            clock[id(module)] = len(clock) if id(module) not in clock else max(clock.values()) + 1

        handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            function(function.theta, function.batch(x))
    finally:
        for handle in handles:
            handle.remove()
    when = dict.fromkeys(function.slots.names, -1)
    names = {id(p): name for name, p in zip(function.slots.names, function.slots.parameters)}
    for module in function.model.modules():
        for parameter in module._parameters.values():
            if id(parameter) in names:
                name = names[id(parameter)]
                when[name] = max(when[name], clock.get(id(module), -1))
    return sorted(function.slots.names, key=lambda name: -when[name])


def _owned(function: Functional, name: str) -> list[str]:
    """All slots of the module that holds a slot."""
    names = {id(p): n for n, p in zip(function.slots.names, function.slots.parameters)}
    for module in function.model.modules():
        held = [names[id(p)] for p in module._parameters.values() if id(p) in names]
        if name in held:
            return held
    return [name]


def _named(function: Functional, S: Sequence[str]) -> Subset:
    """The slots that the names in S mean: parameters by any of their names, or modules."""
    if isinstance(S, str) or not all(isinstance(name, str) for name in S):
        raise InvalidInput("S", repr(S), "a sequence of names of parameters or modules")
    known = {name: name for name in function.slots.names} | function.slots.aliases
    modules = {name for name, _ in function.model.named_modules(remove_duplicate=False)}
    chosen: dict[str, torch.Tensor] = {}
    for name in S:
        slots = [known[name]] if name in known else []
        if not slots and name in modules:
            slots = [slot for alias, slot in known.items() if alias.startswith(f"{name}.")]
        slots = [slot for slot in slots if slot in function.theta]
        if not slots:
            near = difflib.get_close_matches(name, [*known, *modules], n=3, cutoff=0.0)
            why = "is frozen" if name in function.slots.fixed else "no trainable parameter has"
            raise InvalidInput("S", f"the name {name!r}, which {why}", f"names such as {', '.join(map(repr, near))}")
        chosen |= {slot: torch.ones_like(function.theta[slot]) for slot in slots}
    return chosen


def _single(name: str, mask: torch.Tensor) -> Iterator[Subset]:
    for k in range(mask.numel()):
        one = torch.zeros_like(mask)
        one.view(-1)[k] = 1.0
        yield {name: one}


def _entries(S: Subset) -> list[str]:
    """Names for a report: a whole slot by its name, a part of one by its entries."""
    names = []
    for name, mask in S.items():
        if bool(mask.all()):
            names.append(name)
        else:
            names += [f"{name}[{int(k)}]" for k in mask.reshape(-1).nonzero()]
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
