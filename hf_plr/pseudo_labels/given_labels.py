"""Labels that jobs made beforehand, for a run without a stage of its own."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from hf_plr.pseudo_labels.cell_targets import CELL_TARGETS_FILE, read_cell_targets
from hf_plr.pseudo_labels.data_record import DataRecord, merge_records
from hf_plr.pseudo_labels.given_samples import REMEDY, check_digests, check_names, find_positions
from hf_plr.pseudo_labels.label_files import (
    CELL_COLUMN,
    DIGEST_COLUMN,
    FILE_COLUMN,
    INDEX_COLUMN,
    SPAN_COLUMNS,
    LabelFile,
    take_whole,
)
from hf_plr.pseudo_labels.soft_targets import SoftTargets
from hf_plr.refinement import NOISE
from hf_plr.refinement.blending import SoftCells
from hf_plr.utils.distributed import locate_rows
from hf_plr.utils.serialization import name_file_in_errors, validate_array
from hf_plr.utils.shards import list_files

logger = logging.getLogger(__name__)

ENDINGS = (".parquet", ".npy", ".csv")
LARGEST_LABEL = 2**31 - 1  # that files of labels hold
CONFIDENCE_COLUMN = "confidence"
COLUMNS = (CONFIDENCE_COLUMN, CELL_COLUMN, DIGEST_COLUMN, FILE_COLUMN)  # beside those of `LabelFile`


class GivenLabels:
    """Labels, confidences and soft targets per sample; a clusterer that gives each sample its label.

    Args:
        labels: label per sample, -1 = noise, int64 of shape (N,).
        confidence: confidence of each label in [0, 1], float32 of shape (N,).
        source: file or folder that they are of.
        soft: soft targets, or None where targets are hard.
        target: with soft targets, the column of each sample's own cluster, -1 = none, shape (N,).

    Attributes:
        n_missing: samples that the files which were read do not tell of; these are noise.
    """

    def __init__(
        self,
        labels: np.ndarray,
        confidence: np.ndarray,
        source: str,
        soft: SoftTargets | None = None,
        target: np.ndarray | None = None,
    ):
        self.labels = labels
        self.confidence = confidence
        self.source = source
        self.soft = soft
        self.target = target
        self.n_missing = 0

    @classmethod
    def read(
        cls,
        path: str,
        rows: np.ndarray,
        segments: np.ndarray | None,
        n_rows: int,
        record: DataRecord | None = None,
        digest: Callable[[np.ndarray], np.ndarray] | None = None,
        list_names: Callable[[], list[str] | None] | None = None,
    ) -> GivenLabels:
        """Read the labels of some samples; samples that the files do not tell of are noise.

        Args:
            path: a file of labels, or a folder of such files, of which only .parquet, .npy and .csv files are read. The
                column index tells the row of the data set; a .npy file, and files without this column, count the rows
                one after another.
            rows: row of the data set of each sample, shape (N,).
            segments: start and end in seconds of each sample, (N, 2); None where samples are whole.
            n_rows: number of rows of the data set.
            record: what is known of the data set; files that name another one are refused.
            digest: digests the samples at some positions (n,), uint64 (n,); 256 are compared with the column digest of
                files that have it, and files that differ are refused. None compares none.
            list_names: lists the file of each sample, (N,), or None where they are not known; compared with the column
                file of files without digests.

        Raises:
            FileNotFoundError: if nothing is there.
            ValueError, TypeError: if files are damaged, shards are missing, or they label other samples, naming them.
        """
        columns, with_index = _read_columns(path, record)
        labels = columns["label"].to_numpy(np.int64)
        if labels.max(initial=NOISE) > LARGEST_LABEL:
            raise ValueError(f"{path} has a label {labels.max()}: number clusters from 0 to at most {LARGEST_LABEL:,}")
        if not with_index and len(labels) != n_rows:
            raise ValueError(f"{path} has {len(labels):,} labels, but the data set has {n_rows:,} rows")
        index = columns[INDEX_COLUMN].to_numpy()
        outside = (index < 0) | (index >= n_rows)
        if outside.any():
            raise ValueError(
                f"{path} has a label of row {index[outside][0]}, but the data set has {n_rows:,} rows: the labels are "
                f"of other data. {REMEDY}"
            )
        position = find_positions(path, columns, rows, segments)
        is_known = position >= 0
        if not is_known.any():
            raise ValueError(f"{path} has no label of any of the {len(rows):,} samples")
        if digest is not None and DIGEST_COLUMN in columns:
            check_digests(path, columns[DIGEST_COLUMN], position, rows, digest)
        elif list_names is not None and FILE_COLUMN in columns:
            check_names(path, columns[FILE_COLUMN], position, rows, list_names())

        def spread(values: np.ndarray, missing: float) -> np.ndarray:
            return np.where(is_known, values[position], missing).astype(values.dtype)

        confidence = np.where(labels == NOISE, 0.0, 1.0)
        if CONFIDENCE_COLUMN in columns:
            confidence = _take_numbers(path, columns[CONFIDENCE_COLUMN])
            if not ((confidence >= 0) & (confidence <= 1)).all():
                raise ValueError(f"{path}: confidences must be in [0, 1]")
        given = cls(spread(labels, NOISE), spread(confidence.astype(np.float32), 0.0), path)
        given.n_missing = int((~is_known).sum())
        arrays = read_cell_targets(path) if os.path.isdir(path) else None
        if arrays is None and os.path.isdir(path) and CELL_COLUMN in columns:
            raise ValueError(
                f"{path} has labels with a column {CELL_COLUMN!r}, but no {CELL_TARGETS_FILE}, which is written last: "
                "refine them again"
            )
        if arrays is not None:
            if CELL_COLUMN not in columns:
                raise ValueError(f"{path} has soft targets by cell, but its labels have no column {CELL_COLUMN!r}")
            cell = spread(_take_numbers(path, columns[CELL_COLUMN], whole=True), -1)
            with name_file_in_errors(os.path.join(path, CELL_TARGETS_FILE)):
                given.soft, given.target = _make_soft_targets(arrays, cell)
        return given

    def digest(self) -> str:
        """Compute a text that differs between labels, for the settings of a run."""
        digest = hashlib.sha256()
        for array in (self.labels, self.confidence):
            digest.update(np.ascontiguousarray(array).tobytes())
        if self.soft is not None:
            for name, values in sorted(self.soft.state_dict().items()):
                digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def make_targets(self, min_confidence: float) -> tuple[np.ndarray, int, SoftTargets | None]:
        """Make the targets of all samples.

        Args:
            min_confidence: samples of less confident labels have no loss.

        Returns:
            Position of each sample's prototype, -1 = none, int32 of shape (N,); the number of prototypes; and soft
            targets, None where targets are hard.
        """
        is_doubtful = self.confidence < min_confidence
        own = self.labels if self.target is None else self.target
        own = np.where(is_doubtful, NOISE, own)
        ids = np.unique(own[own != NOISE])
        targets = np.where(own != NOISE, np.searchsorted(ids, own), NOISE).astype(np.int32)
        if self.soft is None:
            return targets, len(ids), None
        cell = np.where(is_doubtful, len(self.soft.cells) - 1, self.soft.cell)  # the last one is empty
        return targets, len(ids), SoftTargets(self.soft.cells.select_columns(ids), cell.astype(np.int32))

    # ---- as a clusterer ----------------------------------------------------------------------------------------------

    def fit_predict_shard(self, features: torch.Tensor, accelerator: Accelerator) -> np.ndarray:
        """Return the labels of this process's samples, whatever their features (n, D)."""
        start, _ = locate_rows(accelerator, len(features))
        return self.labels[start : start + len(features)]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """A digest of the labels, by which a resumed run knows that they are the same."""
        return {"digest": self.digest()}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the labels are read again."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def _read_columns(path: str, record: DataRecord | None) -> tuple[pd.DataFrame, bool]:
    """Read index, label and what else is needed of all files; and whether they have an index of their own."""
    files = list_files([path], ENDINGS, "labels")
    opened = [LabelFile.open(file, may_be_empty=len(files) > 1, others=COLUMNS) for file in files]
    of_files = merge_records({file.path: file.record for file in opened})
    try:
        merge_records({"the data set": record, path: of_files})
    except ValueError as error:
        raise ValueError(f"{error}. {REMEDY}") from None
    opened = [file for file in opened if len(file.labels)]
    if not opened:
        raise ValueError(f"{path}: none of the {len(files)} files holds labels")
    with_index = all(file.index is not None for file in opened)
    if not with_index and any(file.index is not None for file in opened):
        raise ValueError(f"{path}: some files have a column {INDEX_COLUMN!r}, and some have none")
    frames = []
    for file in opened:
        frame = pd.DataFrame({"label": np.asarray(file.labels)})
        if file.index is not None:
            if file.index.dtype.kind not in "iu":
                raise TypeError(f"{file.path}: column {INDEX_COLUMN!r} holds {file.index.dtype}, not rows of the data")
            frame[INDEX_COLUMN] = file.index
        if file.spans is not None:
            frame[list(SPAN_COLUMNS)] = file.spans
        if file.others is not None:
            frame = frame.assign(**{str(name): values.to_numpy() for name, values in file.others.items()})
        frames.append(frame)
    columns = pd.concat(frames, ignore_index=True)
    if not with_index:
        columns[INDEX_COLUMN] = np.arange(len(columns))
    return columns, with_index


def _take_numbers(path: str, column: pd.Series, whole: bool = False) -> np.ndarray:
    """Take a column of numbers, float64, or int64 where they are whole, shape (n,)."""
    values = column.to_numpy()
    values = take_whole(values) if whole else values
    if values.dtype.kind not in ("iu" if whole else "iuf"):
        wanted = "integers" if whole else "numbers"
        raise ValueError(f"{path}: column {column.name!r} has to hold {wanted}, without empty rows")
    return values.astype(np.int64 if whole else np.float64)


def _make_soft_targets(arrays: dict[str, np.ndarray], cell: np.ndarray) -> tuple[SoftTargets, np.ndarray]:
    """Make soft targets from the arrays of `write_cell_targets`; an empty cell is added for cells of -1."""
    n_columns = int(validate_array(arrays, "n_columns", "integers", (1,), 1)[0])
    target = validate_array(arrays, "target", "integers", (None,), NOISE, n_columns - 1)
    n_cells = len(target)
    if cell.max() >= n_cells:
        raise ValueError(f"it has {n_cells} cells, but a label is of cell {cell.max()}")
    validate_array(arrays, "codes", "integers", (n_cells, None), NOISE)
    known = np.where(cell < 0, 0, cell).astype(np.int32)
    soft = SoftTargets.from_state({**arrays, "cell": known}, len(cell), n_columns).cells
    n_cases, n_parts = soft.shares_of_case.shape
    cells = SoftCells(
        np.vstack([soft.codes, np.zeros((1, n_parts), soft.codes.dtype)]),
        np.append(soft.case, n_cases),
        np.vstack([soft.shares_of_case, np.zeros(n_parts)]),
        soft.bases,
    )
    position = np.where(cell < 0, n_cells, cell).astype(np.int32)
    return SoftTargets(cells, position), np.append(target, NOISE)[position]
