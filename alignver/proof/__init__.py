"""The trusted kernel: verdicts with proof, certificates, and an independent re-check."""

from alignver.proof.ball import Ball
from alignver.proof.certificate import Certificate
from alignver.proof.decision import Decision
from alignver.proof.ladder import prove_membership, prove_rank
from alignver.proof.recheck import recheck
from alignver.proof.storage import load_certificate

__all__ = ["Ball", "Certificate", "Decision", "load_certificate", "prove_membership", "prove_rank", "recheck"]
