"""Logical shards of a data set: which rows they have and how their files are named, by arithmetic alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
TEMPORARY = ".tmp"  # in the names of files that are being written


@dataclass(frozen=True)
class Shard:
    """One of `count` contiguous parts of the rows of a data set, whose sizes differ by one row at most.

    Attributes:
        number: number of the shard, 0 to count - 1.
        count: number of shards, at least 1.

    Example:
        >>> Shard.parse("1/3").rows(10)
        range(3, 6)
        >>> Shard.parse("1/3").name(".parquet")
        'shard-00001-of-00003.parquet'
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse "I/N", as in `--shard 0/16` to `--shard 15/16`.

        Raises:
            ValueError: if it has another form, or I is not below N.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"--shard {text}: write I/N, such as 0/16 for the first of 16 shards")
        number, count = map(int, match.groups())
        if number >= count:
            raise ValueError(
                f"--shard {text}: shards are counted from 0, so the last of {count} is {count - 1}/{count}"
            )
        return cls(number, count)

    def rows(self, n_rows: int) -> range:
        """Return the rows of this shard of `n_rows` rows; empty where there are more shards than rows."""
        return range(n_rows * self.number // self.count, n_rows * (self.number + 1) // self.count)

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """Select this shard's part of some items, such as files."""
        rows = self.rows(len(items))
        return items[rows.start : rows.stop]

    def name(self, ending: str) -> str:
        """Name this shard's file; files of all shards sort in the order of their rows."""
        return f"shard-{self.number:05d}-of-{self.count:05d}{ending}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def list_files(names: Iterable[str], endings: Sequence[str], content: str) -> list[str]:
    """List files in the order of their rows: files as they are given, and of folders the files by their names.

    Args:
        names: files and folders.
        endings: endings of the files that are taken of a folder, such as ".parquet".
        content: content of the files, for messages.

    Raises:
        FileNotFoundError: if a name is neither a file nor a folder.
        ValueError: if a folder has no such file, or the files of a folder are not all of the shards that their names
            tell of.
    """
    files: list[str] = []
    for name in names:
        if os.path.isdir(name):
            found = sorted(str(path) for path in Path(name).iterdir() if _is_whole(path) and path.suffix in endings)
            if not found:
                raise ValueError(f"the folder {name} has no {content} ({', '.join(endings)})")
            _check_complete(name, found)
            files += found
        elif os.path.isfile(name):
            files.append(name)
        else:
            raise FileNotFoundError(f"{name} does not exist")
    return files


def _is_whole(path: Path) -> bool:
    """False for a file that was left under its temporary name by a process that was killed."""
    return TEMPORARY not in path.name


def _check_complete(folder: str, files: list[str]) -> None:
    """Reject a folder of shards of which some are missing: a job of an array may have failed."""
    matches = [re.fullmatch(r"shard-(\d{5})-of-(\d{5})", Path(file).stem) for file in files]
    shards = [(int(match[1]), int(match[2])) for match in matches if match is not None]
    if not shards:
        return
    counts = sorted({count for _, count in shards})
    if len(counts) > 1 or len(shards) < len(files):
        raise ValueError(f"the folder {folder} holds files of more than one division into shards: {_shorten(files)}")
    missing = sorted(set(range(counts[0])) - {number for number, _ in shards})
    if missing:
        raise ValueError(f"the folder {folder} lacks {len(missing)} of {counts[0]} shards: {_shorten(missing)}")


def _shorten(items: Sequence[object]) -> str:
    names = [os.path.basename(str(item)) for item in items[:5]]
    return ", ".join(names) + (", ..." if len(items) > 5 else "")


def name_by_file(files: Sequence[str], folder: str, ending: str | None = None) -> list[str]:
    """Name one output per file in a folder: the file's name, with another ending where one is given.

    Raises:
        ValueError: if two files have the same name.
    """
    outputs = [str(Path(folder) / (Path(file).name if ending is None else Path(file).stem + ending)) for file in files]
    seen: dict[str, str] = {}
    for file, output in zip(files, outputs, strict=True):
        if output in seen:
            raise ValueError(f"{seen[output]} and {file} have the same name, so that both would be {output}")
        seen[output] = file
    return outputs
