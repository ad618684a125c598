"""Are these rows the ones that a certificate is about? A pass over them, which the other re-checks ride on."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from alignver.phi.rows import Rows
from alignver.proof.certificate import Certificate
from alignver.proof.recheck.failure import NotProved

__all__ = ["identify"]


def identify(certificate: Certificate, rows: Rows, visit: Callable[[int, Any], None]) -> None:
    """Pass over the rows once, ``visit`` each block, and require finite entries, the constant and the sealed digest."""
    content = hashlib.sha256(f"<f8 {(rows.n, rows.stored)}".encode())
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        waiting = None
        for start, block in rows.blocks("reading Z"):
            bare = np.ascontiguousarray(block[:, : rows.stored])
            if waiting is not None:
                waiting.result()
            waiting = beside.submit(content.update, bare.data.cast("B"))
            if not bool(np.all(np.isfinite(block))) or not bool(np.all(block[:, -1] == 1.0)):
                raise NotProved(f"rows from {start} on are not finite, or their last entry is not 1")
            visit(start, block)
        if waiting is not None:
            waiting.result()
    record = {"sha256": content.hexdigest(), "shape": (rows.n, rows.stored), "dtype": "<f8"}
    if dict(certificate.inputs.get("Z", {})) != record or certificate.constants["rank"] != rows.n:
        raise NotProved("Z is not the input that this certificate is about: their digests differ")
