"""The feature matrix phi: products and Gram matrix without forming it, the staircase witness, tiled Cholesky."""

from alignver.phi.certify import gates_of
from alignver.phi.dense import dense_phi
from alignver.phi.hadamard import gram
from alignver.phi.operator import Phi

__all__ = ["Phi", "dense_phi", "gates_of", "gram"]
