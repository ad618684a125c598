"""What :mod:`tests.mutants` changes besides comparisons, and what may go unnoticed because it is harmless."""

from __future__ import annotations

from tests.mutants import Mutant
from tests.mutations_kernel import HARMLESS_COMPARISONS, KERNEL
from tests.mutations_normwise import NORMWISE
from tests.mutations_producers import PRODUCERS

__all__ = ["HARMLESS_COMPARISONS", "MUTATIONS"]

MUTATIONS: list[Mutant] = [*KERNEL, *NORMWISE, *PRODUCERS]
