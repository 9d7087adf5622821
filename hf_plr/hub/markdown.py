"""Foreign text in Markdown."""

from __future__ import annotations

import html
import re

LONGEST_TEXT = 200
JOINERS = "\u200c\u200d"  # without a width; Persian, Indic scripts and emoji need them
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # a "_" inside a word is not markup


def escape_markdown(value: object) -> str:
    """Escape a value for Markdown: one line of bounded length, without markup and HTML.

    Names of data sets, columns and models are untrusted text. A URL in them may still become a link to itself.
    """
    return html.escape(MARKUP.sub(r"\\\g<0>", as_one_line(value)), quote=False)


def as_one_line(value: object) -> str:
    """Convert a value to one line of printable characters, of bounded length, for metadata, which YAML quotes."""
    line = " ".join(str(value).split())
    line = "".join(c if c.isprintable() or c in JOINERS else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
