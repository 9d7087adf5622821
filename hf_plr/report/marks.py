"""Reader of an auditor's marks: the marks.csv of a run's report.html, or one written by hand."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE, LabelFile
from hf_plr.refinement.cooccurrence import NOISE
from hf_plr.report.audit import Marks
from hf_plr.report.csv_rows import LARGEST_SECOND, leave_out, parse_choice, parse_integer, parse_second, read_rows

RANDOM_SHEET = "random"
SHEETS = (RANDOM_SHEET, "most_confident", "least_confident", "changed")
MARKS = ("wrong", "right")
NOT_MARKED = ""
COLUMNS = ("index", "label", "sheet", "mark", "start", "end")
REQUIRED_COLUMNS = ("index", "mark")
UNITS_PER_SECOND = 1_000  # segments of a recording are told apart by the millisecond that they start at


@dataclass(frozen=True)
class _Rows:
    """The rows of a file of marks, n of them.

    Attributes:
        path: the file.
        lines: line of each row.
        index: row of the data set, shape (n,).
        start: millisecond of the recording that a segment starts at, -1 where the file does not say it, shape (n,).
        seen: pseudo-label that the auditor saw, None where the file does not say it.
        random: True for a row of the random draw, shape (n,).
        mark: "wrong", "right" or "" (not marked), shape (n,).
    """

    path: str
    lines: list[int]
    index: np.ndarray
    start: np.ndarray
    seen: list[int | None]
    random: np.ndarray
    mark: np.ndarray

    def select(self, positions: np.ndarray) -> _Rows:
        """Select some rows by their positions (m,)."""
        lines, seen = ([values[i] for i in positions] for values in (self.lines, self.seen))
        arrays = {name: getattr(self, name)[positions] for name in ("index", "start", "random", "mark")}
        return replace(self, lines=lines, seen=seen, **arrays)


def read_marks(path: str | os.PathLike[str], labels: LabelFile, all_random: bool = False) -> Marks:
    """Read marks and check them against the labels that they are of.

    The columns are index (row of the data set) and mark (wrong, right, or empty for a sample without a mark).
    report.html also writes label (pseudo-label that the auditor saw) and sheet (random, most_confident, least_confident
    or changed). A sample has one mark; it may have several rows, and is in the random draw if one of them is on that
    sheet. Without a column sheet none is in the draw, unless `all_random` says that all are. Where labels are of
    segments of recordings, the column start (in seconds, to the millisecond) says which segment of its row is meant; it
    may be missing for rows with a single one. A column end is not read. Rows of samples that the labels do not have,
    such as unreadable ones, are left out with a warning.

    Args:
        path: a CSV file with a header.
        labels: the run's labels, as `read_labels` gives them.
        all_random: take the samples of a file without sheets for a uniform random draw.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and the line, if it cannot be read as marks, no sample is known, one was marked
            wrong and right, or the labels are not the run's. Text from the file is shown escaped.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    rows = _parse(path, all_random)
    if not rows.lines:
        raise ValueError(f"{path} holds no marks: nothing follows its header")
    sample = _look_up_samples(rows, labels)
    rows, sample = rows.select(np.flatnonzero(sample >= 0)), sample[sample >= 0]
    label = np.asarray(labels.labels)[sample]
    _check_same_labels(rows, label, labels.path)
    marks = _merge_rows(rows, label, sample)
    if not len(marks.index):
        raise ValueError(f"{path} holds no marks: its column 'mark' is empty in every row")
    return marks


def read_labels(folder: str | os.PathLike[str], purpose: str = "an audit") -> LabelFile:
    """Read the labels in a run's output folder, with their index.

    Args:
        folder: the folder.
        purpose: what they are for, in words for the message where there are none.

    Raises:
        FileNotFoundError: if it has none.
        ValueError, TypeError: if the file is damaged.
    """
    path = Path(folder) / PSEUDO_LABELS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {PSEUDO_LABELS_FILE}: {purpose} needs the output folder of a run that labels samples"
        )
    labels = LabelFile.open(str(path), "label")
    index = labels.index
    is_integer = index is not None and np.issubdtype(index.dtype, np.integer)
    if not is_integer or pd.DataFrame({"index": index, "start": list_starts(labels)}).duplicated().any():
        raise ValueError(f"{path} has no column 'index' with a different integer for every sample")
    return labels


def list_starts(labels: LabelFile) -> np.ndarray:
    """List the millisecond that each sample starts at, int64 (N,); zeros where samples are whole."""
    if labels.spans is None:
        return np.zeros(len(labels.labels), np.int64)
    return round_to_units(labels.spans[:, 0])


def round_to_units(seconds: np.ndarray) -> np.ndarray:
    """Round seconds to milliseconds, int64; -1 for unknown ones."""
    bounded = np.clip(np.nan_to_num(seconds, nan=-1.0), -1.0, LARGEST_SECOND)
    rounded: np.ndarray = np.rint(bounded * UNITS_PER_SECOND).astype(np.int64)
    return rounded


def _parse(path: str | os.PathLike[str], all_random: bool) -> _Rows:
    lines, index, start, seen, random, mark = [], [], [], [], [], []
    for line, fields in read_rows(path, COLUMNS, REQUIRED_COLUMNS):
        where = f"{path}, line {line}"
        if "sheet" in fields and all_random:
            raise ValueError(f"{path} has a column 'sheet', which says what is random: leave --random out")
        lines.append(line)
        index.append(parse_integer(where, "index", fields["index"]))
        start.append(parse_second(where, fields["start"]) if "start" in fields else -1.0)
        seen.append(parse_integer(where, "label", fields["label"]) if "label" in fields else None)
        sheet = parse_choice(where, "sheet", fields["sheet"], SHEETS) if "sheet" in fields else None
        random.append(all_random if sheet is None else sheet == RANDOM_SHEET)
        mark.append(parse_choice(where, "mark", fields["mark"], MARKS) if fields["mark"] else NOT_MARKED)
    starts = round_to_units(np.array(start, np.float64))
    random_rows, marks = np.array(random, bool), np.array(mark, object)
    return _Rows(str(path), lines, np.array(index, np.int64), starts, seen, random_rows, marks)


def _look_up_samples(rows: _Rows, labels: LabelFile) -> np.ndarray:
    """Look up the position of each row's sample in the labels, -1 if it is not there.

    Raises:
        ValueError: if no sample is there, or the row does not say which segment of a recording is meant.
    """
    assert labels.index is not None
    starts = list_starts(labels)
    by_name: dict[tuple[int, int], int] = {}
    by_index: dict[int, list[int]] = {}
    for i in np.flatnonzero(np.isin(labels.index, rows.index)).tolist():
        index = int(labels.index[i])
        by_name[index, int(starts[i])] = i
        by_index.setdefault(index, []).append(i)
    samples, missing = [], []
    for line, index, start in zip(rows.lines, rows.index.tolist(), rows.start.tolist(), strict=True):
        is_named = start >= 0 and labels.spans is not None
        found = [by_name[index, start]] if is_named and (index, start) in by_name else []
        found = found if is_named else by_index.get(index, [])
        if not found:
            segment = f" with a segment at {start / UNITS_PER_SECOND:g} s" if is_named else ""
            missing.append(f"line {line}: sample {index}{segment}")
        if len(found) > 1:
            raise ValueError(
                f"{rows.path}, line {line}: row {index} has {len(found)} segments in {labels.path}: add the column "
                "'start' with the second at which the marked one begins"
            )
        samples.append(found[0] if found else -1)
    leave_out(rows.path, missing, len(samples), labels.path)
    return np.array(samples, np.int64)


def _check_same_labels(rows: _Rows, label: np.ndarray, labels_path: str) -> None:
    different = [i for i, seen in enumerate(rows.seen) if seen is not None and seen != label[i]]
    if different:
        first = different[0]
        raise ValueError(
            f"{rows.path} is of other labels than {labels_path}: {len(different)} of {len(rows.lines)} marks name "
            f"another label, the first in line {rows.lines[first]}, where sample {rows.index[first]} has "
            f"{rows.seen[first]} and not {label[first]}. Mark the report of this run, as it was last written"
        )


def _merge_rows(rows: _Rows, label: np.ndarray, sample: np.ndarray) -> Marks:
    """Merge the rows of each sample into one mark."""
    marked = np.flatnonzero(rows.mark != NOT_MARKED)
    merged, first, code = np.unique(sample[marked], return_index=True, return_inverse=True)
    first = marked[first]
    contradicting = np.flatnonzero(rows.mark[marked] != rows.mark[first][code])
    if len(contradicting):
        here, before = marked[contradicting[0]], first[code[contradicting[0]]]
        raise ValueError(
            f"{rows.path}, line {rows.lines[here]}: sample {rows.index[here]} is marked {rows.mark[here]} here and "
            f"{rows.mark[before]} in line {rows.lines[before]}: settle on one"
        )
    drawn = sample[rows.random & (label != NOISE)]
    return Marks(
        index=rows.index[first],
        label=label[first],
        wrong=rows.mark[first] == "wrong",
        random=np.isin(merged, sample[rows.random]),
        unmarked=len(np.setdiff1d(drawn, merged)),
    )
