"""Training in two phases around any torch model: the wrapper of Algorithm 1, and what is proved at the end.

This package imports only torch, so that a missing torch is reported once, with the remedy. Its names are imported from
the submodules, or from ``alignver``.
"""

from alignver.errors import MissingDependency

try:
    import torch as _torch  # noqa: F401 - only whether it is there
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependency("torch", "training a model", "torch") from error
