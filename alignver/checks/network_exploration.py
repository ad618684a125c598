"""The features of a model for safe exploration: those of the network itself, enclosed, and those that are computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from alignver.errors import InvalidInput
from alignver.kernel import Certificate
from alignver.kernel.failure import NotProved, Unsupported
from alignver.network.enclosed_features import EnclosedFeatures, enclose_features, model_inputs
from alignver.network.feature_extraction import extract_features
from alignver.results import CheckResult, Rigor, Subject, shown_up

__all__ = ["ModelFeatures"]


@dataclasses.dataclass(frozen=True)
class ModelFeatures:
    """A layer of a model at its inputs.

    Attributes
    ----------
    model : torch.nn.Module
    x : tensor
        The n inputs.
    layer : str or None
    batch_size : int
    m : int
        The number of features, with the constant.
    """

    model: Any
    x: torch.Tensor
    layer: str | None
    batch_size: int
    m: int

    @classmethod
    def of(cls, model: Any, X: Any, layer: str | None, batch_size: int) -> ModelFeatures:
        """Read the inputs, and pass two of them through the model, which refuses a wrong layer."""
        if X is None:
            raise InvalidInput("X", "no inputs", "the inputs of the model", "wrong-type")
        x = model_inputs(model, X)
        m = extract_features(model, x[:2], layer, batch_size=batch_size).shape[1] + 1
        return cls(model, x, layer, batch_size, m)

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.x)

    def computed(self) -> Any:
        """Return the features (n, m - 1) as the module computes them."""
        return extract_features(self.model, self.x, self.layer, batch_size=self.batch_size)

    def enclosed(self, folder: Any) -> EnclosedFeatures | str:
        """Return the features in real arithmetic with proved errors, or why there are none."""
        try:
            return enclose_features(self.model, self.x, self.layer, folder=folder)
        except (NotProved, Unsupported) as error:
            return str(error)
        except InvalidInput as error:
            if error.argument == "folder":
                raise
            return error.got

    def about_the_network(self, result: CheckResult, enclosed: EnclosedFeatures) -> CheckResult:
        """Return a result about the network from one about every Z within the proved errors of its features."""
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
        evidence += result.evidence
        x = self.x.detach().cpu().double().numpy()
        if not np.array_equal(enclosed.network.x.reshape(x.shape), x):
            dtype = next(self.model.parameters()).dtype
            evidence.append(f"the inputs are rounded to the dtype of the parameters, {dtype}")
        network = {"delta": enclosed.delta, "apart": enclosed.apart, "seconds": enclosed.seconds}
        return dataclasses.replace(
            result,
            rigor=Rigor.NUMERICAL if enclosed.resumed else result.rigor,
            subject=Subject.NETWORK,
            code="exploration-network",
            evidence=tuple(evidence),
            measured={**result.measured, "network": network},
            certificate=enclosed.certificate(result.certificate),
        )
