"""Torch models: from a module and its data to arrays, without a change to the module.

Import names from the submodules, or from ``alignver``. This file imports torch only, to report a missing torch with the
remedy.
"""

from alignver.errors import MissingDependency

try:
    import torch as _torch  # noqa: F401 - only to test that it is installed
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependency("torch", "checking a model", "torch") from error
