"""Numbers with their nouns, for messages."""

from __future__ import annotations


def count_noun(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number and what it counts: `1 cluster`, `1,200 clusters`; the plural is the noun with an s by default."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
