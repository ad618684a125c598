"""Loaders of data sets: arrays with a content hash, their source and their licence."""

from alignver.data.archives import Dataset
from alignver.data.image_sets import cifar10, cifar100, kmnist, mnist, svhn
from alignver.data.small_sets import semeion, sine_wave, two_moons

__all__ = ["Dataset", "cifar10", "cifar100", "kmnist", "mnist", "semeion", "sine_wave", "svhn", "two_moons"]
