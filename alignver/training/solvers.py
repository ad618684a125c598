"""Optimisers of the exploitation phase with steps from the constant Lhat, and the record of their steps.

Lhat is computed from the problem (:mod:`alignver.theory.smoothness`). The record has the quantities of the theorems.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from alignver import require
from alignver.errors import InvalidInput, UnstableStep
from alignver.theory.exploitation import Objective
from alignver.theory.infimum import newton_step
from alignver.theory.record import TrainingRecord
from alignver.theory.smoothness import Smoothness
from alignver.training.exploitation import CachedProblem, mean_loss

Factory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]

_NEWTON = 6000
"""Samples up to which Newton's systems are factored: some seconds for each output and step."""

_COLUMNS = ("steps", "losses", "step_sizes", "gradient_norms", "update_norms", "inner_products")


class Accelerated(torch.optim.Optimizer):
    r"""Nesterov's accelerated gradient for a convex loss with gradient of Lipschitz constant 1/lr, with restarts.

    .. math:: x_{k+1} = y_k - \alpha \nabla L(y_k), \quad y_{k+1} = x_{k+1} + \frac{t_k - 1}{t_{k+1}} (x_{k+1} - x_k),
              \quad t_{k+1} = \tfrac12 (1 + \sqrt{1 + 4 t_k^2})

    and t is reset to 1 where the gradient points along the last step (O'Donoghue and Candes 2015). The parameters are
    x; the closure is evaluated at y. The method is deterministic, for full batches. Source: Beck and Teboulle (2009).

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.tensor([4.0, 1.0]))
    >>> optimizer = Accelerated([p], lr=0.05)
    >>> def closure():
    ...     p.grad = None
    ...     loss = 10 * p[0] ** 2 + p[1] ** 2
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(60):
    ...     _ = optimizer.step(closure)
    >>> bool(p.norm() < 1e-4)
    True
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Evaluate the loss and its gradient at y by ``closure``, and move to the next x."""
        steps = [(p, group["lr"]) for group in self.param_groups for p in group["params"]]
        for p, _ in steps:
            state = self.state[p]
            if not state:
                state["y"], state["t"] = p.detach().clone(), 1.0
            state["x"] = p.detach().clone()
            p.copy_(state["y"])
        with torch.enable_grad():
            loss = closure()
        uphill = 0.0
        for p, step in steps:
            if p.grad is not None:
                p.sub_(p.grad, alpha=step)
                uphill += float((p.grad * (p - self.state[p]["x"])).sum())
        for p, _ in steps:
            state = self.state[p]
            t = 1.0 if uphill > 0.0 else state["t"]
            following = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
            state["y"] = p + (t - 1.0) / following * (p - state.pop("x"))
            state["t"] = following
        return loss


class Newton(torch.optim.Optimizer):
    """Newton's method with a line search on all samples (:mod:`alignver.theory.infimum`), in float64.

    The method needs more than gradients: :attr:`problem` has to be set before the first step, as
    :class:`~alignver.training.wrapper.EEWrapper` does. A step costs a Cholesky factorization of order n per output.
    """

    problem: Objective | None = None

    def __init__(self, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Evaluate ``closure`` once, for its loss and gradient, and take one step."""
        with torch.enable_grad():
            loss = closure()
        if self.problem is None or self.problem.model.n > _NEWTON:
            n = "no" if self.problem is None else str(self.problem.model.n)
            need = f"up to {_NEWTON} samples with cached features; 'lbfgs' or 'accelerated' take more"
            raise InvalidInput("exploit_optimizer", f"'newton' with {n} samples", need, code="conflicting-arguments")
        (weights,) = self.param_groups[0]["params"]
        step = newton_step(self.problem, weights.detach().to("cpu", torch.float64).numpy())
        weights.copy_(torch.from_numpy(step.weights))
        return loss


class ScheduledSGD(torch.optim.SGD):
    r"""SGD with :math:`\alpha^t = \alpha^0 (t + 1)^{-0.6}`.

    The sum of the steps diverges and the sum of their squares converges (Theorem 5 (ii)).
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group["first"], group["count"] = lr, 0

    def step(self, closure: Any = None) -> Any:
        """Set the step size, and take the step."""
        for group in self.param_groups:
            group["count"] += 1
            group["lr"] = group["first"] * group["count"] ** -0.6
        return super().step(closure)


def _lbfgs(params: Iterable[torch.nn.Parameter], step: float) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(params, lr=1.0, max_iter=20, history_size=20, line_search_fn="strong_wolfe")


SOLVERS: dict[str, Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]] = {
    "gd": lambda params, step: torch.optim.SGD(params, lr=step),
    "sgd": lambda params, step: ScheduledSGD(params, lr=step),
    "momentum": lambda params, step: torch.optim.SGD(params, lr=step, momentum=0.9),
    "accelerated": lambda params, step: Accelerated(params, lr=step),
    "newton": lambda params, step: Newton(params),
    "adam": lambda params, step: torch.optim.Adam(params),
    "lbfgs": _lbfgs,
}
"""The solvers by name: functions of the parameters and the step 1/Lhat."""

FULL_BATCH = frozenset({"gd", "accelerated", "newton", "lbfgs"})
"""The solvers whose theory needs the gradient of the whole loss."""


def solver(name: str) -> Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]:
    """Return a function from parameters and step to the solver of a name."""
    need = "a function of parameters, or one of " + ", ".join(SOLVERS)
    return SOLVERS[require.one_of("exploit_optimizer", name, SOLVERS, need=need)]


def exploiting_optimizer(
    choice: Factory | str,
    parameters: list[torch.nn.Parameter],
    smoothness: Smoothness,
    *,
    batches: bool = False,
    warn: bool = True,
) -> torch.optim.Optimizer:
    """Return the optimiser of the exploitation phase: a solver by name, or that of a factory with a stable step.

    A step of SGD that is not below the stable limit is lowered to 1/Lhat, with a warning. On ``batches`` it is lowered
    to (1 - momentum)/Lhat: momentum adds up 1 / (1 - momentum) steps, and their noise with them.
    """
    named = isinstance(choice, str)
    optimizer = solver(choice)(parameters, smoothness.step) if isinstance(choice, str) else choice(parameters)
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            safe = smoothness.step * (1.0 - float(group["momentum"]) if batches else 1.0)
            limit = stable_below(group, smoothness)
            if group["lr"] >= limit and warn and not named:
                message = (
                    f"the step {group['lr']:g} of the exploitation phase is above {limit:.3g}, where it may diverge; "
                    f"1/Lhat = {smoothness.step:.3g} is stable, and {safe:.3g} is taken"
                )
                warnings.warn(message, UnstableStep, stacklevel=4)
            if group["lr"] >= limit or named:
                group["lr"] = min(group["lr"], safe)
    return optimizer


def stable_below(group: dict[str, Any], smoothness: Smoothness) -> float:
    """Return the step at and above which SGD with the momentum of a group may diverge.

    Heavy-ball iterations on a quadratic are stable below 2 (1 + momentum) / L (Polyak 1964).
    """
    return smoothness.limit * (1.0 + float(group["momentum"]))


def warn_of_long_step(optimizer: torch.optim.Optimizer, smoothness: Smoothness) -> bool:
    """Warn before SGD takes a step that may diverge, and return whether it does.

    A step can change after the optimiser was created, for example by a schedule.
    """
    if isinstance(optimizer, torch.optim.SGD) and not isinstance(optimizer, ScheduledSGD):
        for group in optimizer.param_groups:
            limit = stable_below(group, smoothness)
            if group["lr"] >= limit:
                message = f"a step of {group['lr']:g} is about to be taken, and above {limit:.3g} it may diverge"
                warnings.warn(message, UnstableStep, stacklevel=5)
                return True
    return False


def plain_descent(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser's update is exactly its step times the gradient."""
    extras = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    return isinstance(optimizer, torch.optim.SGD) and not any(
        group[key] for group in optimizer.param_groups for key in extras
    )


def take_step(optimizer: torch.optim.Optimizer, closure: Callable[[], torch.Tensor]) -> None:
    """Evaluate the loss and its gradient by ``closure``, as often as the optimiser needs, and take one step."""
    if isinstance(optimizer, torch.optim.LBFGS | Accelerated | Newton):
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    else:
        closure()
        optimizer.step()


class Recorder:
    r"""Record of the steps :math:`\theta^{t+1} = \theta^t - \alpha^t \bar g^t` on the weights of the last hidden layer.

    Loss and gradient are those of all samples before each step, which takes one more evaluation per step. alpha is the
    optimiser's step; :math:`\bar g^t` is the gradient for plain SGD, and
    :math:`(\theta^t - \theta^{t+1}) / \alpha^t` for all other optimisers.

    Parameters
    ----------
    tau : int
        The first step of the phase.
    """

    def __init__(self, tau: int) -> None:
        self.tau = tau
        self.methods: list[str] = []
        self._columns: dict[str, list[float]] = {name: [] for name in _COLUMNS}
        self._before: tuple[float, torch.Tensor, torch.Tensor] | None = None

    def before(self, loss: str, problem: CachedProblem, targets: torch.Tensor) -> None:
        """Store loss, gradient and weights before a step."""
        weights = problem.head.hidden
        with torch.enable_grad():
            value = mean_loss(loss, problem.outputs(), targets)
            (gradient,) = torch.autograd.grad(value, weights)
        self._before = float(value.detach()), gradient.double(), weights.detach().double().clone()

    def after(self, step: int, optimizer: torch.optim.Optimizer, weights: torch.Tensor, method: str) -> None:
        """Record the step."""
        assert self._before is not None
        loss, gradient, start = self._before
        size = float(optimizer.param_groups[0]["lr"])
        plain = plain_descent(optimizer) and weights.grad is not None
        update = weights.grad.double() if plain and weights.grad is not None else (start - weights.double()) / size
        numbers = (step, loss, size, gradient.norm(), update.detach().norm(), (gradient * update.detach()).sum())
        for name, number in zip(_COLUMNS, numbers, strict=True):
            self._columns[name].append(float(number))
        if method not in self.methods:
            self.methods.append(method)
        self._before = None

    def record(self) -> TrainingRecord | None:
        """Return the record; None before the first step."""
        if not self.methods:
            return None
        return TrainingRecord(**self._columns, tau=self.tau, method=" and ".join(self.methods))

    def state(self) -> dict[str, Any]:
        """Return everything as tensors and plain data, for a checkpoint."""
        return {
            "tau": self.tau,
            "methods": list(self.methods),
            "columns": {k: torch.tensor(v, dtype=torch.float64) for k, v in self._columns.items()},
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Recorder:
        """Return the recorder of a :meth:`state`."""
        recorder = cls(int(state["tau"]))
        recorder.methods = list(state["methods"])
        recorder._columns = {name: state["columns"][name].tolist() for name in _COLUMNS}
        return recorder


def method_of(optimizer: torch.optim.Optimizer, batch: str) -> str:
    """Return the name of the method of a step, for :class:`TrainingRecord`.

    ``batch`` is ``"all"``, ``"independent"`` (drawn anew for each step, so that a stochastic gradient is unbiased
    given the steps before), or a description of another kind: an epoch's batches without repetition are not
    independent.
    """
    if plain_descent(optimizer):
        return {"all": "gradient descent", "independent": "sgd"}.get(batch, f"sgd, {batch}")
    return type(optimizer).__name__ + ("" if batch == "all" else f", {batch} batches")
