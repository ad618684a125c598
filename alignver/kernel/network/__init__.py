"""The graph of a network in a certificate, and the proofs of Assumptions 1 and 6 that are read off it.

``docs/trust.md`` says what ties a graph to a module. Nothing here runs a network or knows torch.
"""
