r"""Full row rank of a matrix made of layer factors: all of J in a ball, hence every target in its column space.

Layer s has inputs A (n, T, a) and output gradients B (m, n, T, b); its columns of J are
:math:`\sum_t b_{jit} a_{it}^\top`, row i m + j here: sample by sample. With one position its share of :math:`J J^\top`
is made of the factors, with several its columns are formed.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel.certificate import Certificate, Inputs
from alignver.kernel.exact import exponents, floats, number, power, sqrt_down
from alignver.kernel.failure import require
from alignver.kernel.floats import OMEGA, Run, definite_floor, gamma, lengths_up, norm_up

__all__ = ["METHODS"]

_FAR = 2.0**400  # factors below it have products that do not overflow
_WIDTH = 256  # columns that are formed at once, about


def _full_row_rank(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    r"""Every matrix in the ball around the one made of the factors has full row rank, so y is in its column space.

    Let p_s be the vector of :math:`\sum_t \|a_{it}\| \|b_{jit}\|`. The magnitudes of the products in entry (k, l) of a
    share add up to at most :math:`p_{sk} p_{sl}` (Cauchy and Schwarz), and none passes through more than R roundings,
    so the Gram matrix errs by :math:`\gamma_R \sum_s \|p_s\|^2` in norm. Columns that are formed err by
    :math:`\gamma_T \|p_s\|` in norm, which comes off the smallest singular value.
    """
    constants = certificate.constants
    n, m, layers = constants["samples"], constants["outputs"], constants["layers"]
    require(all(type(size) is int and size >= 1 for size in (n, m)), "the samples or outputs are no numbers")
    require(inputs["y"].shape == (n * m,), "y does not have one entry for each sample and output")
    powers = exponents(certificate.data["scaling"], n * m)
    scale = np.ldexp(1.0, powers).reshape(m, n)
    sources = {**certificate.data, **inputs}
    names = {f"{letter}{k}" for k in range(len(layers)) for letter in "AB"}
    require(set(inputs) in ({"y"}, {"y", *names}), "the inputs are neither all factors nor none")
    gram = np.zeros((n * m, n * m))
    size, lost, most, additions, columns, terms = Fraction(0), Fraction(0), 0, 0, 0, 0
    for k, layer in enumerate(layers):
        A, B = _factors(sources, k, layer, n, m)
        B = B * scale[:, :, None, None]
        require(all(float(np.abs(x).max()) < _FAR for x in (A, B)), f"the factors of layer {k} are too large")
        T, a, b = A.shape[1], A.shape[2], B.shape[3]
        # T + 1 more roundings: the products of lengths, and their sum.
        share = norm_up(np.einsum("it,jit->ij", lengths_up(A), lengths_up(B))) / (1 - gamma(T + 1)) + n * m * T * OMEGA
        size += share**2
        if T > 1:
            # The last factor pays for columns that were formed being longer than those that are meant.
            lost += gamma(T) * share
        roundings, added = _add(gram, A, B)
        most, additions = max(most, roundings + 2 * T), additions + added
        columns, terms = columns + a * b, terms + (a + b) * T * T
        lost += n * m * a * b * T * OMEGA * power(400)  # B may have underflowed as it was scaled, times A
    require(columns >= n * m, "there are fewer columns than rows")
    # A product of a and one of b terms lose a omega and b omega, and are below b 2^800 and a 2^800.
    noise = gamma(most + additions) * size + (n * m) ** 2 * terms**2 * OMEGA * power(804)
    top = power(int(powers.max()))
    radius, claimed = number(constants["ball"], "value"), number(constants, "s_min")
    require(constants["ball"]["kind"] == "norm", "an unknown kind of ball")
    target = (max(radius, claimed) * top + lost) ** 2
    eigenvalue = definite_floor(lambda r, c: gram[r, c].copy(), n * m, size + noise, noise, target, run)
    floor = (sqrt_down(eigenvalue) - lost) / top
    require(floor > radius, "s_min is not known to exceed the radius of the ball")
    require(floor >= claimed, "s_min is not known to be as large as it is claimed to be")
    whose = "given" if set(inputs) > {"y"} else "in the certificate"
    return f"{n * m} independent rows throughout the ball: the Gram matrix of the factors {whose} was factored again"


def _factors(sources: Inputs, k: int, layer: Any, n: int, m: int) -> tuple[Any, Any]:
    T = layer["positions"]
    A, B = sources[f"A{k}"], sources[f"B{k}"]
    require(type(T) is int and T >= 1 and A.size > 0 and B.size > 0, f"layer {k} has no positions or factors")
    floats(A, (n * T, A.shape[-1]), f"inputs of layer {k}")
    floats(B, (m * n * T, B.shape[-1]), f"gradients of layer {k}")
    return A.reshape(n, T, -1), B.reshape(m, n, T, -1)


def _add(gram: Any, A: Any, B: Any) -> tuple[int, int]:
    """Add a layer's share; return the most roundings of a product within it, and the additions of it to the total."""
    m, n, T, b = B.shape
    a = A.shape[2]
    if T == 1:
        rows = np.ascontiguousarray(B[:, :, 0].transpose(1, 0, 2)).reshape(n * m, b)
        inner = A[:, 0] @ A[:, 0].T
        for i in range(n):
            block = slice(i * m, (i + 1) * m)
            gram[block] += (rows[block] @ rows.T) * np.repeat(inner[i], m)[None, :]
        return a + b + 1, 1
    step = max(1, _WIDTH // b)
    starts = range(0, a, step)
    for start in starts:
        part = (B.transpose(1, 0, 3, 2) @ A[:, None, :, start : start + step]).reshape(n * m, -1)
        gram += part @ part.T
    return min(step, a) * b, len(starts)


METHODS = {("factored-membership", "factored gram"): _full_row_rank}
