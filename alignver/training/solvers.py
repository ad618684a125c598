"""Optimisers of the exploitation phase, whose step is known from the problem: Lhat is a number, not a guess."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from alignver.errors import InvalidInput
from alignver.theory.smoothness import Smoothness

__all__ = [
    "FULL_BATCH",
    "SOLVERS",
    "Accelerated",
    "Factory",
    "ScheduledSGD",
    "exploiting_optimizer",
    "solver",
    "take_step",
]

Factory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class Accelerated(torch.optim.Optimizer):
    r"""Nesterov's accelerated gradient for a convex loss with gradient of Lipschitz constant 1/lr, with restarts.

    .. math:: x_{k+1} = y_k - \alpha \nabla L(y_k), \quad y_{k+1} = x_{k+1} + \frac{t_k - 1}{t_{k+1}} (x_{k+1} - x_k),
              \quad t_{k+1} = \tfrac12 (1 + \sqrt{1 + 4 t_k^2})

    and t is set back to 1 where the gradient points along the last step (O'Donoghue and Candes 2015). The parameters
    hold y; :meth:`settle` puts x there. Deterministic: for full batches. Source: Beck and Teboulle (2009).

    Examples
    --------
    >>> p = torch.nn.Parameter(torch.tensor([4.0, 1.0]))
    >>> optimizer = Accelerated([p], lr=0.05)
    >>> for _ in range(60):
    ...     p.grad = None
    ...     (10 * p[0] ** 2 + p[1] ** 2).backward()
    ...     optimizer.step()
    >>> optimizer.settle()
    >>> bool(p.norm() < 1e-4)
    True
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step from the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            own = [p for p in group["params"] if p.grad is not None]
            uphill = 0.0
            for p in own:
                state = self.state[p]
                if not state:
                    state["x"], state["t"] = p.detach().clone(), 1.0
                new = p - group["lr"] * p.grad
                state["new"] = new
                uphill += float((p.grad * (new - state["x"])).sum())
            for p in own:
                state = self.state[p]
                t = 1.0 if uphill > 0.0 else state["t"]
                following = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
                p.copy_(state["new"] + (t - 1.0) / following * (state["new"] - state["x"]))
                state["x"], state["t"] = state.pop("new"), following
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Put the iterate x in the place of the extrapolated y."""
        for p, state in self.state.items():
            p.copy_(state["x"])


class ScheduledSGD(torch.optim.SGD):
    r"""SGD with :math:`\alpha^t = \alpha^0 (t + 1)^{-0.6}`: the sum diverges and that of squares converges (Theorem 5
    (ii)).
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
    "adam": lambda params, step: torch.optim.Adam(params),
    "lbfgs": _lbfgs,
}
"""By name, each from the parameters and the step 1/Lhat."""

FULL_BATCH = frozenset({"gd", "accelerated", "lbfgs"})
"""Those whose theory needs the whole gradient."""


def solver(name: str) -> Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]:
    """Return the maker of a solver by its name; :class:`InvalidInput` for another."""
    if name not in SOLVERS:
        raise InvalidInput("exploit_optimizer", repr(name), "a function of parameters, or one of " + ", ".join(SOLVERS))
    return SOLVERS[name]


def exploiting_optimizer(
    choice: Factory | str, parameters: list[torch.nn.Parameter], smoothness: Smoothness
) -> torch.optim.Optimizer:
    """Return the optimiser of the exploitation phase: a solver by name, or what a factory makes with a stable step.

    A step of SGD from which on gradient descent may diverge is lowered to 1/Lhat, with a warning.
    """
    if isinstance(choice, str):
        return solver(choice)(parameters, smoothness.step)
    optimizer = choice(parameters)
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            # Heavy-ball iterations on a quadratic are stable below 2 (1 + momentum) / L (Polyak 1964).
            limit = smoothness.limit * (1.0 + group["momentum"])
            if group["lr"] >= limit:
                message = (
                    f"the step {group['lr']:g} of the exploitation phase is above {limit:.3g}, from where on it may "
                    f"diverge; 1/Lhat = {smoothness.step:.3g} is taken"
                )
                warnings.warn(message, RuntimeWarning, stacklevel=5)
                group["lr"] = smoothness.step
    return optimizer


def take_step(optimizer: torch.optim.Optimizer, closure: Callable[[], torch.Tensor]) -> None:
    """Evaluate the loss and its gradient by ``closure``, as often as the optimiser asks for, and take one step."""
    if isinstance(optimizer, torch.optim.LBFGS):
        own: Any = optimizer
        own.step(closure)
    else:
        closure()
        optimizer.step()
