"""Bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

LINE_SECONDS = 30.0  # between two lines, where bars are not drawn

Item = TypeVar("Item")


def has_terminal() -> bool:
    """True where bars are drawn: standard error is a terminal."""
    return sys.stderr.isatty()


def track(items: Iterable[Item], work: str, total: int, is_shown: bool) -> Iterator[Item]:
    """Iterate over items and show progress: a bar in a terminal, which disappears at the end, elsewhere lines.

    Args:
        items: the items.
        work: name of the work, such as "Extracting features".
        total: number of items.
        is_shown: False to show nothing.
    """
    if not is_shown:
        yield from items
        return
    if has_terminal():
        yield from tqdm(items, work, total, leave=False, dynamic_ncols=True)
        return
    last_line = time.monotonic()
    for n_done, item in enumerate(items):
        if time.monotonic() - last_line > LINE_SECONDS:
            print(f"{work}: {n_done:,} of {total:,}", flush=True)
            last_line = time.monotonic()
        yield item


def describe_time(seconds: float) -> str:
    """A duration for a person, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
