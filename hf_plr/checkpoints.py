"""Checkpoints that are whole or recognised as torn: written aside, listed, and renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

ASIDE = "_unfinished"  # names that begin with _ are not pushed to the Hub
FILE_LIST = "plr_files.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or there is none to go on from."""


def seal(checkpoint: Path) -> None:
    """Get all files of a checkpoint onto the disk, and last of all a list of them and their sizes."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    listed = checkpoint / FILE_LIST
    listed.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    for path in (*files, listed, checkpoint):
        _flush(path)


def put_in_place(written: Path, checkpoint: Path) -> None:
    """Rename a sealed checkpoint to where it is looked for; one of the same name goes."""
    old = written.with_name(f"{written.name}-old")
    if checkpoint.exists():
        checkpoint.rename(old)
    written.rename(checkpoint)
    _flush(checkpoint.parent)
    shutil.rmtree(old, ignore_errors=True)


def flaw(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if all its files are there in full."""
    try:
        sizes = json.loads((checkpoint / FILE_LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {FILE_LIST}, which is written last"
    except (OSError, ValueError) as error:
        return f"its {FILE_LIST} cannot be read ({error})"
    if not isinstance(sizes, dict):
        return f"its {FILE_LIST} is no list of files"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def checkpoints_in(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run, whole or torn, last one first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [
        path
        for path in Path(output_dir).glob(f"{prefix}*")
        if path.is_dir() and path.name.removeprefix(prefix).isdecimal()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)), reverse=True)


def last_whole(output_dir: str | os.PathLike[str]) -> tuple[Path | None, dict[Path, str]]:
    """The last whole checkpoint of a run, and the torn ones after it with their flaws."""
    torn: dict[Path, str] = {}
    for checkpoint in checkpoints_in(output_dir):
        found = flaw(checkpoint)
        if found is None:
            return checkpoint, torn
        torn[checkpoint] = found
    return None, torn


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
