"""Standard output and standard error."""

from __future__ import annotations

import sys


def escape_what_streams_lack() -> None:
    """Let standard output and error show characters that their encoding lacks as escapes, in place of an exception.

    Names of files and clusters may have any characters, and the terminal of a Western Windows has 256.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # streams that others put there may lack it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
