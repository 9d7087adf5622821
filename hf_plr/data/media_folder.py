"""A folder of images or recordings as a data set: everything in it is taken, or counted with the reason why not."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image
from datasets.features.features import generate_from_arrow_type
from datasets.table import InMemoryTable

from hf_plr.data.archives import OTHER_ARCHIVES, archive_stem, unpack
from hf_plr.data.media_kinds import Kind, Media, identify
from hf_plr.data.metadata_files import METADATA_NAMES, TABLE_SUFFIXES, Metadata, read_metadata

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
UNLABELLED_WORDS = ("unlabeled", "unlabelled")
PLURALS: dict[Kind, str] = {"image": "images", "audio": "recordings", "video": "videos"}
MAX_TABLES, MAX_TABLE_BYTES = 20, 2**28  # of tables other than metadata.csv that may name files


class MediaFile(NamedTuple):
    """A file with an image, a recording or a video.

    Attributes:
        path: where it is.
        name: its name below the folder, with "/"; that of an archive, without its ending, stands for a folder.
        media: what it holds.
        stamp: its size and time of change.
    """

    path: str
    name: str
    media: Media
    stamp: str


@dataclass
class FolderContents:
    """What lies in a folder.

    Attributes:
        files: media files, by name.
        tables: path of each table, by name below the folder.
        broken_links: links to nothing.
        packed: archives that are not unpacked.
    """

    files: list[MediaFile] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    broken_links: int = 0
    packed: int = 0

    def count(self, kind: Kind) -> int:
        """Files of a kind that can be read, as far as can be told without decoding them."""
        return sum(file.media == Media(kind) for file in self.files)


def list_folder(folder: str) -> FolderContents:
    """List images, recordings, videos and tables below a folder, also in linked folders and in archives.

    Hidden files and what systems leave behind (names that begin with "." or "__") are passed over.

    Raises:
        ValueError: if an archive cannot be unpacked.
    """
    contents = FolderContents()
    for path, name in _walk(folder, "", (), contents):
        lowered = name.lower()
        contents.packed += lowered.endswith(OTHER_ARCHIVES)
        if lowered.endswith(TABLE_SUFFIXES):
            contents.tables[name] = path
        media = identify(path)
        if media is not None:
            status = os.stat(path)
            contents.files.append(MediaFile(path, name, media, f"{status.st_size}|{status.st_mtime_ns}"))
    contents.files.sort(key=lambda file: file.name)
    return contents


def _walk(folder: str, prefix: str, above: tuple[str, ...], contents: FolderContents) -> Iterator[tuple[str, str]]:
    """Path, and name below the first folder, of every file; a linked folder that holds itself is entered once."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith((".", "__")):
            continue
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _walk(entry.path, f"{name}/", (*above, real), contents)
        elif not entry.is_file():
            contents.broken_links += entry.is_symlink()
        elif (stem := archive_stem(entry.name)) is not None:
            yield from _walk(unpack(entry.path), f"{prefix}{stem}/", (*above, real), contents)
        else:
            yield entry.path, name


class MediaFolder:
    """Splits, classes and columns of the images or recordings of a folder, or of an archive.

    Top-level folders named train, test, validation and so on are splits if one of them is train, or if there are no
    others. Folders within splits, or in place of them, are classes. A folder "unlabeled" beside the folder "train" is
    trained on as well. Tables that name files give them further columns.

    Args:
        contents: what lies in the folder.
        kind: which of its files to take, "image" or "audio".

    Attributes:
        splits: the files of each split.
        left_out: number of files of that kind by the reason why they are in no split.
    """

    def __init__(self, contents: FolderContents, kind: Kind):
        self.contents = contents
        self.kind = kind
        self.splits: dict[str, list[MediaFile]] = {}
        self.left_out: Counter[str] = Counter()
        self._class_folders: dict[str, tuple[str, ...]] = {}  # of each file, by its name
        self._notes: list[str] = []
        files = [file for file in contents.files if file.media.kind == kind]
        for file in files:
            if file.media.problem is not None:
                self.left_out[file.media.problem] += 1
        self._assign([file for file in files if file.media.problem is None])
        others = Counter(file.media.kind for file in contents.files if file.media.kind != kind)
        self._notes += [f"{n:,} {PLURALS[other]} beside them are not taken" for other, n in others.items()]
        if contents.broken_links:
            self._notes.append(f"{contents.broken_links:,} links lead nowhere")
        if contents.packed:
            self._notes.append(f"{contents.packed:,} archives ({', '.join(OTHER_ARCHIVES)}) are not unpacked")

    @property
    def is_complete(self) -> bool:
        """True if everything is taken, and nothing needs to be said."""
        return not (self.left_out or self._notes)

    def describe(self) -> str:
        """Say how many files are taken for what, and how many are left out and why."""
        total = sum(map(len, self.splits.values())) + self.left_out.total()
        words = [f"{len(files):,} {split}" for split, files in self.splits.items()]
        words += [f"{n:,} left out: {reason}" for reason, n in self.left_out.items()]
        return f"{total:,} {PLURALS[self.kind]}: {', '.join([*words, *self._notes])}"

    def load(self) -> DatasetDict:
        """Make a data set of each split, with columns "image" or "audio", "label" if there are classes, and those of
        tables that name files."""
        files = [file for split in self.splits.values() for file in split]
        media = [{"bytes": None, "path": file.path} for file in files]
        columns: dict[str, pa.Array] = {
            self.kind: pa.array(media, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        }
        features: dict[str, Any] = {str(self.kind): Image() if self.kind == "image" else Audio()}
        classes = self._find_classes(files)
        numbers = {name: number for number, name in enumerate(sorted({name for name in classes if name is not None}))}
        if numbers:
            columns["label"] = pa.array([None if name is None else numbers[name] for name in classes], pa.int64())
            features["label"] = ClassLabel(names=list(numbers))
        for name, values in self._read_tables([file.name for file in files]).items():
            columns[name], features[name] = values, generate_from_arrow_type(values.type)
        return self._make_splits(pa.table(columns), Features(features))

    def _make_splits(self, table: pa.Table, features: Features) -> DatasetDict:
        splits, start = DatasetDict(), 0
        for split, files in self.splits.items():
            digest = hashlib.sha256(repr((features, [(file.path, file.stamp) for file in files])).encode())
            part = InMemoryTable(table.slice(start, len(files)))
            splits[split] = Dataset(part, DatasetInfo(features=features), fingerprint=digest.hexdigest()[:16])
            start += len(files)
        return splits

    def _assign(self, files: list[MediaFile]) -> None:
        """Assign files to splits, in the order train, validation, test, and note each one's folders within it."""
        base = _find_base([file.name for file in files])
        folders = {file.name: tuple(file.name[len(base) :].split("/")[:-1]) for file in files}
        tops = {path[0] if path else "" for path in folders.values()}
        split_of = {top: SPLIT_WORDS[top.lower()] for top in tops if top.lower() in SPLIT_WORDS}
        if "train" not in split_of.values() and set(split_of) != tops:
            self._notes += [f"the folder {top} is a class, there is no folder train" for top in sorted(split_of)]
            self._class_folders = folders
            self.splits = {"train": files} if files else {}
            return
        found: dict[str, list[MediaFile]] = {split: [] for split in ("train", "validation", "test")}
        for file in files:
            top, *below = folders[file.name] or ("",)
            if top in split_of:
                found[split_of[top]].append(file)
                self._class_folders[file.name] = tuple(below)
            elif top.lower() in UNLABELLED_WORDS:
                found["train"].append(file)
            else:
                self.left_out[f"in the folder {top}, beside train" if top else "beside the folder train"] += 1
        self.splits = {split: chosen for split, chosen in found.items() if chosen}

    def _find_classes(self, files: list[MediaFile]) -> list[str | None]:
        """The class of each file, which is its folder, None where it has none; files lie at one depth below a split,
        or in no folder."""
        folders = [self._class_folders.get(file.name, ()) for file in files]
        depths = {len(path) for path in folders if path}
        names = {path[-1] for path in folders if path}
        if len(depths) > 1:
            self._notes.append("folders are no classes, they lie at several depths")
        if len(depths) > 1 or len(names) < 2:
            return [None] * len(files)
        return [path[-1] if path else None for path in folders]

    def _read_tables(self, files: list[str]) -> dict[str, pa.Array]:
        """Columns of the tables that name files, for each of `files`; the tables' own names decide who is first."""
        tables = [metadata for name in self._choose_tables() if (metadata := self._read(name, files)) is not None]
        columns: dict[str, pa.Array] = {}
        for name in dict.fromkeys(name for metadata in tables for name in metadata.table.column_names):
            parts = [metadata.column(name, files) for metadata in tables if name in metadata.table.column_names]
            if len({part.type for part in parts}) > 1:
                parts = [part.cast(pa.string()) for part in parts]
            columns[f"{name}_in_table" if name == self.kind else name] = functools.reduce(pc.coalesce, parts)
        return columns

    def _read(self, name: str, files: list[str]) -> Metadata | None:
        metadata = read_metadata(self.contents.tables[name], name, files)
        if metadata is not None:
            self._notes.append(f"{name} tells of {len(metadata.rows):,} of them")
            if metadata.n_missing:
                self._notes[-1] += f", and names {metadata.n_missing:,} that are not there"
        return metadata

    def _choose_tables(self) -> list[str]:
        """Names of the tables that may name files: each metadata.csv, and a few others that are small."""
        names = sorted(self.contents.tables, key=lambda name: (-name.count("/"), name))  # the nearest first
        named = [name for name in names if os.path.basename(name).lower() in METADATA_NAMES]
        others = [
            name
            for name in names
            if name not in named
            and name.count("/") <= 2
            and os.path.getsize(self.contents.tables[name]) <= MAX_TABLE_BYTES
        ]
        return named + others[:MAX_TABLES]


def _find_base(names: list[str]) -> str:
    """The folder, with "/" at its end, that holds everything but is no split: archives often have one on top."""
    folders = [os.path.dirname(name).split("/") for name in names]
    common = [levels[0] for levels in itertools.takewhile(_are_equal, zip(*folders, strict=False)) if levels[0]]
    kept = itertools.takewhile(lambda folder: folder.lower() not in SPLIT_WORDS, common)
    return "".join(f"{folder}/" for folder in kept)


def _are_equal(values: tuple[str, ...]) -> bool:
    return len(set(values)) == 1
