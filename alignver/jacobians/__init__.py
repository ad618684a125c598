"""Jacobians of torch models: whole, by blocks, as operators, and through the Gram matrix M = J J^T.

Import names from the submodules, or from ``alignver``.
"""

import alignver.network  # noqa: F401 - raises MissingDependency without torch
