"""Safe exploration of a model: of the network itself, or of the features that its module computes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from alignver.checks.exploration import check_safe_exploration, equal_inputs
from alignver.errors import InvalidInput
from alignver.kernel import Certificate
from alignver.kernel.failure import NotProved, Unsupported
from alignver.network.enclosed_features import EnclosedFeatures, enclose_features, model_inputs
from alignver.network.feature_extraction import extract_features
from alignver.results import CheckResult, Rigor, Subject, Verdict, shown_up

__all__ = ["check_features"]


def check_features(
    model: Any, X: Any, layer: str | None, batch_size: int, folder: Any, options: dict[str, Any]
) -> CheckResult:
    """Check the features of a model: the exact ones if they can be enclosed, else those that the module computes.

    The arguments are those of :func:`~alignver.checks.exploration.check_safe_exploration`; ``options`` are the others.
    """
    if X is None:
        raise InvalidInput("X", "no inputs", "the inputs of the model", "wrong-type")
    x = model_inputs(model, X)
    # A wrong layer is refused before anything is decided.
    m = extract_features(model, x[:2], layer, batch_size=batch_size).shape[1] + 1
    refuted = equal_inputs(X)
    if refuted is not None:
        return refuted
    reason = _why_not(options)
    width = options["width"]
    refutable = isinstance(width, int) and width * m < len(x)  # for the exact features as for all others
    if not reason and not refutable:
        try:
            enclosed = enclose_features(model, x, layer, folder=folder)
        except (NotProved, Unsupported) as error:
            reason = str(error)
        except InvalidInput as error:
            if error.argument == "folder":
                raise
            reason = error.got
        else:
            proved = check_safe_exploration(enclosed.Z, add_constant=True, **{**options, "delta": enclosed.delta})
            if proved.verdict is Verdict.HOLDS and isinstance(proved.certificate, Certificate):
                result = _about_the_network(proved, enclosed)
                rounded = not np.array_equal(enclosed.network.x.reshape(x.shape), x.detach().cpu().double().numpy())
                note = f"the inputs are rounded to the dtype of the parameters, {next(model.parameters()).dtype}"
                return dataclasses.replace(result, evidence=(*result.evidence, note)) if rounded else result
            reason = f"its features are proved within {shown_up(enclosed.delta)} only ({proved.reason})"
    folder = folder if options["method"] == "gram" or options["q"] is not None else None
    features = extract_features(model, x, layer, batch_size=batch_size)
    result = check_safe_exploration(features, add_constant=True, folder=folder, **options)
    if refutable:
        return result
    return dataclasses.replace(result, evidence=(f"nothing is proved of the network: {reason}", *result.evidence))


def _why_not(options: dict[str, Any]) -> str:
    """Return why the features of a model are not enclosed; empty if they are."""
    if options["q"] is not None or options["method"] in ("gram", "dense"):
        return "the errors of its features are proved for the staircase only"
    if options["delta"] is not None:
        return "delta was given"
    return "" if options["certify"] else "no certificate was requested"


def _about_the_network(result: CheckResult, enclosed: EnclosedFeatures) -> CheckResult:
    """Return a result about a network from one about every Z within the proved errors of its features."""
    assert isinstance(result.certificate, Certificate)
    evidence = [
        f"in real arithmetic: each row of the features is proved within {shown_up(enclosed.delta)}, by norm-wise "
        "enclosures in float64",
        f"the features of the module, as computed, are up to {shown_up(enclosed.apart)} away (the first rows)",
    ]
    if enclosed.resumed:
        evidence.append(
            f"{enclosed.resumed} of its batches from the folder: no proof until the certificate is verified"
        )
    network = {"delta": enclosed.delta, "apart": enclosed.apart, "seconds": enclosed.seconds}
    return dataclasses.replace(
        result,
        rigor=Rigor.NUMERICAL if enclosed.resumed else result.rigor,
        subject=Subject.NETWORK,
        code="exploration-network",
        evidence=(*evidence, *result.evidence),
        measured={**result.measured, "network": network},
        certificate=enclosed.certificate(result.certificate),
    )
