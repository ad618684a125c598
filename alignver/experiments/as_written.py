"""Algorithm 1 at its word: the wrapper without what the library adds to keep it from diverging."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from alignver.training.guarantee import Guarantee
from alignver.training.wrapper import EEWrapper

__all__ = ["enter", "quietly"]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Leave out warnings that a step may diverge or nothing is proved: an experiment measures what becomes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def enter(wrapper: EEWrapper, X: Any, Y: Any, *, rate: float | None, **options: Any) -> Guarantee:
    """Go over to exploitation, with the step that the paper has there whatever Lhat is.

    Parameters
    ----------
    wrapper : EEWrapper
    X, Y, **options
        Of :meth:`EEWrapper.enter_exploitation`.
    rate : float or None
        The step; None for the wrapper's choice.
    """
    with quietly():
        found = wrapper.enter_exploitation(X, Y, **options)
    if rate is not None:
        for group in wrapper.optimizer.param_groups:
            group["lr"] = rate
    return found
