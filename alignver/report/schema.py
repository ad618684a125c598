"""The JSON schema (draft 2020-12) of the document that ``--json`` and :meth:`Report.to_json` write."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

from alignver.results import SCHEMA_VERSION

__all__ = ["load"]


def load(version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """Return the schema of a version as a fresh dict: the current one, or 1, which is still read.

    Examples
    --------
    >>> load()["properties"]["schema"]
    {'description': 'Version of this document.', 'const': 2}
    """
    name = "schema.json" if version == SCHEMA_VERSION else f"schema_{version}.json"
    text = importlib.resources.files("alignver.report").joinpath(name).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
