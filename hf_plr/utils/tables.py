"""Tables of samples in files, a block of rows at a time: .parquet, or .csv for whoever reads no parquet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.utils.files import replacing

ENDINGS = (".csv", ".parquet")
ROW_GROUP = 1 << 18


def check_ending(path: str | os.PathLike[str], content: str) -> str:
    """Find out of which kind a table is to be: ".csv" or ".parquet".

    Raises:
        ValueError: if the file has another ending; it names what `content` says, such as "labels".
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path}: {content} are written as {' or '.join(ENDINGS)}; name such a file")
    return ending


@contextlib.contextmanager
def writing_table(
    path: str | os.PathLike[str], schema: pa.Schema, content: str = "tables"
) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that writes blocks of rows; at the end of the context the file is there as a whole.

    A .csv is UTF-8 with a header, commas, and nothing where a value is missing; it has no metadata.

    Args:
        path: a .csv or .parquet file.
        schema: columns of all blocks.
        content: what the rows are, for messages.

    Raises:
        ValueError: as `check_ending`.
        OSError: if the file cannot be written; what was there stays.
    """
    ending = check_ending(path, content)
    with replacing(path) as temporary:
        if ending == ".parquet":
            with pq.ParquetWriter(temporary, schema) as writer:
                yield lambda block: writer.write_table(block, row_group_size=ROW_GROUP)
            return
        with open(temporary, "w", encoding="utf-8", newline="") as stream:

            def write(block: pa.Table, header: bool = False) -> None:
                frame = block.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
                frame.to_csv(stream, header=header, index=False, lineterminator="\n")

            write(schema.empty_table(), header=True)
            yield write
