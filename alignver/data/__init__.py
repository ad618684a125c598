"""Loaders: arrays with a content hash, their source and their licence."""

from alignver.data.archives import Dataset
from alignver.data.small_sets import semeion, sine_wave, two_moons

__all__ = ["Dataset", "semeion", "sine_wave", "two_moons"]
