"""The record of a training run, and the constants of Assumptions 2 and 7 for its updates, with the steps they allow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from alignver import require
from alignver.arrays import as_vector, host
from alignver.errors import InvalidInput
from alignver.proof.rounding import FloatArray


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRecord:
    r"""Numbers of a run :math:`\theta^{t+1} = \theta^t - \alpha^t \bar g^t`, entry k for step ``steps[k]``.

    Parameters
    ----------
    steps : (T,) integers, increasing
        t.
    losses : (T,) array
        The training loss L(theta^t) on all samples, *before* update t.
    step_sizes : (T,) array
        alpha^t.
    tau : int
        The first step of the exploitation phase: entries with t >= tau belong to it. ``theta^tau`` is the point after
        the random step of Algorithm 1, line 9.
    method : str
        ``"gradient descent"`` (full batch, each update is alpha^t times the gradient), ``"sgd"`` (unbiased stochastic
        gradients), or another name.
    gradient_norms : (T,) array, optional
        :math:`\|\nabla L(\theta^t)\|` on all samples; in the exploitation phase with respect to the trained weights.
    update_norms : (T,) array, optional
        :math:`\|\bar g^t\|`.
    inner_products : (T,) array, optional
        :math:`\nabla L(\theta^t)^\top \bar g^t`.

    Raises
    ------
    InvalidInput
        For lengths that differ, steps that do not increase, NaN or Inf, and negative norms or step sizes.

    Examples
    --------
    >>> record = TrainingRecord([0, 1, 2], [3.0, 2.0, 1.0], [0.1, 0.1, 0.1], 1, "gradient descent")
    >>> record.exploiting.tolist()
    [False, True, True]
    """

    steps: Any
    losses: Any
    step_sizes: Any
    tau: int
    method: str
    gradient_norms: Any = None
    update_norms: Any = None
    inner_products: Any = None

    def __post_init__(self) -> None:
        steps = np.array(host(as_vector(self.steps, "steps").array))
        if bool(np.any(steps != np.floor(steps))) or bool(np.any(np.diff(steps) <= 0)) or steps[0] < 0:
            got = "steps that do not increase or are not step numbers"
            raise InvalidInput("steps", got, "increasing integers >= 0")
        object.__setattr__(self, "steps", steps.astype(np.int64))
        object.__setattr__(self, "tau", require.integer("tau", self.tau, least=0))
        for name in ("losses", "step_sizes", "gradient_norms", "update_norms", "inner_products"):
            value = getattr(self, name)
            if value is None and name not in ("losses", "step_sizes"):
                continue
            vector: FloatArray = np.array(host(as_vector(value, name).array), dtype=np.float64)
            if vector.shape != steps.shape:
                got = f"{vector.size} entries for {steps.size} steps"
                raise InvalidInput(name, got, "one for each step", "wrong-shape")
            if name not in ("losses", "inner_products") and bool(np.any(vector < 0.0)):
                raise InvalidInput(name, f"{vector.min():g} at {int(vector.argmin())}", "no negative numbers")
            object.__setattr__(self, name, vector)

    @property
    def exploiting(self) -> Any:
        """Whether each entry belongs to the exploitation phase, (T,) bool."""
        return self.steps >= self.tau


@dataclasses.dataclass(frozen=True)
class UpdateConstants:
    r"""Constants with :math:`\underline c \|g\|^2 \le g^\top \bar g` and :math:`\|\bar g\|^2 \le \bar c \|g\|^2`.

    Attributes
    ----------
    lower, upper : float
        :math:`\underline c` and :math:`\bar c`: the best constants of the recorded updates.
    worst : int
        The update with ratio ``lower``.
    counted : int
        The number of updates with a nonzero gradient.

    Notes
    -----
    The assumption is about all t; the record is finite. Gradient descent has the constants 1 and 1.
    """

    lower: float
    upper: float
    worst: int
    counted: int

    @property
    def holds(self) -> bool:
        """Whether both constants are positive and finite, as Assumption 2 requires."""
        return self.lower > 0.0 and 0.0 < self.upper < math.inf

    def largest_step(self, L: float, epsilon: float = 0.0) -> float:
        r"""Return :math:`\underline c (2 - \epsilon) / (L \bar c)`, the largest step of Theorems 2 and 4, case (i)."""
        return self.lower * (2.0 - epsilon) / (L * self.upper) if self.holds else 0.0


def constants_of_updates(gradient_norms: Any, update_norms: Any, inner_products: Any) -> UpdateConstants:
    r"""Return the constants of Assumption 2 for recorded norms :math:`\|g\|`, :math:`\|\bar g\|` and products
    :math:`g^\top \bar g`.

    If an update is nonzero and its gradient is 0, no finite :math:`\bar c` exists, and the upper constant is infinity.

    Raises
    ------
    InvalidInput
        For lengths that differ, negative norms, and products that violate the Cauchy-Schwarz inequality.

    Examples
    --------
    >>> constants_of_updates([2.0, 1.0], [1.0, 2.0], [1.0, 1.5])
    UpdateConstants(lower=0.25, upper=4.0, worst=0, counted=2)
    """
    g, update, inner = (
        np.asarray(host(as_vector(values, name).array), dtype=np.float64)
        for values, name in (
            (gradient_norms, "gradient_norms"),
            (update_norms, "update_norms"),
            (inner_products, "inner_products"),
        )
    )
    if not g.shape == update.shape == inner.shape:
        got = f"{g.size}, {update.size} and {inner.size} entries"
        raise InvalidInput("inner_products", got, "as many of each", "wrong-shape")
    if bool(np.any(g < 0.0)) or bool(np.any(update < 0.0)):
        raise InvalidInput("gradient_norms", "a negative norm", "norms")
    violations = np.flatnonzero(np.abs(inner) > g * update * (1.0 + 1e-6))
    if violations.size:
        index = int(violations[0])
        need = "a product of at most that of the norms (Cauchy and Schwarz)"
        raise InvalidInput("inner_products", f"{inner[index]:g} at {index}", need)
    nonzero = np.flatnonzero(g > 0.0)
    upper = math.inf if bool(np.any(update[g == 0.0] > 0.0)) else 0.0
    if not nonzero.size:
        return UpdateConstants(0.0, upper, 0, 0)
    with np.errstate(over="ignore"):
        ratios = inner[nonzero] / g[nonzero] / g[nonzero]
        squares = (update[nonzero] / g[nonzero]) ** 2
    worst = int(np.argmin(ratios))
    return UpdateConstants(
        float(ratios[worst]), max(upper, float(squares.max())), int(nonzero[worst]), int(nonzero.size)
    )
