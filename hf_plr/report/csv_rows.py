"""Reading of CSV files that people write: every fault is told with its line, and foreign text is escaped."""

from __future__ import annotations

import csv
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence

from hf_plr.utils.csv_text import choose_delimiter, describe_csv_error

logger = logging.getLogger(__name__)

INTEGER = re.compile(r"(-?[0-9]{1,18})(\.0*)?", re.ASCII)  # pandas writes 3.0 where a column has gaps
LARGEST_SECOND = 1e9
MAX_QUOTED = 40  # characters of foreign text in a message


def read_rows(
    path: str | os.PathLike[str], columns: Sequence[str], required: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the fields by column of every row, stripped of spaces; rows without any text are skipped.

    Args:
        path: a CSV file with a header, UTF-8; fields are separated by commas, semicolons or tabs, as in the header.
        columns: columns that are known; others are passed over, and named in a warning.
        required: those of them that must be there.

    Raises:
        ValueError: naming file and line, if it is no CSV file, or has another header or rows of another length.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a byte order mark
            first = file.readline()
            reader = csv.reader(itertools.chain([first], file), delimiter=choose_delimiter(first), strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, columns, required)
            for fields in reader:
                if not any(field.strip() for field in fields):
                    continue  # spreadsheets end a table with rows of nothing but separators
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields under a header of {len(header)}"
                    )
                named = zip(header, fields, strict=True)
                yield reader.line_num, {name: field.strip() for name, field in named if name in columns}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as csv: {describe_csv_error(error)}") from error


def _check_header(
    path: str | os.PathLike[str], header: list[str], columns: Sequence[str], required: Sequence[str]
) -> None:
    least = "" if set(required) == set(columns) else f", or at least {','.join(required)}"
    expected = f"the header must be {','.join(columns)}{least}"
    missing = [name for name in required if name not in header]
    if missing:
        raise ValueError(f"{path}, line 1: no column {missing[0]!r}; {expected}")
    known = [name for name in header if name in columns]
    if len(set(known)) < len(known):
        raise ValueError(f"{path}, line 1: a column is there twice; {expected}")
    unknown = [quote(name) for name in header if name and name not in columns]
    if unknown:
        logger.warning("%s: not read, beside %s: %s.", path, ",".join(known), ", ".join(unknown))


def leave_out(path: str | os.PathLike[str], missing: Sequence[str], n_rows: int, labels_path: str) -> None:
    """Warn of rows of samples that a run does not have, which are left out.

    Args:
        path: the file.
        missing: line and sample of each such row, such as "line 2: sample 99".
        n_rows: number of all rows.
        labels_path: the run's labels.

    Raises:
        ValueError: if no row is of a sample of the run.
    """
    if missing and len(missing) == n_rows:
        others = "" if n_rows == 1 else f", nor is that of any of the other {n_rows - 1:,} rows"
        raise ValueError(f"{path}, {missing[0]} is not in {labels_path}{others}")
    if missing:
        are = "is of a sample" if len(missing) == 1 else "are of samples"
        counts = f"{len(missing):,} of {n_rows:,} rows {are}"
        logger.warning("%s: %s not in %s and left out, first %s.", path, counts, labels_path, missing[0])


def parse_second(where: str, text: str) -> float:
    """Parse a number of seconds; -1 for an empty field.

    Raises:
        ValueError: if it is not one in [0, 1e9], saying where.
    """
    if not text:
        return -1.0
    try:
        second = float(text)
    except ValueError as error:
        raise ValueError(f"{where}: start {quote(text)} is not a number of seconds") from error
    if not 0 <= second <= LARGEST_SECOND:
        raise ValueError(f"{where}: start {quote(text)} is not a number of seconds")
    return second


def parse_integer(where: str, column: str, text: str) -> int:
    """Parse an integer.

    Raises:
        ValueError: if it is not one, saying where.
    """
    found = INTEGER.fullmatch(text)
    if not found:
        raise ValueError(f"{where}: {column} {quote(text)} is not an integer")
    return int(found[1])


def parse_choice(where: str, column: str, text: str, allowed: Sequence[str]) -> str:
    """Return the one of the allowed texts that a text is, in any case.

    Raises:
        ValueError: if it is not, saying where.
    """
    if text.lower() not in allowed:
        raise ValueError(f"{where}: {column} {quote(text)} is unknown: use one of {', '.join(allowed)}")
    return text.lower()


def quote(text: str) -> str:
    """Escape and shorten foreign text."""
    return ascii(text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "...")
