"""A folder of images or recordings as a data set: everything in it is taken, or counted with the reason why not."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image
from datasets.features.features import generate_from_arrow_type
from datasets.table import InMemoryTable

from hf_plr.data.archives import OTHER_ARCHIVES, archive_stem, unpack
from hf_plr.data.media_kinds import BAD_NAME, Kind, Media, identify, is_utf8
from hf_plr.data.metadata_files import TABLE_SUFFIXES, FileIndex, Metadata, is_metadata, join_tables, read_metadata

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **{"query": "query", "gallery": "gallery"},  # of re-identification
}
SPLITS = tuple(dict.fromkeys(SPLIT_WORDS.values()))
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
        root: the folder, as an absolute path.
        notes: number of entries by what is said of them.
    """

    root: str

    files: list[MediaFile] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def count(self, kind: Kind) -> int:
        """Files of a kind that can be read, as far as can be told without decoding them."""
        return sum(file.media == Media(kind) for file in self.files)


def list_folder(folder: str) -> FolderContents:
    """List images, recordings, videos and tables below a folder, also in linked folders and in archives.

    Hidden files and what systems leave behind are passed over, a link to a folder around it is not followed, and an
    archive beside a folder of its name is not unpacked.
    """
    contents = FolderContents(os.path.abspath(folder))
    for path, name in _walk(contents.root, "", (), contents):
        if name.lower().endswith(OTHER_ARCHIVES):
            contents.notes[f"archives ({', '.join(OTHER_ARCHIVES)}) that are not unpacked"] += 1
        if name.lower().endswith(TABLE_SUFFIXES):
            if is_utf8(path):
                contents.tables[name] = path
            else:
                contents.notes["tables whose names are not UTF-8"] += 1
        media = identify(path)
        if media is not None:
            status = os.stat(path)
            contents.files.append(MediaFile(path, name, media, f"{status.st_size}|{status.st_mtime_ns}"))
    contents.files.sort(key=lambda file: file.name)
    return contents


def _walk(folder: str, prefix: str, above: tuple[str, ...], contents: FolderContents) -> Iterator[tuple[str, str]]:
    """Path, and name below the first folder, of every file."""
    real = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    folders = {entry.name for entry in found if entry.is_dir()}
    for entry in found:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        name = f"{prefix}{entry.name}"
        stem = archive_stem(entry.name)
        if entry.is_dir():
            target = os.path.realpath(entry.path)
            if target in (*above, real):
                continue
            if entry.is_symlink() and target.startswith(f"{(*above, real)[0]}{os.sep}"):
                contents.notes["links to folders in it, whose files are taken twice"] += 1
            yield from _walk(entry.path, f"{name}/", (*above, real), contents)
        elif not entry.is_file():
            contents.notes["links lead nowhere"] += entry.is_symlink()
        elif stem in folders:
            contents.notes["archives beside a folder of their name, which is taken"] += 1
        elif stem is not None:
            try:
                unpacked = unpack(entry.path)
            except ValueError:
                contents.notes["archives that cannot be unpacked"] += 1
            else:
                yield from _walk(unpacked, f"{prefix}{stem}/", (*above, real), contents)
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
        self._base = ""  # folder around everything
        self._class_folders: dict[str, tuple[str, ...]] = {}  # of each file, by its name
        self._notes: list[str] = []  # of what is not taken, or may surprise
        self._facts: list[str] = []
        files = [file for file in contents.files if file.media.kind == kind]
        for file in files:
            if file.media.problem is not None:
                self.left_out[file.media.problem] += 1
        self._assign([file for file in files if file.media.problem is None])
        unnamed = next((file.name for file in files if file.media.problem == BAD_NAME), None)
        if unnamed is not None:
            self._notes.append(f"{os.fsencode(unnamed).decode(errors='backslashreplace')} is a name that is not UTF-8")
        others = Counter(file.media.kind for file in contents.files if file.media.kind != kind)
        self._notes += [f"{n:,} {PLURALS[other]} beside them are not taken" for other, n in others.items()]
        self._notes += [f"{n:,} {what}" for what, n in contents.notes.items() if n]

    @property
    def is_complete(self) -> bool:
        """True if everything is taken, and nothing needs to be said."""
        return not (self.left_out or self._notes)

    def describe(self) -> str:
        """Say how many files are taken for what, and how many are left out and why."""
        total = sum(map(len, self.splits.values())) + self.left_out.total()
        words = [f"{len(files):,} {split}" for split, files in self.splits.items()]
        words += [f"{n:,} left out: {reason}" for reason, n in self.left_out.items()]
        return f"{total:,} {PLURALS[self.kind]}: {', '.join([*words, *self._facts, *self._notes])}"

    def load(self) -> DatasetDict:
        """Make a data set of each split.

        Its columns are "image" or "audio", "label" if there are classes, and those of tables that name files.
        """
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
            if name == "label" and numbers and values.null_count:
                self._notes.append(
                    "label of the tables is in label_in_table, since it has gaps and folders are classes"
                )
                name = "label_in_table"
            while name in columns and name != "label":
                name = f"{name}_in_table"
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
        """Assign files to splits, in the order of `SPLITS`, and note each one's folders within it."""
        self._base = _find_base([file.name for file in files])
        folders = {file.name: tuple(file.name[len(self._base) :].split("/")[:-1]) for file in files}
        tops = {path[0] if path else "" for path in folders.values()}
        split_of = {top: SPLIT_WORDS[top.lower()] for top in tops if top.lower() in SPLIT_WORDS}
        if "train" not in split_of.values() and set(split_of) != tops:
            self._notes += [f"the folder {top} is a class, there is no folder train" for top in sorted(split_of)]
            self._class_folders = folders
            self.splits = {"train": files} if files else {}
            return
        found: dict[str, list[MediaFile]] = {split: [] for split in SPLITS}
        for file in files:
            top, *below = folders[file.name] or ("",)
            if top in split_of:
                split = split_of[top]
                found[split].append(file)
                is_repeated = bool(below) and SPLIT_WORDS.get(below[0].lower()) == split  # train.zip with train/ in it
                self._class_folders[file.name] = tuple(below[is_repeated:])
            elif top.lower() in UNLABELLED_WORDS:
                found["train"].append(file)
            else:
                self.left_out[f"in the folder {top}, beside train" if top else "beside the folder train"] += 1
        self.splits = {split: chosen for split, chosen in found.items() if chosen}

    def _find_classes(self, files: list[MediaFile]) -> list[str | None]:
        """Find the class of each file, which is its folder, None where it has none.

        Files lie at one depth below a split, or in no folder.
        """
        folders = [self._class_folders.get(file.name, ()) for file in files]
        depths = {len(path) for path in folders if path}
        names = {path[-1] for path in folders if path}
        if len(depths) > 1:
            self._notes.append("folders are no classes, they lie at several depths")
        if len(depths) > 1 or len(names) < 2:
            return [None] * len(files)
        return [path[-1] if path else None for path in folders]

    def _read_tables(self, files: list[str]) -> dict[str, pa.Array]:
        """Columns of the tables that name files, for each of `files`; of two tables the one further below tells."""
        everywhere = FileIndex(self.contents.root, files)
        found = []
        for name in self._choose_tables():
            top = name.removeprefix(self._base).split("/")[0]
            index = everywhere
            if name.startswith(self._base) and top.lower() in SPLIT_WORDS:
                inside = [file for file in files if file.startswith(f"{self._base}{top}/")]
                index = FileIndex(self.contents.root, inside)
            metadata = self._read(name, index)
            if metadata is not None:
                found.append(metadata)
        return join_tables(found, files)

    def _read(self, name: str, index: FileIndex) -> Metadata | None:
        """Read a table, if it names files, and note what it tells, or that it cannot be used."""
        try:
            metadata = read_metadata(self.contents.tables[name], name, index)
        except ValueError as error:
            if is_metadata(name):
                raise
            self._notes.append(f"{name} is not used: {error}")
            return None
        if metadata is None:
            self._notes.append(f"{name} is not used: it names none of the files")
            return None
        self._facts.append(f"{name} tells of {len(metadata.rows):,} of them")
        if metadata.n_missing:
            self._notes.append(f"{metadata.n_missing:,} rows of {name} name files that are not there")
        if metadata.n_repeated:
            self._notes.append(f"{metadata.n_repeated:,} rows of {name} name a file again, the first one counts")
        return metadata

    def _choose_tables(self) -> list[str]:
        """Names of the tables that may name files: each metadata.csv, and a few others that are small."""
        names = sorted(self.contents.tables, key=lambda name: (-name.count("/"), name))  # the nearest first
        named = [name for name in names if is_metadata(name)]
        others = [
            name
            for name in names
            if not is_metadata(name)
            and name.removeprefix(self._base).count("/") <= 2
            and os.path.getsize(self.contents.tables[name]) <= MAX_TABLE_BYTES
        ]
        if len(others) > MAX_TABLES:
            self._notes.append(f"{len(others) - MAX_TABLES:,} further tables are not looked at")
        return named + others[:MAX_TABLES]


def _find_base(names: list[str]) -> str:
    """The folder, with "/" at its end, that holds everything but is no split: archives often have one on top."""
    folders = [os.path.dirname(name).split("/") for name in names]
    common = [levels[0] for levels in itertools.takewhile(_are_equal, zip(*folders, strict=False)) if levels[0]]
    kept = itertools.takewhile(lambda folder: folder.lower() not in SPLIT_WORDS, common)
    return "".join(f"{folder}/" for folder in kept)


def _are_equal(values: tuple[str, ...]) -> bool:
    return len(set(values)) == 1
