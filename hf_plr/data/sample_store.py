"""Samples of a data set by position, where unreadable ones are named or left out."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Audio, ClassLabel, Dataset, Image
from torch.utils.data import Dataset as TorchDataset

from hf_plr.data.archives import open_binary
from hf_plr.utils.progress import track

logger = logging.getLogger(__name__)

DIGEST_ROWS = 16
DIGEST_BLOCK = 1 << 20  # bytes of a file that are in memory together
PATH_ROWS = 256  # whose bytes are in memory together
SKIP_HINT = "--skip_unreadable (skip_unreadable=True) leaves it out."


class UnreadableSample(ValueError):
    """A sample that cannot be decoded."""


class Items(list[dict[str, Any]]):
    """Samples that were loaded together.

    Attributes:
        inputs: their inputs as one tensor (B, ...), whose rows are those of the items; None if sizes differ.
    """

    inputs: torch.Tensor | None = None


class SampleStore(TorchDataset, ABC):
    """Base of the stores of images and recordings: `{"index": int, input_name: tensor}`, optionally with a label.

    A store decodes every row when it is built, by `_decode_all`, and sets `rows` and `unreadable`.

    Args:
        dataset: the data set; it is not changed.
        column: its column of images or recordings.
        label_column: column of true labels for scoring, returned as "labels"; None leaves them out.
        label_names: see `encode_labels`.

    Attributes:
        noun: name of a sample in messages.
        input_name: key of an item's tensor.
        unreadable_error: class of the error if a sample cannot be decoded.
        decode_batch: rows that are decoded together when the store is built.
        labels: true label of each row of the data set, -1 = unknown; None without a label column.
        rows: row of the data set at each position; shape (len(self),). A recording that is cut into segments has as
            many positions.
        segments: start and end in seconds of each position, float64 (len(self), 2); None where samples are whole.
        unreadable: rows that were left out.

    Raises:
        ValueError: if the data set is empty.
    """

    noun: str
    input_name: str
    unreadable_error: type[UnreadableSample]
    decode_batch: int

    rows: np.ndarray
    segments: np.ndarray | None = None
    unreadable: list[int]

    def __init__(self, dataset: Dataset, column: str, label_column: str | None, label_names: dict[str, int] | None):
        if len(dataset) == 0:
            raise ValueError("the data set is empty: give one with at least one row")
        self.labels = None if label_column is None else encode_labels(dataset, label_column, label_names)
        self._column = select_undecoded(dataset, column)
        self._column_name = column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> Items:
        inputs = self._load_inputs(np.asarray(positions))
        items = Items(
            {"index": int(position), self.input_name: tensor}
            for position, tensor in zip(positions, inputs, strict=True)
        )
        items.inputs = inputs if isinstance(inputs, torch.Tensor) else None
        if self.labels is not None:
            for item in items:
                item["labels"] = int(self.labels[self.rows[item["index"]]])
        return items

    @abstractmethod
    def batch(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Load the model's input at these positions, int64 of shape (B,), returned as "index"; no labels."""

    @property
    @abstractmethod
    def is_cached(self) -> bool:
        """True if the decoded samples are kept."""

    @property
    def undecoded_column(self) -> Dataset:
        """Column of images or recordings as it is stored; its rows are those that `rows` names."""
        return self._column

    def true_labels(self) -> np.ndarray:
        """Return the true label of each position, -1 = unknown, shape (len(self),).

        Raises:
            ValueError: if the store was made without a label column.
        """
        if self.labels is None:
            raise ValueError(f"these {self.noun}s have no label column: name it with label_column")
        return self.labels[self.rows]

    def files(self) -> list[str] | None:
        """Return the file of each position, below the folder of all files; None if any file is unknown."""
        paths = list_stored_paths(self._column, self._column_name)
        if paths is None:
            return None
        if all(os.path.isabs(path) for path in paths):
            folder = os.path.commonpath([os.path.dirname(path) for path in paths])
            paths = [os.path.relpath(path, folder) for path in paths]
        return [paths[row] for row in self.rows]

    def digest(self) -> str:
        """Compute a text that differs between data sets, from some stored rows and from which rows are readable."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rows).tobytes())
        if self.segments is not None:
            digest.update(np.ascontiguousarray(self.segments).tobytes())
        for value in self._read_column(spread_rows(len(self._column), DIGEST_ROWS)):
            add_content(digest, value)
        return digest.hexdigest()[:16]

    @abstractmethod
    def _load_inputs(self, positions: np.ndarray) -> Sequence[torch.Tensor] | torch.Tensor:
        """Load one tensor per position, decoded now or before."""

    @abstractmethod
    def _decode_rows(self, rows: np.ndarray) -> Any:
        """Decode these rows of the data set, from the stored files each time; raises an `UnreadableSample`."""

    def _read_column(self, rows: np.ndarray) -> list[Any]:
        """Read the column's values in these rows."""
        return self._column[[int(row) for row in rows]][self._column_name]

    def _decode_all(self, keep: Callable[[np.ndarray, Any], None], skip_unreadable: bool, progress: bool) -> list[int]:
        """Decode every row and call `keep(rows, decoded)` per batch; returns the unreadable rows."""
        n = len(self._column)
        unreadable: list[int] = []
        starts = range(0, n, self.decode_batch)
        for start in track(starts, f"Reading {self.noun}s", len(starts), progress):
            rows = np.arange(start, min(start + self.decode_batch, n))
            try:
                decoded = self._decode_rows(rows)
            except UnreadableSample as error:
                if not skip_unreadable:
                    bad = next((int(row) for row in rows if not self._is_readable(int(row))), int(rows[0]))
                    raise self.unreadable_error(f"{error}{self._locate(bad, str(error))}. {SKIP_HINT}") from error
                readable = [row for row in rows if self._is_readable(int(row))]
                unreadable.extend(sorted(set(rows.tolist()) - set(readable)))
                rows = np.asarray(readable, dtype=np.int64)
                if len(rows) == 0:
                    continue
                decoded = self._decode_rows(rows)
            keep(rows, decoded)
        return unreadable

    def _list_readable_rows(self, skip_unreadable: bool) -> np.ndarray:
        """List the rows that are not in `self.unreadable`, ascending."""
        n = len(self._column)
        if self.unreadable and not skip_unreadable:  # known from an earlier run that left them out
            row = self.unreadable[0]
            raise self.unreadable_error(f"{self.noun} {row} cannot be read{self._locate(row)}. {SKIP_HINT}")
        kept = np.setdiff1d(np.arange(n), self.unreadable)
        if len(kept) == 0:
            raise ValueError(f"none of the {n} {self.noun}s can be read: check the files")
        if self.unreadable:
            shown = [f"row {row}{self._locate(row)}" for row in self.unreadable[:10]]
            shown += ["..."] if len(self.unreadable) > 10 else []
            left_out = n - len(kept)
            logger.warning("%d of %d %ss cannot be read and are left out: %s", left_out, n, self.noun, ", ".join(shown))
        return kept

    def _locate(self, row: int, said: str = "") -> str:
        """Tell the file of a row, if it is known and not said already, and its row in the whole data set, if this is a
        part of it."""
        stored = self._column[row][self._column_name]
        path = stored.get("path") if isinstance(stored, dict) else stored
        words = [path] if isinstance(path, str) and path not in said else []
        if self._column._indices is not None:
            words.append(f"row {self._column._indices.column(0)[row].as_py()} of the whole data set")
        return f" ({', '.join(words)})" if words else ""

    def _is_readable(self, row: int) -> bool:
        try:
            self._decode_rows(np.asarray([row]))
        except UnreadableSample:
            return False
        return True


def select_undecoded(dataset: Dataset, column: str) -> Dataset:
    """Select a column of images or recordings as bytes or paths, so that a bad one can be named by its row.

    Raises:
        ValueError: if the data set has a transform, which would not be applied.
    """
    if dataset.format["type"] == "custom":
        raise ValueError(
            f"the transform of the data set (set_transform, with_transform) would not be applied to column {column!r}: "
            "apply it by dataset.map(...), or remove it by dataset.with_format(None) and pass it as augmentation=..."
        )
    selected = dataset.select_columns([column])
    feature = dataset.features[column]
    if isinstance(feature, (Audio, Image)):
        selected = selected.cast_column(column, type(feature)(decode=False))
    return selected.with_format(None)


def list_stored_paths(column: Dataset, name: str) -> list[str] | None:
    """List the paths that an undecoded column holds beside its bytes, (N,); None if any is missing."""
    paths: list[str] = []
    arrow = column.with_format("arrow")
    for start in range(0, len(column), PATH_ROWS):
        values = arrow[start : start + PATH_ROWS][name]
        if not pa.types.is_struct(values.type) or values.type.get_field_index("path") < 0:
            return None
        for chunk in values.chunks:  # not joined: that would copy the bytes beside the paths
            paths += chunk.field("path").to_pylist()
        if not all(paths[start:]):
            return None
    return paths


def add_content(digest: Any, stored: Any) -> None:
    """Add the bytes of a stored image or recording to a digest, from the column or block by block from its file."""
    if not isinstance(stored, dict):
        digest.update(np.asarray(stored).tobytes())
    elif stored.get("bytes") is not None:
        digest.update(bytes(stored["bytes"]))
    elif "://" in (path := str(stored.get("path"))) or os.path.isfile(path):
        with open_binary(path) as file:
            while block := file.read(DIGEST_BLOCK):
                digest.update(block)
    else:
        digest.update(os.path.basename(path).encode())


def spread_rows(n_rows: int, n_samples: int) -> np.ndarray:
    """Select up to `n_samples` of `n_rows` rows, evenly spaced, ascending."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_samples, n_rows)).astype(np.int64))


def encode_labels(dataset: Dataset, label_column: str, names: dict[str, int] | None = None) -> np.ndarray:
    """Encode true labels as integers.

    Args:
        dataset: the data set.
        label_column: column of class labels, integers, whole numbers among floats, truth values or text.
        names: numbers of class names so far. New names are added, so that a class has the same number in every split
            that is encoded with the same dictionary.

    Returns:
        int64 array of shape (N,); -1 where a label is missing.

    Raises:
        ValueError: if a label is a fraction, or of another kind such as a list.
    """
    names = {} if names is None else names
    values = dataset.with_format(None).select_columns([label_column])[:][label_column]
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        values = [None if value is None or value < 0 else feature.names[value] for value in values]
        new_names = feature.names
    else:
        new_names = sorted({value for value in values if isinstance(value, str)})
    for name in new_names:
        names.setdefault(name, len(names))
    labels = np.full(len(values), -1, dtype=np.int64)
    for i, value in enumerate(values):
        if isinstance(value, str):
            labels[i] = names[value]
        elif value is not None and value == value:  # not NaN, which stands for a missing number
            labels[i] = _to_class(value, label_column)
    return labels


def _to_class(value: Any, label_column: str) -> int:
    if not isinstance(value, (bool, int, float)) or not float(value).is_integer():
        raise ValueError(
            f"label_column={label_column!r} holds {str(value)[:40]!r}: classes are whole numbers or text, one a sample"
        )
    return int(value)
