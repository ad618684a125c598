"""The trusted part: what a certificate is, and whether it proves what it claims.

Nothing here produces a proof, and nothing outside has to be right for a proof that :func:`verify` accepts to be one.
``docs/trust.md`` says what has to be. Imports NumPy, the standard library, :mod:`alignver.errors` and
:mod:`alignver.results`; python-flint, where it is installed, multiplies integer matrices faster.
"""

from alignver.kernel.certificate import Certificate, load_certificate, seal
from alignver.kernel.verify import verify

__all__ = ["Certificate", "load_certificate", "seal", "verify"]
