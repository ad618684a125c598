"""The figures of the examples, for the gallery: what a script leaves in its variable ``figure``."""

from __future__ import annotations

from typing import Any


def scraper(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figure that a block has drawn, without pyplot, and return the text that shows it."""
    from sphinx_gallery.scrapers import figure_rst

    figure = block_vars["example_globals"].pop("figure", None)
    if figure is None:
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path)
    text: str = figure_rst([path], gallery_conf["src_dir"])
    return text
