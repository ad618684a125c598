"""Loaders: arrays with a content hash, their source and their licence."""

from alignver.data.dataset import Dataset
from alignver.data.digits import semeion
from alignver.data.synthetic import sine_wave, two_moons

__all__ = ["Dataset", "semeion", "sine_wave", "two_moons"]
