"""Files that are whole, or as they were before."""

from __future__ import annotations

import contextlib
import os
import unicodedata
import uuid
from collections.abc import Iterator
from pathlib import Path

from hf_plr.utils.shards import TEMPORARY

FILE_ENDINGS = (".npy", ".npz", ".csv", ".tsv", ".parquet", ".json", ".txt", ".safetensors")  # that no folder has


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside a file to write to; at the end of the context it takes the file's place.

    Each context has a path of its own, so that of several processes that write one file, the last one's is there as a
    whole. After an error the file is as it was before. A process that is killed leaves a file whose name ends in .tmp.

    Args:
        path: the file, in a folder that exists.

    Raises:
        OSError: if the file cannot be replaced.
    """
    check_parent(path)
    # Processes of several machines, which may share the folder, can have the same number.
    temporary = Path(f"{os.fspath(path)}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
    try:
        mode = _make_empty(temporary)
        yield temporary
        _set_mode(temporary, mode)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_parent(path: str | os.PathLike[str]) -> None:
    """Check that the folder of a file is there.

    Raises:
        FileNotFoundError: naming the file.
    """
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {os.fspath(path)} does not exist")


def give_usual_mode(directory: str | os.PathLike[str]) -> None:
    """Give the safetensors files of a folder the mode that new files get there, as the umask tells.

    The library writes them readable by their owner alone, whoever may read what lies beside them.

    Args:
        directory: the folder, in which a file can be made.

    Raises:
        OSError: if none can be made.
    """
    probe = Path(directory, f"{uuid.uuid4().hex[:12]}{TEMPORARY}")
    try:
        mode = _make_empty(probe)
    finally:
        probe.unlink(missing_ok=True)
    for path in Path(directory).glob("*.safetensors"):
        _set_mode(path, mode)


def _make_empty(path: Path) -> int:
    """Make an empty file, and return its mode."""
    path.touch(exist_ok=False)
    return path.stat().st_mode


def _set_mode(path: Path, mode: int) -> None:
    """Set a file's mode; a file system that has none, or a file of somebody else, keeps its own."""
    with contextlib.suppress(OSError):
        if path.stat().st_mode != mode:
            path.chmod(mode & 0o777)


def compose_accents(path: str) -> str:
    """Write each letter with its accent as one character, as most tables do; a disk may have them as two."""
    return unicodedata.normalize("NFC", path)


def check_folder(path: str, content: str) -> None:
    """Check the value of --output where a folder is meant.

    Args:
        path: the value.
        content: what is written there, for messages.

    Raises:
        ValueError: if it is a file, or would be a folder that is named like one.
    """
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise ValueError(f"--output {path} is a file: name a folder for {content}")
    ending = Path(path).suffix.lower()
    if ending in FILE_ENDINGS:
        raise ValueError(f"--output {path} is named like a file, but {content} go into a folder: leave out {ending}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as a whole.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refuse_file(directory: str | os.PathLike[str]) -> None:
    """Refuse a file where labels need a folder.

    Raises:
        FileExistsError: naming it.
    """
    if os.path.isfile(directory):
        raise FileExistsError(f"{os.fspath(directory)} is a file: name a folder for the labels")
