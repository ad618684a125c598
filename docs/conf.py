"""Sphinx configuration: MyST pages, numpydoc docstrings, and the examples run while the site is built."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from alignver import __version__

sys.path.insert(0, str(pathlib.Path(__file__).parent))

project = "alignver"
author = "the alignver developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx-mathjax-offline",  # MathJax from the package itself: the site works without a network
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
napoleon_google_docstring = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = True
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # no network while building
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/.*\.py",
    "abort_on_example_error": True,
    "min_reported_time": 3600,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "write_computation_times": False,  # its page loads scripts from elsewhere
    "image_scrapers": ("gallery_figures.scraper",),
}

html_theme = "furo"
html_title = f"alignver {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build", "_generated", "results", "gallery/**/*.ipynb", "gallery/**/*.py", "gallery/**/*.json"]
suppress_warnings = ["config.cache"]  # sphinx-gallery's configuration holds a function


def _accessible(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let the keyboard reach code that scrolls, and give the captions of the contents a level (WCAG 2.2)."""
    context["body"] = context.get("body", "").replace("<pre>", '<pre tabindex="0">')
    captions = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = captions.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Any) -> None:
    """Generate the parts that come from committed results, from the commands and from code on the pages."""
    import architecture_pictures
    import codes_tables
    import command_line_tables
    import data_tables
    import performance_tables
    import report_pictures
    import reproduction_tables
    import screenshots
    import trust_tables

    app.connect("html-page-context", _accessible, priority=900)  # after the theme
    made = [architecture_pictures, codes_tables, command_line_tables, data_tables, performance_tables]
    for page in (*made, report_pictures, reproduction_tables, screenshots, trust_tables):
        app.connect("builder-inited", page.write)
