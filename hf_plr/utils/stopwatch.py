"""Seconds that parts of some work take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Adds up the time of named parts of some work, and of all of it from its creation on.

    ```python
    clock = Stopwatch()
    with clock("cluster"):
        ...
    clock.seconds()  # {"seconds_cluster": ..., "seconds": ...}
    ```
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what is inside; a part that comes again is added up."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Seconds of each part as "seconds_<part>", and of all the work as "seconds"."""
        parts = {f"seconds_{part}": spent for part, spent in self._parts.items()}
        return {**parts, "seconds": time.perf_counter() - self._started}
