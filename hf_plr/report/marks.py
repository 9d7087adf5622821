"""Reads an auditor's marks: the marks.csv of a run's report.html, or one written by hand."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE, LabelFile
from hf_plr.report.audit import Marks

RANDOM_SHEET = "random"
SHEETS = (RANDOM_SHEET, "most_confident", "least_confident", "changed")
MARKS = ("wrong", "right")
COLUMNS = ("index", "label", "sheet", "mark")
NEEDED = ("index", "mark")
INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
LONGEST = 40


def read_marks(path: str | os.PathLike[str], labels: LabelFile, all_random: bool = False) -> Marks:
    """Read marks and check them against the labels that they are of.

    The columns are index (row of the data set) and mark (wrong or right), and where report.html wrote them label
    (pseudo-label that the auditor saw) and sheet (random, most_confident, least_confident or changed). A sample may be
    on several sheets, with one mark; it is in the random draw if it is on that sheet. Without a column sheet no sample
    is, unless `all_random` says that all are.

    Args:
        path: a CSV file with a header.
        labels: the run's labels, as `read_labels` gives them.
        all_random: take the samples of a file without sheets for a uniform random draw.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and the line, if it is no such file, a sample is unknown or was marked wrong and
            right, or labels are not the run's. What the file says is shown escaped.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    assert labels.index is not None
    lines, index, seen, random, wrong = [], [], [], [], []
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        if "sheet" in row and all_random:
            raise ValueError(f"{path} has a column 'sheet', which says what is random: leave --random out")
        lines.append(line)
        index.append(_integer(where, "index", row["index"]))
        seen.append(_integer(where, "label", row["label"]) if "label" in row else None)
        random.append(_one_of(where, "sheet", row["sheet"], SHEETS) == RANDOM_SHEET if "sheet" in row else all_random)
        wrong.append(_one_of(where, "mark", row["mark"], MARKS) == "wrong")
    if not lines:
        raise ValueError(f"{path} holds no marks: nothing follows its header")
    rows = np.array(index, np.int64)
    label = _labels_of(path, lines, rows, labels)
    _check_same_labels(path, lines, rows, seen, label, labels.path)
    return _each_once(path, lines, rows, label, np.array(wrong), np.array(random))


def read_labels(folder: str | os.PathLike[str]) -> LabelFile:
    """The labels in a run's output folder, with their index.

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


def _rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and fields of every row."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a mark
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
    expected = f"the header must be {','.join(COLUMNS)}, or at least {','.join(NEEDED)}"
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        raise ValueError(f"{path}, line 1: unknown column {_shown(unknown[0])}; {expected}")
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise ValueError(f"{path}, line 1: no column {missing[0]!r}; {expected}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line 1: a column is there twice; {expected}")


def _labels_of(path: str | os.PathLike[str], lines: list[int], rows: np.ndarray, labels: LabelFile) -> np.ndarray:
    """The run's label of each marked sample."""
    assert labels.index is not None
    order = np.argsort(labels.index, kind="stable")
    position = order[np.searchsorted(labels.index, rows, sorter=order).clip(max=len(order) - 1)]
    unknown = np.flatnonzero(labels.index[position] != rows)
    if len(unknown):
        raise ValueError(f"{path}, line {lines[unknown[0]]}: sample {rows[unknown[0]]} is not in {labels.path}")
    return np.asarray(labels.labels)[position]


def _check_same_labels(
    path: str | os.PathLike[str],
    lines: list[int],
    rows: np.ndarray,
    seen: list[int | None],
    label: np.ndarray,
    labels_path: str,
) -> None:
    other = [i for i, found in enumerate(seen) if found is not None and found != label[i]]
    if other:
        first = other[0]
        raise ValueError(
            f"{path} is of other labels than {labels_path}: {len(other)} of {len(lines)} marks name another label, the "
            f"first in line {lines[first]}, where sample {rows[first]} has {seen[first]} and not {label[first]}. Mark "
            "the report of this run, as it was last written"
        )


def _each_once(
    path: str | os.PathLike[str],
    lines: list[int],
    rows: np.ndarray,
    label: np.ndarray,
    wrong: np.ndarray,
    random: np.ndarray,
) -> Marks:
    index, first, sample = np.unique(rows, return_index=True, return_inverse=True)
    conflicting = np.flatnonzero(wrong != wrong[first[sample]])
    if len(conflicting):
        line, before = lines[conflicting[0]], lines[first[sample[conflicting[0]]]]
        raise ValueError(
            f"{path}, line {line}: sample {rows[conflicting[0]]} is marked {MARKS[not wrong[conflicting[0]]]} here and "
            f"{MARKS[bool(wrong[conflicting[0]])]} in line {before}: settle on one"
        )
    drawn = np.zeros(len(index), bool)
    np.logical_or.at(drawn, sample, random)
    return Marks(index, label[first], wrong[first], drawn)


def _integer(where: str, column: str, text: str) -> int:
    if not INTEGER.fullmatch(text):
        raise ValueError(f"{where}: {column} {_shown(text)} is no integer")
    return int(text)


def _one_of(where: str, column: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise ValueError(f"{where}: {column} {_shown(text)} is unknown: use one of {', '.join(allowed)}")
    return text


def _shown(text: str) -> str:
    """Foreign text, escaped and of bounded length."""
    return ascii(text if len(text) <= LONGEST else text[: LONGEST - 3] + "...")
