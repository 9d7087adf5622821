"""Blocks of rows shared out among threads: a core that others keep busy holds up one block, and not each operation.

torch splits every operation on the CPU among OpenMP's threads and waits for the last of them. Where another process has
one of their cores, that takes the scheduler's time slice, some ten milliseconds, for a sum of microseconds. Here each
thread computes its own blocks alone, and takes the next one when it is ready for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Block = TypeVar("Block")


class _Pool(threading.local):
    """The helpers of this thread; none outside `block_threads`."""

    executor: ThreadPoolExecutor | None = None
    n_helpers: int = 0


_pool = _Pool()


@contextlib.contextmanager
def block_threads(device: torch.device) -> Iterator[None]:
    """Run torch's operations on the CPU in one thread inside the context, and `share_blocks` in as many as torch had.

    Contexts may be nested. Threads start when blocks are shared out, and end with the outermost context.

    Args:
        device: device of the operations; on others than CPUs nothing changes.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)  # of this thread, and of those that start from now on
    try:
        with ThreadPoolExecutor(n_threads - 1) as executor:
            _pool.executor, _pool.n_helpers = executor, n_threads - 1
            yield
    finally:
        _pool.executor, _pool.n_helpers = None, 0
        torch.set_num_threads(n_threads)


def share_blocks(blocks: Iterable[Block], device: torch.device, work: Callable[[Iterator[Block]], None]) -> None:
    """Share out blocks among the threads that torch has for a CPU; on another device this thread takes them all.

    Args:
        blocks: what `work` takes, of any length and in any order.
        device: device of the work's operations.
        work: called once per thread with an iterator; it must be ready to run in several threads at once. All blocks
            together are given out once. Its first error is raised here, after the other threads' present blocks.
    """
    if device.type != "cpu":
        work(iter(blocks))
        return
    with block_threads(device):
        pending = deque(blocks)  # to take from it is atomic
        if _pool.executor is None or len(pending) < 2:
            work(_take(pending))
            return
        run = _with_modes(pending, work)
        n_helpers = min(_pool.n_helpers, len(pending) - 1)
        helpers: list[Future[None]] = [_pool.executor.submit(run) for _ in range(n_helpers)]
        try:
            run()
        finally:  # a helper that has not begun yet is not waited for
            errors = [helper.exception() for helper in helpers if not helper.cancel()]
        for error in errors:
            if error is not None:
                raise error


def _take(pending: deque[Block]) -> Iterator[Block]:
    while True:
        try:
            block = pending.popleft()
        except IndexError:
            return
        yield block


def _with_modes(pending: deque[Block], work: Callable[[Iterator[Block]], None]) -> Callable[[], None]:
    """Bind work to its blocks and to this thread's modes of autograd, which other threads do not inherit."""
    has_grad, is_inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run() -> None:
        try:
            with torch.inference_mode(is_inference), torch.set_grad_enabled(has_grad):
                work(_take(pending))
        except BaseException:
            pending.clear()  # the others stop, too
            raise

    return run
