"""Producers of proofs about matrices; :mod:`alignver.kernel` checks the certificates that they write."""

from alignver.kernel import Certificate, load_certificate
from alignver.proof.decision import Ball, Decision
from alignver.proof.prove import prove_membership, prove_rank

__all__ = ["Ball", "Certificate", "Decision", "load_certificate", "prove_membership", "prove_rank"]
