"""The options that several commands share, each described once.

Options that every command about a model of the user's own has alike.
"""

from __future__ import annotations

import enum
from typing import Annotated

import typer

__all__ = [
    "Backend",
    "Certificate",
    "Certify",
    "ChunkSize",
    "ComputedIn",
    "Device",
    "Dtype",
    "DtypeName",
    "Html",
    "JacobianDtype",
    "Json",
    "Junit",
    "Loss",
    "Method",
    "Model",
    "ModelDtype",
    "Quiet",
    "ResidualTolerance",
    "Rule",
    "Seed",
    "Tolerance",
    "Verbose",
    "Weights",
]
_OUTPUT = "Output"
_DECISION = "Decision"
_COMPUTATION = "Computation"


class Backend(enum.StrEnum):
    """The array library that does the linear algebra."""

    NUMPY = "numpy"
    TORCH = "torch"
    CUPY = "cupy"


class DtypeName(enum.StrEnum):
    """The floating-point types that a model can be run in."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"{value} is not in the range from 0 to 2**63 - 1")
    return value


Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON document on stdout and nothing else there; on bad input stdout stays empty.",
        rich_help_panel=_OUTPUT,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="The verdict line only, and no progress.", rich_help_panel=_OUTPUT)
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Every table, the provenance, and tracebacks of errors.", rich_help_panel=_OUTPUT
    ),
]
Html = Annotated[
    str | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the report as one HTML page that needs nothing else.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Junit = Annotated[
    str | None,
    typer.Option(
        "--junit",
        metavar="FILE",
        help="Write JUnit XML for a CI system: FAILS is a failure, UNDECIDED an error.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Certificate = Annotated[
    str | None,
    typer.Option(
        "--certificate",
        metavar="DIR",
        help="Save the certificate of a proof here; 'alignver verify' checks it again.",
        rich_help_panel=_OUTPUT,
    ),
]
Method = Annotated[
    str,
    typer.Option(metavar="NAME", help="auto, svd, qr, lstsq or exact.", rich_help_panel=_DECISION),
]
Rule = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Rank rule that decides: golub, press, golub-inf, golub-qr, ... The report shows them all.",
        rich_help_panel=_DECISION,
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        metavar="TAU",
        help="Singular values up to this count as zero; overrides the rule.",
        show_default=False,
        rich_help_panel=_DECISION,
    ),
]
ResidualTolerance = Annotated[
    float | None,
    typer.Option(
        metavar="EPS",
        help="Largest relative residual of a member.",
        show_default=False,
        rich_help_panel=_DECISION,
    ),
]
ComputedIn = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="The dtype that the entries were computed in, where they are stored in a finer one.",
        rich_help_panel=_DECISION,
    ),
]
Certify = Annotated[
    bool,
    typer.Option(
        "--certify/--no-certify",
        help="Try to prove the verdict, or stay with floating-point evidence.",
        rich_help_panel=_DECISION,
    ),
]
BackendOption = Annotated[
    Backend, typer.Option(help="Array library that does the linear algebra.", rich_help_panel=_COMPUTATION)
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, ...", rich_help_panel=_COMPUTATION),
]
Dtype = Annotated[DtypeName, typer.Option(help="Precision of the computation.", rich_help_panel=_COMPUTATION)]
Seed = Annotated[
    int,
    typer.Option(metavar="N", callback=_seed, help="Seed of everything that is random.", rich_help_panel=_COMPUTATION),
]


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
ModelDtype = Annotated[
    JacobianDtype,
    typer.Option(
        help="Precision of the Jacobian: float64 widens the model exactly, same keeps its own.",
        rich_help_panel="Computation",
    ),
]
