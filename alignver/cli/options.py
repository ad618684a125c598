"""The arguments and options that several commands share, each described once."""

from __future__ import annotations

import enum
import functools
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

_output = functools.partial(typer.Option, rich_help_panel="Output")
decision = functools.partial(typer.Option, rich_help_panel="Decision")
computation = functools.partial(typer.Option, rich_help_panel="Computation")


# The array library that does the linear algebra.
Backend = enum.StrEnum("Backend", "NUMPY TORCH CUPY")


# How y in Col(J) is decided.
Method = enum.StrEnum("Method", "AUTO SVD QR LSTSQ EXACT")


# How a rank is decided.
RankMethod = enum.StrEnum("RankMethod", "AUTO SVD QR EXACT")


# The floating-point types that a model can be run in.
DtypeName = enum.StrEnum("DtypeName", "FLOAT64 FLOAT32")


# The losses for which Definition 2 gives modified targets.
Loss = enum.StrEnum("Loss", "SQUARED BINARY_CROSS_ENTROPY CROSS_ENTROPY")
_ALIASES = {
    **dict.fromkeys(("mse", "MSELoss"), Loss.SQUARED.value),
    **dict.fromkeys(("bce", "BCEWithLogitsLoss"), Loss.BINARY_CROSS_ENTROPY.value),
    **dict.fromkeys(("ce", "CrossEntropyLoss"), Loss.CROSS_ENTROPY.value),
}


def canonical(word: str) -> str:
    """Return a word of a command line, the usual names of losses as those of the options.

    Examples
    --------
    >>> canonical("ce"), canonical("train")
    ('cross_entropy', 'train')
    """
    return _ALIASES.get(word, word)


# The precision in which the Jacobian is computed.
JacobianDtype = enum.StrEnum("JacobianDtype", "FLOAT64 SAME")


def _selected(value: str) -> str | int:
    """Read ``--select`` as the library takes it: digits are a position."""
    return int(value) if value.lstrip("-").isdigit() else value


_QUANTITY = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_BYTES = {"": 1, "b": 1} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("kmgt", 1)
    for unit, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SECONDS = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600}


def _quantity(text: str, units: Mapping[str, int], need: str) -> float:
    match = _QUANTITY.fullmatch(text)
    value = float(match[1]) * units.get(match[2].lower(), 0) if match else 0.0
    if not 0.0 < value < math.inf:
        raise typer.BadParameter(f"{text!r} is not {need}")
    return value


def size_in_bytes(text: str | int) -> int:
    """Read a size in bytes; a default is not changed.

    Examples
    --------
    >>> [size_in_bytes(text) for text in ("2GB", "2 GiB", "500mb", "4096")]
    [2000000000, 2147483648, 500000000, 4096]
    """
    if isinstance(text, int):
        return text
    return max(1, int(_quantity(text, _BYTES, "a positive size, such as 2GB, 2GiB or 500MB")))


def seconds(text: str | float) -> float:
    """Read a time in seconds; a default is not changed.

    Examples
    --------
    >>> [seconds(text) for text in ("90", "1.5h", "10m", "10min", "30 s")]
    [90.0, 5400.0, 600.0, 600.0, 30.0]
    """
    return text if isinstance(text, float) else _quantity(text, _SECONDS, "a positive time, such as 90, 90s, 10m or 2h")


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"{value} is not in the range from 0 to 2**63 - 1")
    return value


Json = Annotated[
    bool, _output("--json", help="Print one JSON document on stdout and nothing else; on bad input stdout stays empty.")
]
Quiet = Annotated[bool, _output("--quiet", "-q", help="Print the verdict line only, and no progress.")]
Verbose = Annotated[
    bool, _output("--verbose", "-v", help="Print every table, the provenance, and tracebacks of errors.")
]
Html = Annotated[
    str | None,
    _output("--html", metavar="FILE", help="Write the report as a self-contained HTML page; - is stdout."),
]
Junit = Annotated[
    str | None,
    _output("--junit", metavar="FILE", help="Write JUnit XML for a CI system: FAILS is a failure, UNDECIDED an error."),
]
Certificate = Annotated[
    str | None,
    _output(
        "--certificate", metavar="DIR", help="Save the certificate of a proof here; 'alignver verify' checks it again."
    ),
]
Plan = Annotated[
    bool, _output("--plan", help="Print what will be done, with time and memory where they are known, and stop.")
]
MethodOption = Annotated[Method, decision(metavar="NAME", help="auto, svd, qr, lstsq or exact.")]
RankMethodOption = Annotated[RankMethod, decision(metavar="NAME", help="auto, svd, qr or exact.")]
Rule = Annotated[
    str,
    decision(
        metavar="NAME",
        help="Rank rule that decides: press, golub, golub-inf, golub-qr, matlab, julia or scipy-lstsq; the report "
        "shows them all.",
    ),
]
Tolerance = Annotated[
    float | None, decision(metavar="TAU", help="Singular values up to this count as zero; overrides the rule.")
]
ResidualTolerance = Annotated[float | None, decision(metavar="EPS", help="Largest relative residual of a member.")]
ComputedIn = Annotated[
    str | None,
    decision(
        metavar="DTYPE",
        help="float16, bfloat16 or float32: the dtype in which the entries were computed, if stored in a finer one.",
    ),
]
Certify = Annotated[
    bool, decision("--certify/--no-certify", help="Try to prove the verdict, or give floating-point evidence only.")
]
BackendOption = Annotated[Backend, computation(help="Array library that does the linear algebra.")]
Device = Annotated[str, computation(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, ...")]
Dtype = Annotated[DtypeName, computation(help="Precision of the computation.")]
Seed = Annotated[int, computation(metavar="N", callback=_seed, help="Seed of all random numbers.")]
MODEL = typer.Argument(
    metavar="MODEL",
    help="FILE.py:FUNCTION or package.module:FUNCTION; FUNCTION() returns a torch.nn.Module. "
    "The code is imported and run.",
)
Model = Annotated[str, MODEL]
DATA = typer.Option(
    metavar="FILE.npz",
    help="The samples: a .npz file with X and Y, or with each input of the model by its name, and Y.",
)
LOSS = typer.Option(metavar="LOSS", help="squared, binary_cross_entropy or cross_entropy.")
Eval = Annotated[
    bool, typer.Option("--eval", help="Call model.eval() first, for a function that returns a model in training mode.")
]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="Parameters to load: a .safetensors file.")]
ChunkSize = Annotated[
    int | None,
    computation(
        min=1,
        metavar="N",
        help="Samples differentiated at a time; fewer need less memory.",
        show_default="as many as keep the memory small",
    ),
]
MaxSeconds = Annotated[
    float | None,
    computation(
        metavar="TIME",
        parser=seconds,
        help="Stop after about this time, in seconds, or as 10m or 2h; the answer is then what is known, or undecided.",
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        parser=_selected,
        help="The output of a model that returns several: its name or position, such as logits or 0.",
        show_default="the only one",
    ),
]
MaxMemory = Annotated[
    int | None,
    computation(metavar="SIZE", parser=size_in_bytes, help="The memory to plan with, in bytes, or as 500MB or 2GiB."),
]
ModelDtype = Annotated[
    JacobianDtype, computation(help="Precision of the Jacobian: float64 widens the model exactly, same keeps its own.")
]

SHARED: dict[str, tuple[Any, Any]] = {
    "select": (Select, None),
    "weights": (Weights, None),
    "eval_mode": (Eval, False),
    "method": (MethodOption, Method.AUTO),
    "rule": (Rule, "golub"),
    "tolerance": (Tolerance, None),
    "residual_tolerance": (ResidualTolerance, None),
    "computed_in": (ComputedIn, None),
    "certify": (Certify, True),
    "backend": (BackendOption, Backend.NUMPY),
    "device": (Device, "cpu"),
    "dtype": (ModelDtype, JacobianDtype.FLOAT64),
    "seed": (Seed, 0),
    "chunk_size": (ChunkSize, None),
    "max_seconds": (MaxSeconds, None),
    "max_memory": (MaxMemory, None),
    "certificate": (Certificate, None),
    "plan": (Plan, False),
    "html": (Html, None),
    "junit": (Junit, None),
    "json": (Json, False),
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
}
"""The options that a command has by their names alone, with their defaults."""

OUTPUT = ("certificate", "plan", "html", "junit", "json", "quiet", "verbose")
"""Those that belong to the session of a command."""
