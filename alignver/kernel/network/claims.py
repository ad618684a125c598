"""The claims about a network's graph, as sentences."""

from __future__ import annotations

CLAIMS = {
    "common-structure": "this network is linear in its parameters S wherever it is defined: f = J nu (Assumption 1)",
    "no-structure": "this network has no S with f = J nu for all theta (Assumption 1)",
    "not-analytic": "this network is not real analytic in its parameters (Assumption 6)",
    "analytic": "this network is real analytic in its parameters (Assumption 6)",
    "network-alignment": "every y is in the column space of this network's Jacobian at theta and x (Definition 2)",
    "network-misalignment": "y is not in the column space of this network's Jacobian at theta and x (Definition 2)",
    "network-exploration": "phi(q) of this network's features at theta and x has rank {rank} for the gates q of this "
    "certificate (Assumption 4)",
    "network-optimality": "L(theta) - inf L <= {gap} for this network, x and Y: no function of a row of x has a "
    "training loss that is smaller by more",
    "network-suboptimality": "L(theta) - inf L > {gap} for this network, x and Y: its parameters can be changed for "
    "the better",
}
"""Each is about the graph in the certificate: for every input of its shapes, or at the given parameters and inputs."""
