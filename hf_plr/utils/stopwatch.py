"""Seconds that parts of the work take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Stopwatch of named parts of the work, and of the whole work since its creation.

    ```python
    clock = Stopwatch()
    with clock("cluster"):
        ...
    clock.seconds()  # {"seconds_cluster": ..., "seconds": ...}
    ```
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the context as one part; repeated parts add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds of each part as "seconds_<part>", and of all the work as "seconds"."""
        parts = {f"seconds_{part}": elapsed for part, elapsed in self._parts.items()}
        return {**parts, "seconds": time.perf_counter() - self._start}
