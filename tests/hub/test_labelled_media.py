"""Media that go to the Hub with labels: those of the run, by content or by name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Image

from hf_plr.data.content_digest import digest_content, format_digests
from hf_plr.hub.label_dataset import select_labelled_media


def test_labels_of_other_data_are_refused(tmp_path, all_digits):
    pd.DataFrame({"index": [0, 5000], "label": [0, 1]}).to_parquet(tmp_path / "pseudo_labels.parquet")
    with pytest.raises(ValueError, match="labels row 5000, but the data set has 1797 rows"):
        select_labelled_media(tmp_path, all_digits, "image")
    for name in ("a.png", "b.png"):
        all_digits[0]["image"].save(tmp_path / name)
    data = Dataset.from_dict({"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")]})
    data = data.cast_column("image", all_digits.features["image"])
    frame = pd.DataFrame({"index": [0, 1], "file": ["in/a.png", "in/b.png"], "label": [0, 1]})
    frame.to_parquet(tmp_path / "pseudo_labels.parquet")
    assert len(select_labelled_media(tmp_path, data, "image")) == 2
    frame["file"] = ["in/a.png", "in/c.png"]
    frame.to_parquet(tmp_path / "pseudo_labels.parquet")
    with pytest.raises(ValueError, match=r"labels c.png in row 1, but there the data set has b.png"):
        select_labelled_media(tmp_path, data, "image")


def test_contents_of_the_media_are_compared_where_the_labels_have_digests(tmp_path, some_digits):
    path = tmp_path / "pseudo_labels.parquet"
    stored = some_digits.cast_column("image", Image(decode=False))["image"]
    rows = np.arange(2, 60)  # the first two could not be read
    digests = format_digests(np.array([digest_content(stored[row]) for row in rows], np.uint64))
    frame = pd.DataFrame({"index": rows, "label": 0, "digest": digests})
    frame.to_parquet(path)
    assert len(select_labelled_media(tmp_path, some_digits, "image")) == 58
    reversed_rows = some_digits.select(np.arange(60)[::-1])
    with pytest.raises(ValueError, match=rf"labels an image with digest {digests[0]} in row 2, but there the data set"):
        select_labelled_media(tmp_path, reversed_rows, "image")
    frame.assign(digest=[None, *digests[1:]]).to_parquet(path)  # of older releases, in a table that was put together
    assert len(select_labelled_media(tmp_path, some_digits, "image")) == 58

    files = [tmp_path / f"{row}.png" for row in range(60)]
    for file, one in zip(files, stored[:60], strict=True):
        file.write_bytes(one["bytes"])
    data = Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", Image())
    frame.assign(file=[f"{row}.png" for row in rows]).to_parquet(path)
    assert len(select_labelled_media(tmp_path, data, "image")) == 58
    files[7].write_bytes(stored[8]["bytes"])  # a camera that gives a name again
    with pytest.raises(ValueError, match=rf"digest {digests[5]} \(7\.png\) in row 7, but .*/7\.png\): it is not"):
        select_labelled_media(tmp_path, data, "image")
