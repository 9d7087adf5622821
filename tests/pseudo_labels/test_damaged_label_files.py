"""Damaged files of labels: an error that names the file, or labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.damaged import check_damaged

from hf_plr.pseudo_labels.label_files import LabelFile

pytestmark = pytest.mark.timeout(300)


LABELS = np.random.default_rng(0).integers(-1, 12, 60)


def write_label_file(path):
    frame = pd.DataFrame({"index": np.arange(60), "label": LABELS})
    if path.suffix == ".npy":
        np.save(path, LABELS)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)


@pytest.mark.parametrize("kind", ["npy", "csv", "parquet"])
def test_label_files(tmp_path, kind):
    path = tmp_path / f"labels.{kind}"
    write_label_file(path)

    def read():
        labels = LabelFile.open(str(path)).labels
        assert labels.ndim == 1
        assert labels.dtype.kind in "iu"
        assert len(labels) > 0
        assert labels.min() >= -1

    check_damaged(path, read, errors=(ValueError, TypeError))


def test_an_archive_and_a_pickle_are_no_npy(tmp_path):
    path = tmp_path / "labels.npy"
    with open(path, "wb") as file:
        np.savez(file, labels=LABELS)
    with pytest.raises(ValueError, match="cannot be read as npy"):
        LabelFile.open(str(path))
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"labels.npy cannot be read as npy: .*objects"):
        LabelFile.open(str(path))
    np.save(path, LABELS.astype("m8[s]"))
    with pytest.raises(TypeError, match=r"labels.npy: it holds timedelta64\[s\]"):
        LabelFile.open(str(path))
    np.save(path, np.array([1, 2**64 - 1], dtype=np.uint64))
    with pytest.raises(ValueError, match=r"labels.npy: label 18446744073709551615 is above"):
        LabelFile.open(str(path))
