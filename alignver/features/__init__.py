"""The feature matrix phi: products and Gram matrix without forming it, the staircase witness, tiled Cholesky."""

from alignver.features.products import Phi, dense_phi, gram
from alignver.features.staircase import gates_of

__all__ = ["Phi", "dense_phi", "gates_of", "gram"]
