"""One thread: see :mod:`tests.one_thread`."""

from tests.one_thread import one_thread

__all__ = ["one_thread"]
