"""`pseudo_labels.parquet`: a row per sample of a run, with its label."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.data.content_digest import format_digests
from hf_plr.pseudo_labels.data_record import DataRecord
from hf_plr.pseudo_labels.label_files import DIGEST_COLUMN, level_column
from hf_plr.refinement.cluster_tree import Level
from hf_plr.utils.files import replacing

WRITTEN_ROWS = 1 << 20  # that are in memory at once


def write_pseudo_labels(
    path: str | os.PathLike[str],
    rows: np.ndarray,
    columns: dict[str, np.ndarray],
    files: list[str] | None = None,
    segments: np.ndarray | None = None,
    digests: np.ndarray | None = None,
    levels: Mapping[int, Level] | None = None,
    record: DataRecord | None = None,
) -> None:
    """Write one row per sample.

    The columns are index (row of the data set), file, label, previous_label (-1 = noise), confidence, digest, and a
    level_N for each level. The file is written atomically.

    Args:
        path: path of the new file.
        rows: index per sample, (N,).
        columns: label, previous_label and confidence per sample, each (N,), such as memory-mapped ones.
        files: file per sample, (N,); None leaves the column out.
        segments: start and end in seconds per sample, (N, 2), for the columns start and end; None leaves them out.
        digests: digest of each sample's content, uint64 (N,), written as 16 hexadecimal digits; None leaves them out.
        levels: levels of the tree of the clusters, by their number of clusters N.
        record: the data set whose rows `rows` are, for the file's metadata; None leaves it out.
    """
    keys = (rows,) if segments is None else (segments[:, 0], rows)  # the last one counts most
    order = np.lexsort(keys)  # sounds are stored by length
    writer = None
    with replacing(path) as temporary:
        try:
            for start in range(0, max(len(order), 1), WRITTEN_ROWS):
                part = order[start : start + WRITTEN_ROWS]
                frame = pd.DataFrame(
                    {
                        "index": rows[part],
                        **({} if files is None else {"file": [files[position] for position in part.tolist()]}),
                        **({} if segments is None else {"start": segments[part, 0], "end": segments[part, 1]}),
                        "label": columns["label"][part],
                        "previous_label": columns["previous_label"][part],
                        "confidence": columns["confidence"][part].astype(np.float32),
                        **({} if digests is None else {DIGEST_COLUMN: format_digests(digests[part])}),
                        **{
                            level_column(n): level.apply(columns["label"][part])
                            for n, level in sorted((levels or {}).items())
                        },
                    }
                )
                table = pa.Table.from_pandas(frame, preserve_index=False)
                if record is not None:
                    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **record.metadata()})
                writer = pq.ParquetWriter(temporary, table.schema) if writer is None else writer
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
