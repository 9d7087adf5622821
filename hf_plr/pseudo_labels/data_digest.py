"""Record of a data set, by which files of features and labels are told from those of another one."""

from __future__ import annotations

import hashlib

from datasets import Dataset

from hf_plr.data.sample_store import DIGEST_ROWS, add_content, spread_rows
from hf_plr.pseudo_labels.data_record import DataRecord


def record_data(undecoded: Dataset, column: str) -> DataRecord:
    """Record a data set by the number of its rows and the contents of 16 of them, evenly spaced.

    Args:
        undecoded: the whole data set, as `hf_plr.data.sample_store.select_undecoded` returns it.
        column: its column of images or recordings.
    """
    digest = hashlib.sha256()
    for value in undecoded[spread_rows(len(undecoded), DIGEST_ROWS).tolist()][column]:
        add_content(digest, value)
    return DataRecord(len(undecoded), digest.hexdigest()[:16])
