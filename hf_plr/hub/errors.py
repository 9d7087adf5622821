"""What goes wrong at the Hub."""

from __future__ import annotations


class HubError(RuntimeError):
    """Error of a push to the Hub.

    Attributes:
        refused: True if the Hub or its client refused the push, False if the Hub failed or is unreachable.
    """

    def __init__(self, message: str, refused: bool = False):
        super().__init__(message)
        self.refused = refused
