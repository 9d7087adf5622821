"""Bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 30.0  # between two lines on one piece of work, where there are no bars

CONSOLE = Console(highlight=False)  # one, so that a bar within a bar is drawn below it
Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int, shown: bool) -> Iterator[Item]:
    """Go through items and show how far it is.

    In a terminal that is a bar, which goes when it is done; elsewhere a line every 30 seconds.

    Args:
        items: the items.
        what: what is being done, such as "Extracting features".
        total: number of items.
        shown: show something at all.
    """
    if not shown:
        yield from items
        return
    if CONSOLE.is_terminal:
        with bars() as shown_bars:
            yield from shown_bars.track(items, total=total, description=what)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > LINE_SECONDS:
            print(f"{what}: {done:,} of {total:,}", flush=True)
            last = time.monotonic()
        yield item


def bars() -> Progress:
    """Bars that are gone when they end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=CONSOLE,
        transient=True,
    )
