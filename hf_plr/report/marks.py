"""Reader of an auditor's marks: the marks.csv of a run's report.html, or one written by hand."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE, LabelFile
from hf_plr.refinement.cooccurrence import NOISE
from hf_plr.report.audit import Marks

RANDOM_SHEET = "random"
SHEETS = (RANDOM_SHEET, "most_confident", "least_confident", "changed")
MARKS = ("wrong", "right")
NOT_MARKED = ""
COLUMNS = ("index", "label", "sheet", "mark")
REQUIRED_COLUMNS = ("index", "mark")
INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
MAX_QUOTED = 40  # characters of foreign text in a message


@dataclass(frozen=True)
class _Rows:
    """The rows of a file of marks, n of them.

    Attributes:
        path: the file.
        lines: line of each row.
        index: row of the data set, shape (n,).
        seen: pseudo-label that the auditor saw, None where the file does not say it.
        random: True for a row of the random draw, shape (n,).
        mark: "wrong", "right" or "" (not marked), shape (n,).
    """

    path: str
    lines: list[int]
    index: np.ndarray
    seen: list[int | None]
    random: np.ndarray
    mark: np.ndarray


def read_marks(path: str | os.PathLike[str], labels: LabelFile, all_random: bool = False) -> Marks:
    """Read marks and check them against the labels that they are of.

    The columns are index (row of the data set) and mark (wrong, right, or empty for a sample without a mark).
    report.html also writes label (pseudo-label that the auditor saw) and sheet (random, most_confident, least_confident
    or changed). A sample has one mark; it may have several rows, and is in the random draw if one of them is on that
    sheet. Without a column sheet none is in the draw, unless `all_random` says that all are.

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
    label = _look_up_labels(rows, labels)
    _check_same_labels(rows, label, labels.path)
    marks = _merge_rows(rows, label)
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
    if index is None or not np.issubdtype(index.dtype, np.integer) or len(np.unique(index)) < len(index):
        raise ValueError(f"{path} has no column 'index' with a different integer for every sample")
    return labels


def _parse(path: str | os.PathLike[str], all_random: bool) -> _Rows:
    lines, index, seen, random, mark = [], [], [], [], []
    for line, fields in _read_fields(path):
        where = f"{path}, line {line}"
        if "sheet" in fields and all_random:
            raise ValueError(f"{path} has a column 'sheet', which says what is random: leave --random out")
        lines.append(line)
        index.append(_integer(where, "index", fields["index"]))
        seen.append(_integer(where, "label", fields["label"]) if "label" in fields else None)
        sheet = _choice(where, "sheet", fields["sheet"], SHEETS) if "sheet" in fields else None
        random.append(all_random if sheet is None else sheet == RANDOM_SHEET)
        mark.append(_choice(where, "mark", fields["mark"], MARKS) if fields["mark"] else NOT_MARKED)
    return _Rows(str(path), lines, np.array(index, np.int64), seen, np.array(random, bool), np.array(mark, object))


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


def _look_up_labels(rows: _Rows, labels: LabelFile) -> np.ndarray:
    """Look up the run's label of each row."""
    assert labels.index is not None
    order = np.argsort(labels.index, kind="stable")
    position = order[np.searchsorted(labels.index, rows.index, sorter=order).clip(max=len(order) - 1)]
    unknown = np.flatnonzero(labels.index[position] != rows.index)
    if len(unknown):
        first = unknown[0]
        raise ValueError(f"{rows.path}, line {rows.lines[first]}: sample {rows.index[first]} is not in {labels.path}")
    return np.asarray(labels.labels)[position]


def _check_same_labels(rows: _Rows, label: np.ndarray, labels_path: str) -> None:
    different = [i for i, seen in enumerate(rows.seen) if seen is not None and seen != label[i]]
    if different:
        first = different[0]
        raise ValueError(
            f"{rows.path} is of other labels than {labels_path}: {len(different)} of {len(rows.lines)} marks name "
            f"another label, the first in line {rows.lines[first]}, where sample {rows.index[first]} has "
            f"{rows.seen[first]} and not {label[first]}. Mark the report of this run, as it was last written"
        )


def _merge_rows(rows: _Rows, label: np.ndarray) -> Marks:
    """Merge the rows of each sample into one mark."""
    marked = np.flatnonzero(rows.mark != NOT_MARKED)
    index, first, sample = np.unique(rows.index[marked], return_index=True, return_inverse=True)
    first = marked[first]
    contradicting = np.flatnonzero(rows.mark[marked] != rows.mark[first][sample])
    if len(contradicting):
        here, before = marked[contradicting[0]], first[sample[contradicting[0]]]
        raise ValueError(
            f"{rows.path}, line {rows.lines[here]}: sample {rows.index[here]} is marked {rows.mark[here]} here and "
            f"{rows.mark[before]} in line {rows.lines[before]}: settle on one"
        )
    drawn = rows.index[rows.random & (label != NOISE)]
    return Marks(
        index=index,
        label=label[first],
        wrong=rows.mark[first] == "wrong",
        random=np.isin(index, rows.index[rows.random]),
        unmarked=len(np.setdiff1d(drawn, index)),
    )


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
