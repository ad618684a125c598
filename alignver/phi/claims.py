"""What certificates say about phi, and how they identify rows that memory does not hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.proof.certificate import Certificate, make
from alignver.results import Frozen, plain

__all__ = ["EXPLORATION", "GATES", "NO_EXPLORATION", "OPTIMALITY", "SUBOPTIMALITY", "about", "seal"]

EXPLORATION = "exploration"
GATES = "exploration-gates"
NO_EXPLORATION = "no-exploration"
OPTIMALITY = "optimality"
SUBOPTIMALITY = "suboptimality"


def about(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a claim about the surveyed rows Z; gates are part of a certificate, not its input."""
    return {"Z": dict(record)}


def seal(
    claim: str,
    method: str,
    inputs: Mapping[str, Any],
    data: Mapping[str, npt.NDArray[Any]],
    constants: Mapping[str, Any],
) -> Certificate:
    """Return a sealed certificate about inputs that were identified block by block.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.proof.certificate import digest_input
    >>> seal(NO_EXPLORATION, "count", about(digest_input(np.ones((3, 1)))), {}, {"rank": 3, "width": 2}).sealed
    True
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in data.items()}
    unsealed = make(claim, method, {}, arrays, constants)
    named = dataclasses.replace(unsealed, inputs=Frozen({name: plain(dict(value)) for name, value in inputs.items()}))
    return dataclasses.replace(named, seal=named.expected_seal())
