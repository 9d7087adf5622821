"""Archives: unpacked once into the cache of `datasets`, and read in place where a data set names files in them."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import IO, Any

import datasets.config
import fsspec
from datasets.utils.extract import Extractor
from datasets.utils.file_utils import xopen
from filelock import FileLock

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OTHER_ARCHIVES = (".rar", ".7z", ".zst", ".lz4")


def archive_stem(name: str) -> str | None:
    """The name without the ending of an archive, such as "images" of "images.tar.gz"; None for other files."""
    lowered = name.lower()
    endings = [suffix for suffix in ARCHIVE_SUFFIXES if lowered.endswith(suffix)]
    return name[: -max(map(len, endings))] if endings else None


def unpack(path: str) -> str:
    """Unpack an archive into the cache of `datasets`, where it stays; returns the folder.

    An archive that was unpacked before is not unpacked again, unless it has changed since; several processes may ask
    for the same one.

    Raises:
        ValueError: if it cannot be unpacked.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be unpacked: {error.strerror}") from error
    key = hashlib.sha256(f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:24]
    folder = Path(datasets.config.EXTRACTED_DATASETS_PATH) / f"hf_plr-{key}"
    done = folder.with_suffix(".done")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".unpacking")):
        if done.exists():
            return str(folder)
        form = Extractor.infer_extractor_format(path)
        if form is None:
            raise ValueError(f"{path} is not an archive, or a damaged one: unpack it, or fetch it again")
        try:
            Extractor.extract(path, folder, form)
        except Exception as error:  # each kind of archive has errors of its own
            raise ValueError(f"{path} cannot be unpacked: {error}") from error
        done.touch()
    return str(folder)


def open_binary(path: str) -> IO[bytes]:
    """Open a file of this machine, in an archive ("zip://a/1.jpg::/data/images.zip"), or elsewhere."""
    if "://" not in path:
        return open(path, "rb")
    inner, *outer = path.split("::")
    protocol, _, member = inner.partition("://")
    if protocol in ("zip", "tar") and len(outer) == 1:
        file: IO[bytes] = _open_archive(protocol, outer[0], os.getpid(), _when_changed(outer[0])).open(member, "rb")
        return file
    opened: IO[bytes] = xopen(path, "rb")
    return opened


def _when_changed(path: str) -> int | None:
    """Time of change of a file of this machine in ns; None for others."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


@functools.lru_cache(maxsize=4)
def _open_archive(protocol: str, path: str, process: int, changed: int | None) -> Any:
    """The files of an archive; kept open until it changes, since each opening reads the list of all of them.

    Each process has its own: those that were forked would share one position in the file.
    """
    return fsspec.filesystem(protocol, fo=path, skip_instance_cache=True)
