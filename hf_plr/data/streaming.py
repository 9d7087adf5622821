"""Streams: their samples are written to this machine once, as they come, and are then a data set like any other."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
from datasets import Audio, Dataset, DatasetDict, Features, Image, IterableDataset, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import Hasher

from hf_plr.data.loading import choose_split, find_source
from hf_plr.data.media_columns import flatten_nested
from hf_plr.data.media_kinds import Kind
from hf_plr.utils.distributed import run_main_first
from hf_plr.utils.files import replacing, write_text
from hf_plr.utils.progress import track

if TYPE_CHECKING:
    from hf_plr.training_args import BaseTrainingArguments

logger = logging.getLogger(__name__)

SHARD_ROWS = 1000
SHARD_BYTES = 1 << 28
ROWS_WRITTEN = 32  # together, from memory
LEAST_FREE = 1 << 30  # bytes of the disk that are left to others
CACHE_FOLDER = "hf_plr_streams"  # in the cache of `datasets`
WHOLE = "whole.json"
LARGEST_FOLDER = 1 << 20  # files; larger folders are not looked through
# Iterables that go on exactly where they were: a shuffling buffer, for one, does not.
EXACT = {"ArrowExamplesIterable", "ExamplesIterable", "SelectColumnsIterable", "TakeExamplesIterable"}


def load_stream(
    name: str, config_name: str | None, split: str, max_samples: int | None, kind: Kind | None = None
) -> Dataset:
    """Read the first samples of a data set, without the rest of it; see `materialise`.

    Args:
        name: see `load_splits`. Of a folder of files the first ones are taken, and nothing is written.
        config_name: configuration of a Hub data set.
        split: the split.
        max_samples: number of samples, at least 1; None for all.
        kind: see `load_splits`.

    Raises:
        ValueError: if there is no such data set, configuration or split.
    """
    source = find_source(name, config_name, kind)
    if isinstance(source, DatasetDict):
        return flatten_nested(_take(choose_split(source, name, split), max_samples))
    return flatten_nested(source.expose(materialise(source.stream(split), max_samples), split))


def materialise(
    stream: IterableDataset, max_samples: int | None = None, folder: str | os.PathLike[str] | None = None
) -> Dataset:
    """Write the samples of a stream to files, as they come and undecoded, and open these as a data set.

    What a killed process has written is kept, shard by shard, and the next call goes on behind it. A call with the same
    stream and number of samples reads nothing of the stream once these are written. With a folder, a call for more goes
    on behind them, and one for fewer takes the first ones. Streams are equal if what makes them is: functions,
    arguments, and the sizes and times of local files, also of those in a folder that is an argument; data sets of the
    Hub if their revision is. A line says when the samples were read, where they are not read again.

    Args:
        stream: the stream, finite unless `max_samples` is given. It must give the same samples whenever it is read.
        max_samples: samples to take from its beginning, at least 1; None takes all.
        folder: folder for the files, of this stream alone; by default one in the cache of `datasets`, by the stream.

    Raises:
        ValueError: if the stream is empty, or cannot be recognised and there is no folder.
        OSError: if the disk is full but for a GiB.
    """
    _check_number(max_samples)
    key = None if folder is not None else _fingerprint(stream, max_samples)
    place = Path(datasets.config.HF_DATASETS_CACHE) / CACHE_FOLDER / str(key) if folder is None else Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    shards = _finished_shards(place)
    is_known = _has_enough(place, max_samples)
    if not is_known:
        _write(stream, max_samples, place, shards)
        shards = _finished_shards(place)
    if not shards:
        raise ValueError("the stream is empty: give one with at least one sample")
    dataset = concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])
    for name, feature in dataset.features.items():
        if isinstance(feature, (Image, Audio)):
            restored = dict(vars(feature), decode=True)
            restored.pop("_type", None), restored.pop("id", None)
            dataset = dataset.cast_column(name, type(feature)(**restored))
    if key is not None:
        dataset._fingerprint = key  # of what it holds, and not of the times of its files
    dataset = _take(dataset, max_samples)
    if is_known:
        _announce_kept(stream, place, len(dataset))
    return dataset


def _announce_kept(stream: IterableDataset, place: Path, n_samples: int) -> None:
    """Say since when samples are kept, as a warning where a generator may have read what nobody else knows of."""
    made_by = [vars(part).get("generate_examples_fn") for part in _parts(stream._ex_iterable)]
    is_own = any(type(getattr(each, "__self__", None)).__name__ == "Generator" for each in made_by)
    if int(os.environ.get("RANK", "0")) == 0:
        read = datetime.fromtimestamp((place / WHOLE).stat().st_mtime).astimezone()
        words = "stream: %s samples as read on %s; remove %s to read them again"
        level = logging.WARNING if is_own else logging.INFO
        logger.log(level, words, f"{n_samples:,}", read.strftime("%Y-%m-%d %H:%M"), place)


def open_stream(dataset: Any, args: BaseTrainingArguments) -> Any:
    """Return a data set as it is, and of a stream the data set of all its samples; called on every process."""
    if not isinstance(dataset, IterableDataset):
        return dataset
    with run_main_first(args.distributed_state, "reading the stream"):
        return materialise(dataset)


def open_streams(data: Any, args: BaseTrainingArguments) -> Any:
    """Apply `open_stream` to a data set, or to each of several by name; called on every process."""
    if isinstance(data, dict):
        return {name: open_stream(dataset, args) for name, dataset in data.items()}
    return open_stream(data, args)


def _check_number(max_samples: int | None) -> None:
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples={max_samples} must be at least 1")


def _take(dataset: Dataset, max_samples: int | None) -> Dataset:
    """The first samples of a data set, or all if there are no more."""
    _check_number(max_samples)
    return dataset if max_samples is None or max_samples >= len(dataset) else dataset.select(range(max_samples))


def _write(stream: IterableDataset, max_samples: int | None, place: Path, shards: list[Path]) -> None:
    """Write the shards that are missing, and the note that all are there."""
    n_done = sum(len(Dataset.from_file(str(shard))) for shard in shards)
    features = Dataset.from_file(str(shards[0])).features if shards else None
    if stream.features is not None:
        stream = stream.decode(False)
        features = features or stream.features
    if shards:
        logger.info("%d samples of the stream have been read before: %s", n_done, place)
    is_exact = _is_exact(stream)
    state = _read_state(shards[-1], n_done) if shards and is_exact else None
    if state is not None:
        stream.load_state_dict(state)
    rows: Iterator[Any] = iter(stream if state is not None or not n_done else stream.skip(n_done))
    rows = itertools.islice(rows, None if max_samples is None else max(0, max_samples - n_done))
    rows = track(rows, "Reading samples of the stream", max_samples or 0, max_samples is not None)
    number = len(shards)
    while True:
        written, features = _write_shard(rows, place / f"shard-{number:06d}.arrow", features)
        if written == 0:
            break
        n_done += written
        if is_exact:
            note = {"rows": n_done, "state": stream.state_dict()}
            write_text(place / f"shard-{number:06d}.json", json.dumps(note))
        number += 1
    has_ended = max_samples is None or n_done < max_samples
    write_text(place / WHOLE, json.dumps({"rows": n_done, "has_ended": has_ended}))


def _write_shard(rows: Iterator[Any], path: Path, features: Features | None) -> tuple[int, Features | None]:
    """Write rows to a shard, until it is large; returns their number, and the features of them all."""
    if shutil.disk_usage(path.parent).free < LEAST_FREE:
        raise OSError(f"{path.parent}: the disk is full; give max_samples, or a folder on another disk")
    first = next(rows, None)
    if first is None:
        return 0, features
    n_written = 0
    try:
        with (
            replacing(path) as temporary,
            ArrowWriter(features=features, path=str(temporary), writer_batch_size=ROWS_WRITTEN) as writer,
        ):
            for row in itertools.chain([first], rows):
                writer.write(row)
                n_written += 1
                if n_written >= SHARD_ROWS or temporary.stat().st_size >= SHARD_BYTES:
                    break
            writer.finalize()
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise ValueError(f"sample {n_written} of a shard of the stream differs from those before: {error}") from error
    return n_written, Dataset.from_file(str(path)).features


def _finished_shards(place: Path) -> list[Path]:
    """Shards from the first one on, without a gap."""
    found = (place / f"shard-{number:06d}.arrow" for number in itertools.count())
    return list(itertools.takewhile(Path.exists, found))


def _has_enough(place: Path, max_samples: int | None) -> bool:
    """Whether an earlier call has written as many samples, or all that there are."""
    try:
        note = json.loads((place / WHOLE).read_bytes())
        return bool(note.get("has_ended")) or (max_samples is not None and note["rows"] >= max_samples)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return False


def _read_state(shard: Path, n_rows: int) -> dict[str, Any] | None:
    """Where a stream was behind a shard; None if that is not known."""
    try:
        note = json.loads(shard.with_suffix(".json").read_bytes())
        return dict(note["state"]) if note["rows"] == n_rows else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _fingerprint(stream: IterableDataset, max_samples: int | None) -> str:
    """Text that is the same for streams of the same samples, in every process."""
    parts = list(_parts(stream._ex_iterable))
    described = [(type(part).__name__, {k: v for k, v in vars(part).items() if not _is_passing(k)}) for part in parts]
    paths = sorted({path for part in parts for path in _local_paths(vars(part).get("kwargs"))})
    stamps: list[Any] = [
        (path, os.path.getsize(path), os.stat(path).st_mtime_ns) for path in paths if os.path.isfile(path)
    ]
    stamps += [(path, _stamp_folder(path)) for path in paths if not os.path.isfile(path)]
    whole = [described, stamps, str(stream.features), stream.epoch, max_samples]
    try:
        return str(Hasher.hash(whole))
    except Exception as error:  # dill raises whatever an object raises that it cannot pickle
        raise ValueError(
            f"the next start would not know this stream again ({type(error).__name__}: {error}): name a folder for its "
            "samples by hf_plr.data.streaming.materialise(stream, max_samples, folder), and pass what that returns"
        ) from error


def _is_passing(name: str) -> bool:
    """Whether an attribute of an iterable is another iterable, or how far it was read."""
    return name in ("ex_iterable", "ex_iterables") or name.endswith("state_dict")


def _parts(iterable: Any) -> Iterator[Any]:
    """An iterable and those that it reads."""
    yield iterable
    for inner in [*vars(iterable).get("ex_iterables", ()), vars(iterable).get("ex_iterable")]:
        if inner is not None:
            yield from _parts(inner)


def _is_exact(stream: IterableDataset) -> bool:
    return {type(part).__name__ for part in _parts(stream._ex_iterable)} <= EXACT


def _local_paths(value: Any) -> Iterator[str]:
    """Paths of files and folders among the arguments of an iterable."""
    if isinstance(value, (str, os.PathLike)):
        with contextlib.suppress(ValueError):  # a null byte
            if os.path.exists(value):
                yield os.fsdecode(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _local_paths(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _local_paths(inner)


def _stamp_folder(folder: str) -> str:
    """Text that changes with the names, sizes and times of the files in a folder, at any depth; links are followed.

    It is the same for all folders of more than `LARGEST_FOLDER` files, and for the root of all. Streams that are kept
    in it do not count.
    """
    if Path(folder).resolve().parent == Path(folder).resolve():
        return ""
    kept = os.path.realpath(os.path.join(datasets.config.HF_DATASETS_CACHE, CACHE_FOLDER))
    files, seen, places = [], {kept}, [folder]
    while places:
        place = places.pop()
        if (target := os.path.realpath(place)) in seen:
            continue
        seen.add(target)
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):  # of two links to a folder, the same one counts
                with contextlib.suppress(OSError):  # a link to nothing
                    if entry.is_dir():
                        places.append(entry.path)
                    elif entry.is_file():
                        status = entry.stat()
                        files.append(f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}")
                if len(files) > LARGEST_FOLDER:
                    return ""
    return hashlib.sha256("\0\0".join(sorted(files)).encode(errors="surrogateescape")).hexdigest()
