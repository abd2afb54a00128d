"""The errors that derive from one of pickle's. `pyrocache.errors` exports them and imports this module on first use.

A node never uses them, and so does not import pickle.

Thread safety: there are only classes.
"""

from __future__ import annotations

from pickle import PickleError

from pyrocache.errors import PyroCacheError


class SerializationError(PyroCacheError, PickleError, ValueError):
    """A value that does not pickle, or does not unpickle here."""

    __module__ = "pyrocache.errors"


class CorruptValue(SerializationError):
    """Stored bytes that are not a value frame known here."""

    __module__ = "pyrocache.errors"


class TamperedValue(SerializationError):
    """A stored value or key that this client's signing key did not sign for this place; nothing of it was decoded."""

    __module__ = "pyrocache.errors"
