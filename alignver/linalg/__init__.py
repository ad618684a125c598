"""Numerical linear algebra on any array API namespace: decompositions, and what a tolerance makes of them.

Everything here takes validated float64 arrays (:mod:`alignver.arrays`) and decides nothing: the checks do.
"""
