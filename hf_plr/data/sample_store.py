"""Samples of a data set by position, where unreadable ones are named or left out."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Audio, Dataset, Image
from torch.utils.data import Dataset as TorchDataset

from hf_plr.data.archives import open_binary
from hf_plr.data.batch_buffers import BatchBuffers
from hf_plr.data.decoded_cache import DecodedCache
from hf_plr.data.file_stamps import stamp_column
from hf_plr.data.manifest import Manifest, ManifestFile
from hf_plr.data.true_labels import encode_labels
from hf_plr.data.unreadable import UnreadableSample
from hf_plr.utils.distributed import run_on_main
from hf_plr.utils.progress import track

logger = logging.getLogger(__name__)

DIGEST_ROWS = 16
DIGEST_BLOCK = 1 << 20  # bytes of a file that are in memory together
PATH_ROWS = 256  # whose bytes are in memory together
SKIP_HINT = "--skip_unreadable (skip_unreadable=True) leaves it out."


class Items(list[dict[str, Any]]):
    """Samples that were loaded together.

    Attributes:
        inputs: their inputs as one tensor (B, ...), whose rows are those of the items; None if sizes differ.
    """

    inputs: torch.Tensor | None = None


Finding = str | int | None  # why a row is unreadable, or its size; None where there is nothing to say


class SampleStore(TorchDataset, ABC):
    """Base of the stores of images and recordings: `{"index": int, input_name: tensor}`, optionally with a label.

    A store decodes nothing when it is built. Until every row has been decoded once, in this run or in an earlier one
    that left a manifest, it is not checked: a sample that cannot be decoded is then zeros, and its item has "fault" 1
    (others 0), which `collate` and workers pass on. Whoever goes through the samples first, each process through its
    own part, gives the batches to `note_faults`; then `examine` and `settle` name what is wrong, or leave it out. See
    `hf_plr.features.first_pass.check_samples`, or `check` for one process alone. Afterwards a sample that cannot be
    decoded is an error.

    Args:
        dataset: the data set; it is not changed.
        column: its column of images or recordings.
        label_column: column of true labels for scoring, returned as "labels"; None leaves them out.
        label_names: see `encode_labels`.
        skip_unreadable: leave unreadable samples out with a warning, rather than raise.
        state: the processes that open the data set together; None for one alone.
        numbers: number of each row in the whole data set, for messages, (N,); None where this is the whole.

    Attributes:
        noun: name of a sample in messages.
        input_name: key of an item's tensor.
        unreadable_error: class of the error if a sample cannot be decoded.
        decode_batch: samples that `check` decodes together.
        is_checked: True if all samples are known to be readable.
        revision: number of changes of the samples so far; workers that were started before such a change know an older
            state.
        labels: true label of each row of the data set, -1 = unknown; None without a label column.
        rows: row of the data set at each position; shape (len(self),). A recording that is cut into segments has as
            many positions.
        segments: start and end in seconds of each position, float64 (len(self), 2); None where samples are whole.
        unreadable: rows that were left out, ascending.

    Raises:
        ValueError: if the data set is empty.
    """

    noun: str
    input_name: str
    unreadable_error: type[UnreadableSample]
    decode_batch: int

    rows: np.ndarray
    segments: np.ndarray | None = None

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        label_column: str | None,
        label_names: dict[str, int] | None,
        skip_unreadable: bool = False,
        state: PartialState | None = None,
        numbers: np.ndarray | None = None,
    ):
        if len(dataset) == 0:
            raise ValueError("the data set is empty: give one with at least one row")
        self.labels = None if label_column is None else encode_labels(dataset, label_column, label_names)
        self.is_checked = False
        self.revision = 0
        self.unreadable: list[int] = []
        self._column = select_undecoded(dataset, column)
        self._column_name = column
        self._fingerprint = str(dataset._fingerprint)
        self._skip_unreadable = skip_unreadable
        self._state = state
        self._numbers = numbers
        self._suspects: set[int] = set()
        self._manifest: ManifestFile | None = None
        self._cache: DecodedCache | None = None
        self._is_complete = False
        self._buffers = BatchBuffers()
        self._known: dict[int, Finding] = {}  # of unreadable rows, from a manifest

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """Everything that a worker needs that is not forked."""
        state = vars(self) | {"_state": None, "_buffers": BatchBuffers()}
        if self._cache is not None and not self._cache.can_be_sent:
            state["_cache"] = None
        return state

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> Items:
        chosen = np.asarray(positions)
        inputs, faults = (self._load_inputs(chosen), None) if self.is_checked else self._load_suspects(chosen)
        items = Items(
            {"index": int(position), self.input_name: tensor}
            for position, tensor in zip(positions, inputs, strict=True)
        )
        items.inputs = inputs if isinstance(inputs, torch.Tensor) else None
        if faults is not None:
            for item, fault in zip(items, faults, strict=True):
                item["fault"] = fault
        if self.labels is not None:
            for item in items:
                item["labels"] = int(self.labels[self.rows[item["index"]]])
        return items

    @abstractmethod
    def batch(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Load the model's input at these positions, int64 of shape (B,), returned as "index"; no labels."""

    @property
    def is_cached(self) -> bool:
        """True if all decoded samples are kept."""
        if self._cache is None:
            return False
        self._is_complete = self._is_complete or self._cache.seems_complete(self._number(np.arange(len(self))))
        return self._is_complete

    @property
    def undecoded_column(self) -> Dataset:
        """Column of images or recordings as it is stored; its rows are those that `rows` names."""
        return self._column

    # ---- the first pass ------------------------------------------------------------------------------------------

    def note_faults(self, batch: dict[str, torch.Tensor]) -> None:
        """Take the faults out of a batch, and remember its samples that have one."""
        faults = batch.pop("fault", None)
        if faults is not None and faults.any():
            self._suspects.update(self.rows[batch["index"][faults != 0].numpy()].tolist())

    def examine(self) -> dict[int, Finding]:
        """Find out what is wrong with the rows that had a fault on this process, each by itself; forgets them."""
        suspects, self._suspects = sorted(self._suspects), set()
        return {row: self._examine(row) for row in suspects}

    def settle(self, found: dict[int, Finding]) -> None:
        """Take over what a pass over all samples has found.

        All processes give the same, and the main one notes it, also where that ends the run: the next one knows at
        its start.

        Args:
            found: what is wrong with rows, from `examine` of all processes. None is a fault that did not come again.

        Raises:
            UnreadableSample: naming the first unreadable row, unless these are left out.
            ValueError: if none is left.
        """
        if self._manifest is not None and (self._state is None or self._state.is_main_process):
            unreadable, sizes = split_findings(found)
            self._manifest.write(self._make_manifest([*self.unreadable, *unreadable], sizes))
        self._adopt(found)
        self.is_checked = True
        self.revision += 1

    def check(self, progress: bool = False) -> SampleStore:
        """Decode every sample once on this process alone, unless that is known of them, and settle; returns itself.

        Raises:
            UnreadableSample, ValueError: as `settle`.
        """
        if not self.is_checked:
            starts = range(0, len(self), self.decode_batch)
            for start in track(starts, f"Reading {self.noun}s", len(starts), progress):
                for item in self.__getitems__(range(start, min(start + self.decode_batch, len(self)))):
                    if item["fault"]:
                        self._suspects.add(int(self.rows[item["index"]]))
            self.settle(self.examine())
        return self

    def _open_manifest(self, folder: str | os.PathLike[str] | None, settings: str) -> Manifest | None:
        """Read the manifest of these rows, the same for all processes; None if there is none, or it is out of date."""
        if folder is None:
            return None
        key = f"{self._fingerprint}|{self._column_name}|{self._stamp}|{settings}"
        self._manifest = ManifestFile(folder, key, len(self._column))

        def read() -> tuple[Manifest | None, dict[int, Finding]]:
            assert self._manifest is not None
            manifest = self._manifest.read()
            reasons: dict[int, Finding] = {}
            if manifest is not None and len(manifest.unreadable):
                first = int(manifest.unreadable[0])
                reasons.update(dict.fromkeys(manifest.unreadable.tolist(), ""))
                reasons[first] = self._examine(first)
                if not isinstance(reasons[first], str):  # with another library, or another file
                    return None, {}
            return manifest, reasons

        manifest, reasons = run_on_main(self._state, read, f"reading what is known of the {self.noun}s")
        if manifest is not None:
            self.is_checked = True
            self._known = reasons
        return manifest

    @functools.cached_property
    def _stamp(self) -> str:
        """Text that changes with the files of the column; asked for on all processes together."""
        return stamp_column(self._column, self._column_name, self._state)

    def _adopt(self, found: dict[int, Finding]) -> None:
        """Leave unreadable rows out, correct sizes, and order the positions anew."""
        unreadable, sizes = split_findings(found)
        for row, reason in unreadable.items():
            if not self._skip_unreadable:
                raise self.unreadable_error(f"{reason}{self._locate(row, reason)}. {SKIP_HINT}")
        self.unreadable = sorted({*self.unreadable, *unreadable})
        n = len(self._column)
        if len(self.unreadable) == n:
            raise ValueError(f"none of the {n} {self.noun}s can be read: check the files")
        self._order(sizes)
        self._is_complete = False
        if unreadable:
            shown = [f"row {row}{self._locate(row)}" for row in list(unreadable)[:10]]
            shown += ["..."] if len(unreadable) > 10 else []
            words = f"%d of %d %ss cannot be read and {'is' if len(unreadable) == 1 else 'are'} left out: %s"
            logger.warning(words, len(unreadable), n, self.noun, ", ".join(shown))

    @abstractmethod
    def _order(self, sizes: dict[int, int]) -> None:
        """Set what belongs to positions, without unreadable rows; `sizes` corrects what was assumed of some rows."""

    @abstractmethod
    def _make_manifest(self, unreadable: Sequence[int], sizes: dict[int, int]) -> Manifest:
        """What is known when all rows are checked: `sizes` as for `_order`."""

    @abstractmethod
    def _examine(self, row: int) -> Finding:
        """Decode a row by itself: why that fails, or its size if rows have sizes of their own, known or not."""

    # ---- decoding ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _load_inputs(self, positions: np.ndarray) -> Sequence[torch.Tensor] | torch.Tensor:
        """Load one tensor per position, decoded now or before; raises an `UnreadableSample`."""

    @abstractmethod
    def _make_placeholder(self, position: int) -> torch.Tensor:
        """Zeros in place of a sample."""

    @abstractmethod
    def _number(self, positions: np.ndarray) -> np.ndarray:
        """Numbers in the cache of the samples at these positions (B,)."""

    def _load_suspects(self, positions: np.ndarray) -> tuple[Sequence[torch.Tensor] | torch.Tensor, list[int]]:
        """Load as `_load_inputs`, with zeros where that fails; also returns 1 for each of these, and 0 for others."""
        try:
            return self._load_inputs(positions), [0] * len(positions)
        except UnreadableSample:
            inputs, faults = [], []
        for position in positions:
            try:
                inputs.append(self._load_inputs(np.array([position]))[0])
                faults.append(0)
            except UnreadableSample:
                inputs.append(self._make_placeholder(int(position)))
                faults.append(1)
        return inputs, faults

    def _read_column(self, rows: np.ndarray) -> list[Any]:
        """Read the column's values in these rows."""
        return self._column[[int(row) for row in rows]][self._column_name]

    def _locate(self, row: int, said: str = "") -> str:
        """Tell the file of a row, and its row in the whole data set.

        The file is told if it is known and not said already, the row if this is a part of a data set.
        """
        stored = self._column[row][self._column_name]
        path = stored.get("path") if isinstance(stored, dict) else stored
        words = [path] if isinstance(path, str) and path not in said else []
        if self._numbers is not None:
            words.append(f"row {self._numbers[row]} of the whole data set")
        elif self._column._indices is not None:
            words.append(f"row {self._column._indices.column(0)[row].as_py()} of the whole data set")
        return f" ({', '.join(words)})" if words else ""

    # ---- what is known of the samples ----------------------------------------------------------------------------

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


def split_findings(found: dict[int, Finding]) -> tuple[dict[int, str], dict[int, int]]:
    """Why rows are unreadable, by ascending row, and the true sizes of others."""
    unreadable = {row: finding for row, finding in sorted(found.items()) if isinstance(finding, str)}
    return unreadable, {row: finding for row, finding in found.items() if isinstance(finding, int)}


def collate_notes(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack what items have beside their inputs, (B,): "labels", and "fault" before the store is checked."""
    names = [name for name in ("labels", "fault") if name in items[0]]
    return {name: torch.tensor([item[name] for item in items]) for name in names}


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
    elif stored.get("array") is not None:
        digest.update(f"{stored.get('sampling_rate')}|".encode())
        digest.update(np.asarray(stored["array"]).tobytes())
    elif "://" in (path := str(stored.get("path"))) or os.path.isfile(path):
        with open_binary(path) as file:
            while block := file.read(DIGEST_BLOCK):
                digest.update(block)
    else:
        digest.update(os.path.basename(path).encode())


def spread_rows(n_rows: int, n_samples: int) -> np.ndarray:
    """Select up to `n_samples` of `n_rows` rows, evenly spaced, ascending."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_samples, n_rows)).astype(np.int64))
