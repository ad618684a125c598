"""Figure 6: the softplus with factor 100 beside the ReLU that it stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import Bound, CheckResult, Verdict

__all__ = ["ITEM"]

_BETA = 100.0
_POINTS = 20001  # of [-1, 1], 0 among them


class _Figure6:
    name = "figure6"
    title = "ReLU and softplus with factor 100"
    source = "Figure 6, Appendix C"
    datasets: tuple[str, ...] = ()
    cost = "a second on two cores"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return the one part: both functions on a grid."""
        setting.on_cpu()
        return [Part("grid", {"beta": _BETA, "points": _POINTS, "interval": [-1, 1]}, _measure)]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        r"""Compare with :math:`0 < \ln(1 + e^{\beta q})/\beta - \max(q, 0) \le \ln 2 / \beta`, with equality at 0."""
        if "grid" not in measured:
            return [compared(self, _CLAIM, Verdict.UNDECIDED, "not run")]
        gap, limit = float(measured["grid"]["largest difference"]), math.log(2.0) / _BETA
        # One rounding of ln 2 / beta on either side: the largest difference is that very number.
        agrees = abs(gap - limit) <= 4 * 2.0**-52 * limit
        reason = f"they differ by {gap:.4g} at most, at q = {measured['grid']['at']:g}; ln 2 / 100 = {limit:.4g}"
        shown = f"{gap / 2:.2%} of the height of a plot over [-1, 1]: a line's width"
        return [
            compared(
                self,
                _CLAIM,
                Verdict.HOLDS if agrees else Verdict.FAILS,
                reason,
                paper="the plot lines coincide",
                ours=gap,
                evidence=[shown],
                bounds=[Bound("largest difference", gap, "<=", limit * (1 + 4 * 2.0**-52))],
            )
        ]

    def draw(self, measured: Measured) -> Any:
        """Return the figure: the two functions near 0."""
        from alignver.report.plots import curves

        grid = measured["grid"]
        return curves(
            grid["q"], {"ReLU": grid["relu"], "softplus": grid["softplus"]}, x_label="q", y_label="activation"
        ).figure


_CLAIM = "softplus with factor 100 coincides with the ReLU"


def _measure() -> dict[str, Any]:
    q = torch.linspace(-1.0, 1.0, _POINTS, dtype=torch.float64)
    q[_POINTS // 2] = 0.0
    relu, softplus = torch.relu(q), torch.nn.Softplus(_BETA)(q)
    difference = (softplus - relu).abs()
    worst = int(difference.argmax())
    every = slice(None, None, 200)
    return {
        "largest difference": float(difference[worst]),
        "at": float(q[worst]),
        "q": q[every].tolist(),
        "relu": relu[every].tolist(),
        "softplus": softplus[every].tolist(),
    }


ITEM: Item = _Figure6()
