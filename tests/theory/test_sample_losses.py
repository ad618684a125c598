"""Losses of a sample: accuracy, gradients, conjugates, and losses of the caller."""

from __future__ import annotations

import dataclasses

import mpmath
import numpy as np
import pytest

from alignver.errors import InvalidInput
from alignver.theory.losses import LogisticLoss, SampleLoss, SoftmaxLoss, SquaredLoss, sample_loss


def exact(loss, q, y):
    """Return the loss of one sample in 60 digits."""
    with mpmath.workdps(60):
        q, y = [mpmath.mpf(v) for v in q], [mpmath.mpf(v) for v in y]
        if loss == "squared":
            return sum((a - b) ** 2 for a, b in zip(q, y, strict=True))
        if loss == "binary_cross_entropy" or len(q) == 1:
            return sum(mpmath.log1p(mpmath.exp((1 - 2 * b) * a)) for a, b in zip(q, y, strict=True))
        target_output = sum(a * b for a, b in zip(q, y, strict=True))
        return mpmath.log1p(sum(mpmath.exp(a - target_output) for a, b in zip(q, y, strict=True) if b == 0))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 30.0, 700.0])
@pytest.mark.parametrize("name", ["squared", "binary_cross_entropy", "cross_entropy"])
def test_values_are_accurate(name, scale, rng):
    loss = sample_loss(name, 4)
    q = scale * rng.standard_normal((40, 4))
    y = np.eye(4)[rng.integers(0, 4, 40)] if name != "squared" else q + rng.standard_normal((40, 4))
    expected = [exact(name, a, b) for a, b in zip(q.tolist(), y.tolist(), strict=True)]
    for value, true in zip(loss.values(q, y), expected, strict=True):
        assert abs(value - true) <= 1e-13 * true + 1e-300


@pytest.mark.parametrize("loss", [SquaredLoss(), LogisticLoss(), SoftmaxLoss()])
def test_gradient_smoothness_and_conjugate(loss, rng):
    y = np.eye(3)[rng.integers(0, 3, 50)]
    q, other = 3 * rng.standard_normal((50, 3)), 3 * rng.standard_normal((50, 3))
    slope = loss.gradient(q, y)
    for k in range(3):
        way = 1e-6 * np.eye(3)[k]
        numeric = (loss.values(q + way, y) - loss.values(q - way, y)) / 2e-6
        assert np.allclose(slope[:, k], numeric, atol=1e-8)
    changes = np.linalg.norm(slope - loss.gradient(other, y), axis=1)
    assert np.all(changes <= loss.smoothness * np.linalg.norm(q - other, axis=1) * (1 + 1e-12))
    # Fenchel and Young: equality at the gradient, an inequality elsewhere.
    assert np.allclose(loss.values(q, y), (slope * q).sum(axis=1) - loss.conjugate(slope, y), atol=1e-9)
    assert np.all(loss.values(other, y) >= (slope * other).sum(axis=1) - loss.conjugate(slope, y) - 1e-9)
    assert np.all(loss.infima(y) == 0.0)
    assert np.all(loss.values(q, y) >= 0.0)


@pytest.mark.parametrize("loss", [SquaredLoss(), LogisticLoss(), SoftmaxLoss()])
def test_smoothness_is_attained(loss):
    """The constant is the smallest: the gradient changes by it between two points."""
    y = np.array([[1.0, 0.0]])
    q = np.zeros((1, 2))
    way = np.array([[1e-4, -1e-4]])
    change = np.linalg.norm(loss.gradient(q + way, y) - loss.gradient(q - way, y)) / np.linalg.norm(2 * way)
    assert change == pytest.approx(loss.smoothness, rel=1e-6)


def test_conjugates_outside_their_domains():
    y = np.array([[1.0, 0.0]])
    assert np.isinf(LogisticLoss().conjugate(np.array([[0.5, 0.0]]), y)).all()
    assert np.isinf(SoftmaxLoss().conjugate(np.array([[-0.5, 0.4]]), y)).all()
    assert SoftmaxLoss().conjugate(np.array([[-0.5, 0.5]]), y)[0] == pytest.approx(-np.log(2.0))


@dataclasses.dataclass(frozen=True)
class Huber:
    """A user's own convex loss, smooth with constant 1."""

    name: str = "huber"
    convex: bool = True
    smoothness: float = 1.0

    def targets(self, Y, n, m_y):
        if np.shape(Y) != (n, m_y):
            raise InvalidInput("Y", f"shape {np.shape(Y)}", f"({n}, {m_y})")
        return np.asarray(Y, dtype=np.float64)

    def values(self, q, y):
        r = np.abs(q - y)
        return np.where(r <= 1.0, 0.5 * r * r, r - 0.5).sum(axis=1)

    def gradient(self, q, y):
        return np.clip(q - y, -1.0, 1.0)

    def infima(self, y):
        return np.zeros(len(y))


def test_own_losses():
    assert isinstance(Huber(), SampleLoss)
    assert sample_loss(Huber(), 2).name == "huber"
    with pytest.raises(InvalidInput, match="convex=False"):
        sample_loss(Huber(convex=False), 2)
    with pytest.raises(InvalidInput, match="convex=1"):
        sample_loss(Huber(convex=1), 2)
    with pytest.raises(InvalidInput, match="smoothness"):
        sample_loss(Huber(smoothness=float("inf")), 2)
    with pytest.raises(InvalidInput, match="one of 'squared'"):
        sample_loss("hinge", 2)
    with pytest.raises(InvalidInput, match="loss: got a function"):
        sample_loss(lambda q, y: q - y, 2)
    with pytest.raises(InvalidInput, match="Y: got shape"):
        Huber().targets(np.zeros((3, 1)), 3, 2)
