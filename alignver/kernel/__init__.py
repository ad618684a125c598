"""The trusted part: the format of certificates, and the check that a certificate proves its claim.

The kernel produces no proofs, and a proof that :func:`verify` accepts does not depend on the correctness of any other
code. ``docs/trust.md`` lists the assumptions. The kernel imports NumPy, the standard library, :mod:`alignver.errors`
and :mod:`alignver.results`; python-flint, if installed, multiplies integer matrices faster.
"""

from alignver.kernel.certificate import Certificate, load_certificate, seal
from alignver.kernel.verify import verify

__all__ = ["Certificate", "load_certificate", "seal", "verify"]
