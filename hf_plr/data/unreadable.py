"""The error of a sample that cannot be decoded."""

from __future__ import annotations


class UnreadableSample(ValueError):
    """A sample that cannot be decoded.

    An error that a worker process has met is raised again by torch, in its class, with a message that holds the whole
    traceback. Of such a message the error's own is taken.

    Args:
        message: what cannot be decoded, and why.
    """

    def __init__(self, message: str):
        raised_as = f"\n{type(self).__module__}.{type(self).__qualname__}: "
        if message.startswith("Caught ") and raised_as in message:
            message = message.rpartition(raised_as)[2].rstrip("\n")
        super().__init__(message)
