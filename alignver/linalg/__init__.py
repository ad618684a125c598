"""Numerical linear algebra on any array API namespace: decompositions, least squares, norms and rank rules.

The functions take validated float64 arrays (:mod:`alignver.arrays`). They return numbers; the checks turn these into
verdicts.
"""
