"""Options that every command about a model of the user's own has alike."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

__all__ = ["ChunkSize", "Dtype", "JacobianDtype", "Loss", "Model", "Weights"]


class Loss(enum.StrEnum):
    """The losses that Definition 2's modified targets are known for."""

    SQUARED = "squared"
    BINARY_CROSS_ENTROPY = "binary_cross_entropy"
    CROSS_ENTROPY = "cross_entropy"


class JacobianDtype(enum.StrEnum):
    """The precision in which the Jacobian is computed."""

    FLOAT64 = "float64"
    SAME = "same"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="FILE.py:FUNCTION or package.module:FUNCTION; FUNCTION() returns a torch.nn.Module. "
        "The code is imported and run.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Parameters to load: a .safetensors file.", show_default=False),
]
ChunkSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Samples differentiated at a time; fewer need less memory.",
        show_default="as many as keep it small",
        rich_help_panel="Computation",
    ),
]
Dtype = Annotated[
    JacobianDtype,
    typer.Option(
        help="Precision of the Jacobian: float64 widens the model exactly, same keeps its own.",
        rich_help_panel="Computation",
    ),
]
