"""Bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

LINE_SECONDS = 30.0  # between two lines on one piece of work, where there are no bars

Item = TypeVar("Item")


def has_terminal() -> bool:
    """True where bars are drawn: standard error is a terminal."""
    return sys.stderr.isatty()


def track(items: Iterable[Item], work: str, total: int, shown: bool) -> Iterator[Item]:
    """Iterate over items and show how far it is: a bar in a terminal, which goes when it is done; elsewhere lines.

    Args:
        items: the items.
        work: what is being done, such as "Extracting features".
        total: number of items.
        shown: show something at all.
    """
    if not shown:
        yield from items
        return
    if has_terminal():
        yield from tqdm(items, work, total, leave=False, dynamic_ncols=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > LINE_SECONDS:
            print(f"{work}: {done:,} of {total:,}", flush=True)
            last = time.monotonic()
        yield item
