"""What files of features and labels tell of the data set that their rows are numbered in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa

KEY = b"hf_plr.data"  # in the metadata of a parquet file


@dataclass(frozen=True)
class DataRecord:
    """The data set whose rows a file numbers.

    Attributes:
        rows: number of its rows, those of all shards together.
        digest: text that differs between data sets, of some of its rows.
    """

    rows: int
    digest: str

    def metadata(self) -> dict[bytes, bytes]:
        """Return metadata for the schema of a parquet file."""
        return {KEY: json.dumps(asdict(self)).encode()}

    def __str__(self) -> str:
        return f"{self.rows:,} rows with digest {self.digest}"


def read_record(schema: pa.Schema) -> DataRecord | None:
    """Read the record of a parquet file's schema; None where it has none.

    Raises:
        ValueError: if it is damaged.
    """
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
        return DataRecord(int(values["rows"]), str(values["digest"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its metadata {KEY.decode()!r} are damaged: {error}") from error


def keep_record(schema: pa.Schema) -> dict[bytes, bytes]:
    """Metadata of a table of the same samples: the record of this schema as it is, nothing where it has none."""
    return {key: value for key, value in (schema.metadata or {}).items() if key == KEY}


def merge_records(records: Mapping[str, DataRecord | None]) -> DataRecord | None:
    """Merge the records of files by their names; None where no file has one.

    Raises:
        ValueError: if two files are of different data sets, naming them.
    """
    known = {name: record for name, record in records.items() if record is not None}
    first_name = next(iter(known), "")
    for name, record in known.items():
        if record != known[first_name]:
            raise ValueError(f"{first_name} and {name} are of different data sets: {known[first_name]}, and {record}")
    return known.get(first_name)
