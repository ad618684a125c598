"""From a proved staircase to its certificate: the recipe of q, the bounds block by block, nothing that can be
derived.
"""

from __future__ import annotations

import numpy as np

from alignver.kernel import Certificate, seal
from alignver.phi.rows import Rows
from alignver.phi.staircase import Staircase, gates
from alignver.phi.survey import Survey
from alignver.proof.rounding import FloatArray

__all__ = ["certify_staircase", "gates_of"]


def certify_staircase(stairs: Staircase, rows: Rows, found: Survey, delta: float = 0.0) -> Certificate:
    """Return the certificate of a staircase.

    Stored are v, the thresholds, c and a bound of s_min for each block. The order of the rows, the blocks and q follow
    from them.
    """
    data = {
        "direction": stairs.direction,
        "thresholds": stairs.thresholds,
        "floors": np.array([block.s_min for block in stairs.blocks]),
    }
    constants = {
        "rank": rows.n,
        "width": stairs.width,
        "add_constant": rows.added,
        "c": stairs.c,
        "margin": stairs.margin,
        "s_min": stairs.s_min,
        "delta": float(delta),
    }
    return seal("exploration", "staircase", {"Z": found.record}, data, constants)


def gates_of(certificate: Certificate) -> FloatArray:
    """Return the gates q (m, h) that a staircase certificate proves phi(q) to have full rank for."""
    data = certificate.data
    return gates(data["direction"], data["thresholds"], float(certificate.constants["c"]))
