"""What all readers of .csv files have in common: the character between fields, and words for what cannot be read."""

from __future__ import annotations

DELIMITERS = ",;\t"


def choose_delimiter(header: str) -> str:
    """Choose what separates the fields of a table: comma, semicolon or tab, which its first line has most of."""
    return max(DELIMITERS, key=header.count)


def describe_csv_error(error: Exception) -> str:
    """Describe why a table cannot be read, and what to do where it is in another encoding."""
    return "it is not in UTF-8: save it as UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
