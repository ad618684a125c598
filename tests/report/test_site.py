"""The documentation in a real browser, at the width of a phone and of a screen, in light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.browser import AXE, CONTRAST, LEAST_CONTRAST

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
LEFT_OUT = {"_static", "_sources", "_downloads", "_modules"}
PAGES = sorted(page for page in SITE.rglob("*.html") if not LEFT_OUT & set(page.relative_to(SITE).parts))
SCREENS = pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
pytestmark = pytest.mark.skipif(not PAGES, reason="no site here: make docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(SITE)))
def test_a_page_is_whole_and_can_be_read(browser, page):
    for width, dark in ((390, False), (1280, True)):
        browser.open(page, width=width, dark=dark)
        assert browser.value(f"{FORMULAS} === 0")
        assert browser.said() == []
        assert [address for address in browser.requests() if not address.startswith(SITE.as_uri())] == []
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value(CONTRAST) >= LEAST_CONTRAST


# Formulas that MathJax has left as text, or could not read.
FORMULAS = "document.querySelectorAll('.math:not(:has(mjx-container)), mjx-merror').length"


@SCREENS
def test_the_first_page_in_every_scheme(browser, width, dark):
    browser.open(SITE / "index.html", width=width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(CONTRAST) >= LEAST_CONTRAST
    assert browser.value("document.querySelector('h1').getBoundingClientRect().top") < 300


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core here: npm install --no-save axe-core@4")
@pytest.mark.parametrize("name", ["index.html", "quickstart.html", "theory.html", "reports.html", "gallery/index.html"])
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_nothing_is_against_wcag(browser, name, width, dark):
    browser.open(SITE / name, width=width, dark=dark)
    assert browser.violations() == []
