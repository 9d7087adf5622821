"""Reader of an auditor's marks: the marks.csv of a run's report.html, or one written by hand."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE, LabelFile
from hf_plr.refinement.cooccurrence import NOISE
from hf_plr.report.audit import Marks

RANDOM_SHEET = "random"
SHEETS = (RANDOM_SHEET, "most_confident", "least_confident", "changed")
MARKS = ("wrong", "right")
NOT_MARKED = ""
COLUMNS = ("index", "label", "sheet", "mark", "start", "end")
REQUIRED_COLUMNS = ("index", "mark")
UNITS_PER_SECOND = 1_000  # segments of a recording are told apart by the millisecond that they start at
LARGEST_SECOND = 1e9
INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
MAX_QUOTED = 40  # characters of foreign text in a message


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


def read_marks(path: str | os.PathLike[str], labels: LabelFile, all_random: bool = False) -> Marks:
    """Read marks and check them against the labels that they are of.

    The columns are index (row of the data set) and mark (wrong, right, or empty for a sample without a mark).
    report.html also writes label (pseudo-label that the auditor saw) and sheet (random, most_confident, least_confident
    or changed). A sample has one mark; it may have several rows, and is in the random draw if one of them is on that
    sheet. Without a column sheet none is in the draw, unless `all_random` says that all are. Where labels are of
    segments of recordings, the column start (in seconds, to the millisecond) says which segment of its row is meant; it
    may be missing for rows with a single one. A column end is not read.

    Args:
        path: a CSV file with a header.
        labels: the run's labels, as `read_labels` gives them.
        all_random: take the samples of a file without sheets for a uniform random draw.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and the line, if it cannot be read as marks, a sample is unknown or was marked wrong
            and right, or the labels are not the run's. Text from the file is shown escaped.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    rows = _parse(path, all_random)
    if not rows.lines:
        raise ValueError(f"{path} holds no marks: nothing follows its header")
    sample = _look_up_samples(rows, labels)
    label = np.asarray(labels.labels)[sample]
    _check_same_labels(rows, label, labels.path)
    marks = _merge_rows(rows, label, sample)
    if not len(marks.index):
        raise ValueError(f"{path} holds no marks: its column 'mark' is empty in every row")
    return marks


def read_labels(folder: str | os.PathLike[str]) -> LabelFile:
    """Read the labels in a run's output folder, with their index.

    Raises:
        FileNotFoundError: if it has none.
        ValueError, TypeError: if the file is damaged.
    """
    path = Path(folder) / PSEUDO_LABELS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {PSEUDO_LABELS_FILE}: an audit needs the output folder of a run that labels samples"
        )
    labels = LabelFile.open(str(path), "label")
    index = labels.index
    is_integer = index is not None and np.issubdtype(index.dtype, np.integer)
    if not is_integer or pd.DataFrame({"index": index, "start": _list_starts(labels)}).duplicated().any():
        raise ValueError(f"{path} has no column 'index' with a different integer for every sample")
    return labels


def _list_starts(labels: LabelFile) -> np.ndarray:
    """List the millisecond that each sample starts at, int64 (N,); zeros where samples are whole."""
    if labels.spans is None:
        return np.zeros(len(labels.labels), np.int64)
    return _round_to_units(labels.spans[:, 0])


def _round_to_units(seconds: np.ndarray) -> np.ndarray:
    bounded = np.clip(np.nan_to_num(seconds, nan=-1.0), -1.0, LARGEST_SECOND)
    rounded: np.ndarray = np.rint(bounded * UNITS_PER_SECOND).astype(np.int64)
    return rounded


def _parse(path: str | os.PathLike[str], all_random: bool) -> _Rows:
    lines, index, start, seen, random, mark = [], [], [], [], [], []
    for line, fields in _read_fields(path):
        where = f"{path}, line {line}"
        if "sheet" in fields and all_random:
            raise ValueError(f"{path} has a column 'sheet', which says what is random: leave --random out")
        lines.append(line)
        index.append(_integer(where, "index", fields["index"]))
        start.append(_second(where, fields["start"]) if "start" in fields else -1.0)
        seen.append(_integer(where, "label", fields["label"]) if "label" in fields else None)
        sheet = _choice(where, "sheet", fields["sheet"], SHEETS) if "sheet" in fields else None
        random.append(all_random if sheet is None else sheet == RANDOM_SHEET)
        mark.append(_choice(where, "mark", fields["mark"], MARKS) if fields["mark"] else NOT_MARKED)
    starts = _round_to_units(np.array(start, np.float64))
    random_rows, marks = np.array(random, bool), np.array(mark, object)
    return _Rows(str(path), lines, np.array(index, np.int64), starts, seen, random_rows, marks)


def _read_fields(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the fields of every row."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a byte order mark
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields under a header of {len(header)}"
                    )
                yield reader.line_num, dict(zip(header, (field.strip() for field in fields), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as csv: {error}") from error


def _check_header(path: str | os.PathLike[str], header: list[str]) -> None:
    expected = f"the header must be {','.join(COLUMNS)}, or at least {','.join(REQUIRED_COLUMNS)}"
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        raise ValueError(f"{path}, line 1: unknown column {_quote(unknown[0])}; {expected}")
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{path}, line 1: no column {missing[0]!r}; {expected}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line 1: a column is there twice; {expected}")


def _look_up_samples(rows: _Rows, labels: LabelFile) -> np.ndarray:
    """Look up the position of each row's sample in the labels.

    Raises:
        ValueError: if a sample is unknown, or the row does not say which segment of a recording is meant.
    """
    assert labels.index is not None
    starts = _list_starts(labels)
    by_name: dict[tuple[int, int], int] = {}
    by_index: dict[int, list[int]] = {}
    for i in np.flatnonzero(np.isin(labels.index, rows.index)).tolist():
        index = int(labels.index[i])
        by_name[index, int(starts[i])] = i
        by_index.setdefault(index, []).append(i)
    samples = []
    for line, index, start in zip(rows.lines, rows.index.tolist(), rows.start.tolist(), strict=True):
        is_named = start >= 0 and labels.spans is not None
        found = [by_name[index, start]] if is_named and (index, start) in by_name else []
        found = found if is_named else by_index.get(index, [])
        if not found:
            segment = f" with a segment at {start / UNITS_PER_SECOND:g} s" if is_named else ""
            raise ValueError(f"{rows.path}, line {line}: sample {index}{segment} is not in {labels.path}")
        if len(found) > 1:
            raise ValueError(
                f"{rows.path}, line {line}: row {index} has {len(found)} segments in {labels.path}: add the column "
                "'start' with the second at which the marked one begins"
            )
        samples += found
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


def _second(where: str, text: str) -> float:
    """Read a number of seconds; -1 for an empty field."""
    if not text:
        return -1.0
    try:
        second = float(text)
    except ValueError as error:
        raise ValueError(f"{where}: start {_quote(text)} is not a number of seconds") from error
    if not 0 <= second <= LARGEST_SECOND:
        raise ValueError(f"{where}: start {_quote(text)} is not a number of seconds")
    return second


def _integer(where: str, column: str, text: str) -> int:
    if not INTEGER.fullmatch(text):
        raise ValueError(f"{where}: {column} {_quote(text)} is not an integer")
    return int(text)


def _choice(where: str, column: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise ValueError(f"{where}: {column} {_quote(text)} is unknown: use one of {', '.join(allowed)}")
    return text


def _quote(text: str) -> str:
    """Escape and shorten foreign text."""
    return ascii(text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "...")
