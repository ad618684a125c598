"""Random small problems and networks, and the search for a counterexample that a falsified law has to lose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from alignver.theory.exploitation import Exploitation, Objective, objective
from alignver.theory.losses import SampleLoss, sample_loss

LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")
ROUNDING = 1e-9  # of both sides of an inequality, relative to their size

seeds = st.integers(0, 2**32 - 1)
losses = st.sampled_from(LOSSES)


def caught(strategy: st.SearchStrategy[Any], law: Callable[[Any], bool], examples: int = 400) -> Any:
    """Return a case in which a falsified law does not hold; fail where none is found."""
    options = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        return find(strategy, lambda case: not law(case), settings=options)
    except NoSuchExample:
        raise AssertionError("nothing caught the falsified law") from None


def at_most(left: float, right: float) -> bool:
    """Return whether left <= right up to rounding."""
    return bool(left <= right + ROUNDING * (abs(left) + abs(right)) + 1e-12)


def some_targets(rng: np.random.Generator, loss: str, n: int, m_y: int) -> Any:
    if loss == "squared":
        return rng.standard_normal((n, m_y))
    if loss == "cross_entropy" and m_y > 1:
        return rng.integers(0, m_y, n)
    return rng.integers(0, 2, (n, m_y))


@st.composite
def problems(draw: Any, enough: bool | None = None, loss: str | None = None, single: bool = False) -> Objective:
    """An exploitation problem; ``enough``: h m >= 2 n, or h m < n, or either; ``single``: one sample, one output."""
    rng = np.random.default_rng(draw(seeds))
    n, m, m_y = draw(st.integers(1, 10)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    if single:
        n = m_y = 1
    h = draw(st.integers(1, 6))
    if enough is True:
        h = -(-2 * n // m)
    elif enough is False:
        n = h * m + draw(st.integers(1, 4))
    scale = 10.0 ** draw(st.integers(-1, 1))
    Z = np.column_stack([scale * rng.standard_normal((n, m - 1)), np.ones(n)])
    model = Exploitation(Z, rng.standard_normal((m_y, m, h)), rng.standard_normal((m_y, h)), draw(st.floats(0.5, 4.0)))
    name = loss or draw(losses)
    return objective(model, some_targets(rng, name, n, m_y), name)


@dataclasses.dataclass(frozen=True)
class Network:
    """x -> V g(U x), parameters (U, V): Assumption 1 holds with S = V unless an ``after`` bends the outputs."""

    X: Any
    Y: Any
    loss: SampleLoss
    theta: Any  # (d,)
    width: int
    m_y: int
    after: Callable[[Any], Any] | None = None

    @property
    def S(self) -> np.ndarray:
        """Indices of V."""
        first = self.width * self.X.shape[1]
        return np.arange(first, first + self.m_y * self.width)

    def outputs(self, theta: Any) -> Any:
        """Outputs (n, m_y) of torch parameters (d,)."""
        cut = self.width * self.X.shape[1]
        U, V = theta[:cut].reshape(self.width, -1), theta[cut:].reshape(self.m_y, self.width)
        plain = torch.tanh(self.X @ U.T) @ V.T
        return plain if self.after is None else self.after(plain)

    def f(self, theta: Any) -> np.ndarray:
        return self.outputs(torch.as_tensor(theta)).numpy()

    def jacobian(self, theta: Any) -> np.ndarray:
        """J (n m_y, d), rows output-major."""
        J = torch.func.jacrev(self.outputs)(torch.as_tensor(theta))
        return J.permute(1, 0, 2).reshape(-1, len(theta)).numpy()

    def value(self, theta: Any) -> float:
        return self.of(self.f(theta))

    def of(self, outputs: Any) -> float:
        return float(self.loss.values(outputs, self.Y).mean())

    def gradient(self, theta: Any) -> np.ndarray:
        slopes = self.loss.gradient(self.f(theta), self.Y) / len(self.Y)
        return self.jacobian(theta).T @ slopes.T.ravel()


def vec(M: np.ndarray) -> np.ndarray:
    return M.T.ravel()


def unvec(v: np.ndarray, m_y: int) -> np.ndarray:
    return v.reshape(m_y, -1).T


@st.composite
def networks(draw: Any, bent: bool = False, wide: bool = False, loss: str | None = None) -> Network:
    """A random network; ``bent``: an output nonlinearity, so that Assumption 1 fails; ``wide``: J of full row rank."""
    rng = np.random.default_rng(draw(seeds))
    n, m_x, m_y = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    width = 3 * n if wide else draw(st.integers(1, 4))
    name = loss or draw(losses)
    criterion = sample_loss(name, m_y)
    Y = criterion.targets(some_targets(rng, name, n, m_y), n, m_y)
    theta = rng.standard_normal(width * (m_x + m_y)) * 10.0 ** draw(st.integers(-1, 1))
    X = torch.as_tensor(rng.standard_normal((n, m_x)))
    return Network(X, Y, criterion, theta, width, m_y, (lambda q: 2.0 + torch.exp(q)) if bent else None)
