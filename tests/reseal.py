"""Certificates that somebody changed and sealed again, as anyone can."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from alignver.kernel import Certificate
from alignver.results import Frozen


def resealed(certificate: Certificate, data: Mapping[str, Any] | None = None, **constants: Any) -> Certificate:
    """Return the certificate with some content changed and a seal that fits."""
    changed = dataclasses.replace(
        certificate,
        data=Frozen({**certificate.data, **(data or {})}),
        constants=Frozen({**certificate.constants, **constants}),
    )
    return dataclasses.replace(changed, seal=changed.expected_seal())
