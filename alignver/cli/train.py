"""``alignver train``: Algorithm 1 around the user's own network, kept in a run folder, its gap proved at the end."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.options import Loss, Weights
from alignver.cli.session import Session

__all__ = ["train"]

_RUN = "Run"
_PHASES = "The two phases"
_EXPLORATION = "Exploration"
_COMPUTATION = "Computation"


def _tau(text: str | float) -> float:
    """Read 1 as an epoch and 0.5 as a share: what 1.0 means is left to be asked. A default comes as it is."""
    try:
        return text if isinstance(text, float) else int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number") from None


class Repair(enum.StrEnum):
    """What happens to gates whose rank is not proved."""

    STAIRCASE = "staircase"
    REDRAW = "redraw"
    NONE = "none"


class Explorer(enum.StrEnum):
    """Optimisers of the exploration phase."""

    SGD = "sgd"
    ADAM = "adam"


class TrainedIn(enum.StrEnum):
    """The precision in which the model is trained."""

    SAME = "same"
    FLOAT64 = "float64"
    FLOAT32 = "float32"


def train(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="FILE.py:FUNCTION or package.module:FUNCTION; FUNCTION() returns a torch.nn.Module. "
            "The code is imported and run.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz", help="The training samples: a .npz file with X and Y.", show_default=False),
    ] = None,
    loss: Annotated[
        Loss | None,
        typer.Option(metavar="LOSS", help="squared, binary_cross_entropy or cross_entropy.", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Epochs of both phases together.", show_default=False)
    ] = None,
    weights: Weights = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="The run folder: a new one, or an empty one.",
            show_default="run-1, run-2, ...: the first that is free",
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with the run in this folder, with its own options, bit for bit.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Epochs from one checkpoint to the next.", rich_help_panel=_RUN),
    ] = 1,
    tau: Annotated[
        float,
        typer.Option(
            metavar="TAU",
            parser=_tau,
            help="Exploration's share of the epochs, below 1, or its number of epochs, an integer.",
            rich_help_panel=_PHASES,
        ),
    ] = 0.6,
    epsilon: Annotated[
        float, typer.Option(metavar="E", help="Size of the random step at tau.", rich_help_panel=_PHASES)
    ] = 1e-3,
    gate: Annotated[
        float, typer.Option(metavar="SLOPE", help="Slope of the logistic gates.", rich_help_panel=_PHASES)
    ] = 1.0,
    width: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="H",
            help="Units of the last hidden layer, where one has to be added.",
            show_default="that of the model",
            rich_help_panel=_PHASES,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="The layer to modify; give it twice for the last two.",
            show_default="the last two linear ones",
            rich_help_panel=_PHASES,
        ),
    ] = None,
    repair: Annotated[
        Repair, typer.Option(help="What to do where rank n of the gates is not proved.", rich_help_panel=_PHASES)
    ] = Repair.STAIRCASE,
    exploit_optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="newton, lbfgs, accelerated, gd (on all samples at once); sgd, momentum, adam.",
            show_default="that of exploration, its step lowered where it is not stable",
            rich_help_panel=_PHASES,
        ),
    ] = None,
    prove: Annotated[
        bool | None,
        typer.Option(
            "--prove/--no-prove",
            help="Prove the ranks at tau and the gap at the end.",
            show_default="the ranks for up to 6000 samples",
            rich_help_panel=_PHASES,
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="GAP", help="Largest optimality gap that holds.", rich_help_panel=_PHASES)
    ] = 0.01,
    optimizer: Annotated[
        Explorer, typer.Option(help="Optimiser of all layers.", rich_help_panel=_EXPLORATION)
    ] = Explorer.SGD,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="STEP", help="Its step size.", show_default="0.1; adam 0.001", rich_help_panel=_EXPLORATION
        ),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(metavar="M", help="Of sgd.", show_default="0.9", rich_help_panel=_EXPLORATION),
    ] = None,
    weight_decay: Annotated[float, typer.Option(metavar="D", rich_help_panel=_EXPLORATION)] = 0.0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Samples in a step.",
            show_default="all",
            rich_help_panel=_COMPUTATION,
        ),
    ] = None,
    flush_denormals: Annotated[
        bool,
        typer.Option(
            "--flush-denormals",
            help="Take subnormal numbers for zero while training: steep softplus layers are slow without.",
            rich_help_panel=_COMPUTATION,
        ),
    ] = False,
    device: options.Device = "cpu",
    dtype: Annotated[
        TrainedIn,
        typer.Option(help="Precision of the training; same keeps the model's own.", rich_help_panel=_COMPUTATION),
    ] = TrainedIn.SAME,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Train in two phases, the second of which reaches a global minimum (Algorithm 1), and prove how close it came.

    MODEL is Python code of yours, which is imported and run. Exploration trains all layers; exploitation the last
    hidden layer, a convex problem. The exit code is that of the optimality gap at the end.

    [bold]Examples[/bold]

      alignver train net.py:build --data t.npz --loss cross_entropy --epochs 100
      alignver train net.py:build --data t.npz --loss squared --epochs 50 --tau 0.6
      alignver train --resume run-1
    """
    named = {
        "loss": None if loss is None else loss.value,
        "epochs": epochs,
        "tau": tau,
        "epsilon": epsilon,
        "gate": gate,
        "width": width,
        "layer": layer or None,
        "repair": repair.value,
        "exploit_optimizer": exploit_optimizer,
        "prove": prove,
        "tolerance": tolerance,
        "optimizer": optimizer.value,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "flush_denormals": flush_denormals,
        "device": device,
        "dtype": dtype.value,
        "seed": seed,
    }
    given = {name for name in context.params if _given(context, name)}
    session = Session("train", json=json, quiet=quiet, verbose=verbose, device=device, dtype=dtype.value, seed=seed)

    def body() -> Exit:
        from alignver.cli.train_run import Request, conduct

        sources = {"model": model, "data": data, "weights": weights}
        return conduct(session, Request(sources, named, given, out, resume, checkpoint_every))

    return session.conduct(body)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
