"""The feature matrix phi: products and Gram matrix without forming it, the staircase witness, tiled Cholesky."""
