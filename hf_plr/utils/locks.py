"""Locks of a run's folder, between processes of one machine, or of several where their file system has locks."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator

from filelock import FileLock, Timeout

RUN_LOCK = ".run.lock"  # held while a run writes
PEOPLE_LOCK = ".people.lock"  # held while a command reads, changes and writes what people said of the clusters


_claimed: dict[str, FileLock] = {}  # by real path; a lock is given back when it is collected


@atexit.register
def _release_all() -> None:
    for path in list(_claimed):
        release_folder(path)


def claim_folder(folder: str | os.PathLike[str]) -> None:
    """Take a folder that exists for a run of this process, until it ends or calls `release_folder`.

    Twice is as good as once. Nothing is claimed where the file system has no locks.

    Raises:
        ValueError: if a run of another process has it.
    """
    path = os.path.realpath(folder)
    if path in _claimed:
        return
    lock = FileLock(os.path.join(path, RUN_LOCK), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another run: wait for its end, or name another folder") from error
    except (OSError, NotImplementedError):
        return
    _claimed[path] = lock


def release_folder(folder: str | os.PathLike[str]) -> None:
    """Give a folder back, if this process has claimed it."""
    lock = _claimed.pop(os.path.realpath(folder), None)
    if lock is not None:
        _release(lock)


@contextlib.contextmanager
def people_write(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Let no other process change names and audits of a run meanwhile; waits for one that does."""
    lock = FileLock(os.path.join(folder, PEOPLE_LOCK))
    with contextlib.suppress(OSError, NotImplementedError):  # what is written there says why it cannot be
        if os.path.isdir(folder):
            lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            _release(lock)


def _release(lock: FileLock) -> None:
    """Release a lock without leaving its file; a process that has opened it already sees that it is gone."""
    with contextlib.suppress(OSError):  # Windows keeps files that are open
        os.unlink(lock.lock_file)
    lock.release(force=True)
