"""What a training run leaves behind for the theorems to be held against."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from alignver.arrays import as_vector, host
from alignver.errors import InvalidInput
from alignver.proof.rounding import FloatArray

__all__ = ["TrainingRecord"]


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
        Where the exploitation phase begins: entries with t >= tau belong to it. ``theta^tau`` is the point after the
        random step of Algorithm 1, line 9.
    method : str
        ``"gradient descent"`` (full batch, nothing but alpha^t times the gradient), ``"sgd"`` (unbiased stochastic
        gradients), or another name.
    gradient_norms : (T,) array, optional
        :math:`\|\nabla L(\theta^t)\|`, of all samples; in the exploitation phase with respect to the weights that it
        trains.
    update_norms : (T,) array, optional
        :math:`\|\bar g^t\|`.
    inner_products : (T,) array, optional
        :math:`\nabla L(\theta^t)^\top \bar g^t`.

    Raises
    ------
    InvalidInput
        Lengths that differ, steps that do not increase, NaN or Inf, negative norms or step sizes.

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
            raise InvalidInput("steps", "steps that do not increase or are no step numbers", "increasing integers >= 0")
        object.__setattr__(self, "steps", steps.astype(np.int64))
        if isinstance(self.tau, bool) or not isinstance(self.tau, int) or self.tau < 0:
            raise InvalidInput("tau", repr(self.tau), "an integer >= 0")
        for name in ("losses", "step_sizes", "gradient_norms", "update_norms", "inner_products"):
            value = getattr(self, name)
            if value is None and name not in ("losses", "step_sizes"):
                continue
            vector: FloatArray = np.array(host(as_vector(value, name).array), dtype=np.float64)
            if vector.shape != steps.shape:
                raise InvalidInput(name, f"{vector.size} entries beside {steps.size} steps", "one for each step")
            if name not in ("losses", "inner_products") and bool(np.any(vector < 0.0)):
                raise InvalidInput(name, f"{vector.min():g} at {int(vector.argmin())}", "no negative numbers")
            object.__setattr__(self, name, vector)

    @property
    def exploiting(self) -> Any:
        """Which entries belong to the exploitation phase, (T,) bool."""
        return self.steps >= self.tau
