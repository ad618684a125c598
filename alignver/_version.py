"""The version, in one place: read by the package, the build and every provenance record."""

__version__ = "0.2.0"
