"""The JSON schema (draft 2020-12) of the document that ``--json`` and :meth:`Report.to_json` write."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

__all__ = ["load"]


def load() -> dict[str, Any]:
    """Return the schema of the current version as a fresh dict.

    Examples
    --------
    >>> load()["properties"]["schema"]
    {'description': 'Version of this document.', 'const': 1}
    """
    text = importlib.resources.files("alignver.report").joinpath("schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
