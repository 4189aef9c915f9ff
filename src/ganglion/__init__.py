"""Ganglion: a lightweight message broker and event mesh.

This module holds only what every part of the package and every program that uses it shares: the
version and the base of all errors. It imports nothing, so that a client pays for nothing else.
"""

__all__ = ["GanglionError", "__version__"]

__version__ = "0.1.0"


class GanglionError(Exception):
    """The base of every error that Ganglion raises on purpose."""
