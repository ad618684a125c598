"""The one way in which a re-check says no."""

from __future__ import annotations

__all__ = ["NotProved"]


class NotProved(Exception):
    """The certificate does not prove its claim; the message says why."""
