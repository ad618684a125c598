"""Jacobians of torch models: whole, by blocks, as operators, and through the Gram matrix M = J J^T.

Nothing is imported here but torch itself, so that a missing torch is named once, with the remedy; take what you need
from the submodules, or from ``alignver``.
"""

from alignver.errors import MissingDependency

try:
    import torch as _torch  # noqa: F401 - only whether it is there
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependency("torch", "checking a model", "torch") from error
