"""For the tests of your own project: assertions with the whole report, and hypothesis strategies with known answers.

    >>> from alignver.testing import assert_full_rank
    >>> assert_full_rank([[2.0, 1.0], [1.0, 2.0]]).rigor
    <Rigor.PROOF: 'PROOF'>

The strategies are in :mod:`alignver.testing.strategies`; only they need hypothesis.
"""

from alignver.testing.assertions import assert_aligned, assert_full_rank, assert_safely_explored

__all__ = ["assert_aligned", "assert_full_rank", "assert_safely_explored"]
