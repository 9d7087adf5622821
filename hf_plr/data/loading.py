"""Load a data set of images or recordings by name: from the Hub, a folder, an archive or a table."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml
from datasets import Audio, Dataset, DatasetDict, Features, IterableDataset, load_dataset_builder, load_from_disk
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.csv.csv import Csv
from huggingface_hub import metadata_load

from hf_plr.data.archives import archive_stem, unpack
from hf_plr.data.media_columns import LOOKED_AT, expose_media, flatten_nested, holds_media
from hf_plr.data.media_folder import MAX_TABLE_BYTES, MAX_TABLES, SPLIT_WORDS, FolderContents, MediaFolder, list_folder
from hf_plr.data.media_kinds import Kind, identify
from hf_plr.data.metadata_files import find_delimiter, read_table

logger = logging.getLogger(__name__)

TEST_SPLITS = ("test", "validation", "val", "valid")
TABLE_READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}
GLOB_CHARACTERS = "[]*?"
NO_ROWS = "the data set has no rows, or a split of it has none"


@dataclass(frozen=True)
class TableSource:
    """Tables of this machine, or a data set of the Hub, of which no row has been read.

    Attributes:
        builder: what reads it.
        name: name of the data set, for messages.
        folders: folder in which relative paths begin, of each split of this machine.
    """

    builder: Any
    name: str
    folders: dict[str, str]

    def load(self) -> DatasetDict:
        """Read all rows; columns that hold images or recordings get their types, see `expose_media`.

        Raises:
            ValueError: if they cannot be read.
        """
        try:
            if isinstance(self.builder, AudioFolder):
                self.builder.BASE_FEATURE = _AudioFile
                self.builder.download_and_prepare()
                features = self.builder.info.features
                self.builder.info.features = Features.from_dict(features.to_dict())  # plain Audio again
            else:
                self.builder.download_and_prepare()
            empty = [split for split, info in (self.builder.info.splits or {}).items() if info.num_examples == 0]
            splits = None if empty else self.builder.as_dataset()
        except (FileNotFoundError, ConnectionError, ValueError, DatasetGenerationError) as error:
            raise ValueError(f"dataset_name={self.name!r} cannot be loaded: {error.__cause__ or error}") from error
        except StopIteration as error:  # of a file without a line
            raise ValueError(f"dataset_name={self.name!r}: {NO_ROWS}") from error
        if splits is None:
            raise ValueError(f"dataset_name={self.name!r}: the data set has no rows in its split {str(empty[0])!r}")
        return DatasetDict({split: self.expose(rows, split) for split, rows in splits.items()})

    def stream(self, split: str) -> IterableDataset:
        """Open a split as a stream.

        Raises:
            ValueError: if there is no such split, or it cannot be read.
        """
        try:
            return self.builder.as_streaming_dataset(split=split)
        except (FileNotFoundError, ConnectionError, ValueError) as error:
            raise ValueError(f"dataset_name={self.name!r} cannot be streamed: {error}") from error

    def expose(self, rows: Dataset, split: str) -> Dataset:
        """Give rows of a split of this machine the types of `expose_media`; others are returned as they are."""
        return expose_media(rows, self.folders[split]) if split in self.folders else rows


def load_train_and_test(
    name: str, config_name: str | None = None, train_split: str = "train", kind: Kind | None = None
) -> tuple[Dataset, Dataset | None]:
    """Load the training split and, if there is one, the test split.

    Args:
        name: see `load_splits`.
        config_name: configuration of a Hub data set.
        train_split: name of the split to train on.
        kind: see `load_splits`.

    Raises:
        ValueError: if the data set or the split does not exist, naming it.
    """
    splits = load_splits(name, config_name, kind)
    train = choose_split(splits, name, train_split)
    test = next((splits[split] for split in TEST_SPLITS if split in splits and splits[split] is not train), None)
    return train, test


def load_splits(name: str, config_name: str | None = None, kind: Kind | None = None) -> DatasetDict:
    """Load all splits of a data set. What lies in a folder but is not taken is counted and logged, with the reason.

    Nested columns have names with a dot, see `flatten_nested`.

    Args:
        name: a Hub id; a folder of images or recordings (see `MediaFolder`); a folder of parquet files such as
            `train.parquet` and `test.parquet`, or one that `save_to_disk` wrote; an archive (.zip, .tar, .tar.gz) of
            one of these, also as "zip://folder::archive.zip"; or a table (.parquet, .csv, .tsv, .jsonl, .json).
        config_name: configuration of a Hub data set.
        kind: "image" or "audio": which files of a folder to take; None takes those that are more.

    Raises:
        ValueError: if the data set does not exist, or holds neither images nor recordings.
    """
    source = find_source(name, config_name, kind)
    splits = source if isinstance(source, DatasetDict) else source.load()
    return DatasetDict({split: flatten_nested(rows) for split, rows in splits.items()})


def load_tables(files: dict[str, list[str]], name: str) -> DatasetDict:
    """Load tables of one kind, by split; columns that hold images or recordings get their types.

    Args:
        files: paths of the tables of each split.
        name: name of the data set, for messages.

    Raises:
        ValueError: if they cannot be read.
    """
    return _open_tables(files, name).load()


def find_source(name: str, config_name: str | None = None, kind: Kind | None = None) -> DatasetDict | TableSource:
    """Find what `load_splits` loads, without reading the rows of tables.

    Args:
        name: see `load_splits`.
        config_name: configuration of a Hub data set.
        kind: see `load_splits`.

    Returns:
        The splits of a folder of files, or of one that `save_to_disk` wrote; or what reads tables.

    Raises:
        ValueError: if the data set does not exist, or holds neither images nor recordings.
    """
    if not name:
        raise ValueError("dataset_name='' is empty: name a data set of the Hub, a folder or a file")
    path = os.path.expanduser(name)
    if path.startswith("zip://"):
        inner, _, outer = path.removeprefix("zip://").partition("::")
        return _find_in_folder(os.path.join(unpack(outer), inner), name, config_name, kind)
    if os.path.isdir(path):
        return _find_in_folder(os.path.abspath(path), name, config_name, kind)
    if os.path.isfile(path):
        return _find_file(os.path.abspath(path), name, config_name, kind)
    if "/" not in name:  # more often a misspelled folder than a data set without an owner; an answer takes its time
        _announce(f"There is no folder or file {name!r} here: asking the Hub for a data set", is_complete=False)
    return _open_builder(name, name, config_name)


def _find_reader(table: str) -> tuple[str, dict[str, Any]]:
    """Find what reads a table: the name of a builder of `datasets`, and its options.

    Args:
        table: path of a table, with one of the endings in `TABLE_READERS`.
    """
    reader = TABLE_READERS[_ending(table)]
    if reader != "csv":
        return reader, {}
    return reader, {"sep": find_delimiter(table), "encoding": "utf-8-sig", "encoding_errors": "replace"}


def choose_split(splits: DatasetDict, name: str, split: str) -> Dataset:
    """Return the split of that name; "training", "val" and so on stand for the split that a folder of that name makes.

    Raises:
        ValueError: if it does not exist, naming the splits of the data set.
    """
    if isinstance(splits, DatasetDict):
        for choice in (split, SPLIT_WORDS.get(split.lower())):
            if choice in splits:
                return splits[choice]
    raise ValueError(f"dataset_name={name!r} has no split {split!r}; its splits are: {', '.join(splits)}")


def draw_rows(n_rows: int, max_samples: int | None, seed: int) -> np.ndarray:
    """Draw at most `max_samples` of `n_rows` rows at random by the seed; returns them ascending.

    A larger draw contains the smaller ones of its seed: who starts small and goes on with more keeps the same samples.

    Raises:
        ValueError: if `max_samples` is below 1.
    """
    if max_samples is None or max_samples >= n_rows:
        return np.arange(n_rows)
    if max_samples < 1:
        raise ValueError(f"max_samples={max_samples} must be at least 1")
    return np.sort(np.random.default_rng(seed).permutation(n_rows)[:max_samples])


def _find_in_folder(folder: str, name: str, config_name: str | None, kind: Kind | None) -> DatasetDict | TableSource:
    if not os.path.isdir(folder):
        raise ValueError(f"dataset_name={name!r}: there is no folder {folder}")
    if _is_saved(Path(folder)):
        try:
            saved = load_from_disk(folder)
        except IndexError as error:  # a split without files
            raise ValueError(f"dataset_name={name!r}: {NO_ROWS}") from error
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    if config_name is not None or _has_configs(Path(folder) / "README.md"):
        return _open_builder(folder, name, config_name)
    contents = list_folder(folder)
    kinds: tuple[Kind, ...] = ("image", "audio")
    taken = max(kinds, key=contents.count) if kind is None or contents.count(kind) == 0 else kind
    tables = _find_media_tables(contents)
    n_files, n_rows = contents.count(taken), sum(tables.values())
    if n_files and n_files >= n_rows:
        chosen = MediaFolder(contents, taken)
        splits = chosen.load()
        _announce(f"{name}: {chosen.describe()}", chosen.is_complete)
        return splits
    n_others = len(contents.tables) - len(tables)
    if n_rows and (n_files or n_others):
        also = f", {n_files:,} files and {n_others:,} other tables beside them are left out"
        _announce(f"{name}: tables with {n_rows:,} rows are taken{also}", is_complete=False)
    if n_rows and (n_files or n_others or _has_pattern(folder)):
        return _open_tables(_by_split({table: contents.tables[table] for table in tables}), name)
    if contents.files and not contents.tables:
        found = max(contents.files, key=lambda file: file.media.kind in kinds).media.kind
        raise ValueError(f"dataset_name={name!r} holds nothing to train on: {MediaFolder(contents, found).describe()}")
    return _open_builder(folder, name, config_name)


def _find_file(path: str, name: str, config_name: str | None, kind: Kind | None) -> DatasetDict | TableSource:
    if archive_stem(path) is not None:
        return _find_in_folder(unpack(path), name, config_name, kind)
    if _ending(path) not in TABLE_READERS:
        what = "an image or recording" if identify(path) else "neither a table nor an archive"
        raise ValueError(f"dataset_name={name!r} is {what}: name a folder, .zip, .tar, .parquet, .csv or .json(l)")
    return _open_tables({"train": [path]}, name)


def _find_media_tables(contents: FolderContents) -> dict[str, int]:
    """Rows of the tables that hold images or recordings themselves, or name files elsewhere, by name; of one kind."""
    found: dict[str, int] = {}
    parquet = [name for name in contents.tables if name.lower().endswith(".parquet")]
    others = [name for name in contents.tables if not name.lower().endswith(".parquet")]
    for name in parquet + others[:MAX_TABLES]:  # there may be one of text beside each file
        if found and _ending(name) != _ending(next(iter(found))):
            continue
        path = contents.tables[name]
        try:
            table = _read_start(path)
        except (ValueError, pa.ArrowException, OSError):
            continue
        if any(holds_media(table[column], os.path.dirname(path), contents.root) for column in table.column_names):
            found[name] = _count_rows(path)
    return found


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _read_start(path: str) -> pa.Table:
    """The first rows of a table, or all of a small one."""
    if path.lower().endswith(".parquet"):
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=LOOKED_AT)
        return pa.Table.from_batches([batch for batch, _ in zip(batches, range(1), strict=False)])
    if os.path.getsize(path) > MAX_TABLE_BYTES:
        raise ValueError(f"{path} is too large to look at")
    return read_table(path)


def _count_rows(path: str) -> int:
    is_parquet = path.lower().endswith(".parquet")
    return int(pyarrow.parquet.read_metadata(path).num_rows) if is_parquet else len(read_table(path))


def _by_split(tables: Mapping[str, str]) -> dict[str, list[str]]:
    """Paths of tables by split.

    Args:
        tables: path of each table, by its name below the folder.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(tables):
        found.setdefault(_find_split(name), []).append(tables[name])
    return found


def _find_split(name: str) -> str:
    """The split that a table's folders tell, or else its own name; "train" where neither does.

    A folder that is called like a split comes first, then a word in the name of a folder, of the innermost first.
    """
    *folders, file = name.lower().split("/")
    words = [word for part in (*reversed(folders), file) for word in re.split(r"[^a-z]+", part)]
    return next((SPLIT_WORDS[word] for word in [*folders, *words] if word in SPLIT_WORDS), "train")


def _has_pattern(path: str) -> bool:
    """Whether `datasets` would take a path for a pattern."""
    return any(character in os.path.abspath(path) for character in GLOB_CHARACTERS)


def _most_common_tables(folder: Path) -> dict[str, str]:
    """Path of each table below a folder, by name, of those with the most common ending."""
    files = {path.relative_to(folder).as_posix(): str(path) for path in folder.rglob("*") if path.is_file()}
    tables = {name: path for name, path in files.items() if not name.startswith(".") and "/." not in name}
    numbers = Counter(map(_ending, tables))
    common = max(TABLE_READERS, key=lambda ending: numbers[ending])
    return {name: path for name, path in tables.items() if _ending(name) == common}


def _open_tables(files: dict[str, list[str]], name: str) -> TableSource:
    reader, options = _find_reader(next(iter(files.values()))[0])
    escaped = {split: [glob.escape(os.path.abspath(path)) for path in paths] for split, paths in files.items()}
    folders = {split: os.path.dirname(os.path.abspath(paths[0])) for split, paths in files.items()}
    return TableSource(load_dataset_builder(reader, data_files=escaped, **options), name, folders)


def _open_builder(source: str, name: str, config_name: str | None) -> TableSource:
    """Open with `datasets`, which knows configurations and shards."""
    is_local = os.path.exists(source)
    if is_local and _has_pattern(source):
        common = _most_common_tables(Path(source))
        if common:
            return _open_tables(_by_split(common), name)
    try:
        builder = load_dataset_builder(source, config_name)
        if not is_local:
            return TableSource(builder, name, {})
        first = {str(split): files[0] for split, files in (builder.config.data_files or {}).items() if files}
        has_options = config_name is not None or _has_configs(Path(source) / "README.md")
        tables = [file for file in first.values() if _ending(file) in TABLE_READERS]
        if isinstance(builder, Csv) and tables and not has_options:
            builder = load_dataset_builder(source, **_find_reader(tables[0])[1])
        return TableSource(builder, name, {split: os.path.dirname(file) for split, file in first.items()})
    except EmptyDatasetError as error:
        raise ValueError(
            f"dataset_name={name!r}: the folder holds no images, no recordings and no parquet files; put some there"
        ) from error
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        names = re.search(r"available configs: \[(.*?)\]", str(error))
        if names is not None:
            raise ValueError(
                f"dataset_name={name!r} has several configurations: choose one of {names[1]} with --dataset_config_name"
            ) from error
        if is_local or isinstance(error, ValueError):
            raise ValueError(f"dataset_name={name!r} cannot be loaded: {error}") from error
        raise ValueError(
            f"dataset_name={name!r} is neither a folder or file here nor a data set on the Hub: check the name"
        ) from error


class _AudioFile(Audio):
    """Audio that stores a file's path by itself: datasets imports torchcodec for it, which few have."""

    def encode_example(self, value: str) -> dict[str, str | None]:
        return {"bytes": None, "path": value}


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").exists() or all(
        (folder / file).exists() for file in ("state.json", "dataset_info.json")
    )


def _has_configs(card: Path) -> bool:
    """Whether a data set card says itself which files belong to it."""
    try:
        return bool((metadata_load(card) or {}).get("configs")) if card.exists() else False
    except (ValueError, AttributeError, yaml.YAMLError):  # no valid YAML, or no mapping
        return False


def _announce(line: str, is_complete: bool) -> None:
    """Log a line in the first of several processes, as a warning if something was left out."""
    if int(os.environ.get("RANK", "0")) == 0:
        logger.log(logging.INFO if is_complete else logging.WARNING, line)
