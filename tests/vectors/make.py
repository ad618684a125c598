"""Write the test vectors: ``python -m tests.vectors.make``. The same bytes on every machine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.vectors import features, files, graphs, matrices

PLACE = Path(__file__).parent
DOCUMENTS = {module.__name__.rpartition(".")[2]: module.CASES for module in (files, matrices, features, graphs)}


def document(name: str) -> str:
    """Return the text of a document of vectors."""
    contents: dict[str, str] = {}
    vectors = [case.document(contents) for case in DOCUMENTS[name]]
    return json.dumps({"vectors": vectors, "files": contents}, indent=1) + "\n"


if __name__ == "__main__":
    for name in DOCUMENTS:
        (PLACE / f"{name}.json").write_text(document(name))
