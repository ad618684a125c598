"""One browser for all pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.report.browser import CHROMIUM, Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    opened = Browser()
    yield opened
    opened.close()
