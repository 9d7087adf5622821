"""Samples of an earlier run are found again by content, whatever became of their rows and names."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.data.content_digest import format_digests
from hf_plr.pseudo_labels.known_samples import LastLabels, match_samples, round_spans


def last_labels(digests, files=None, spans=None, labels=None):
    digests = None if digests is None else np.array(digests, np.uint64)
    labels = np.arange(len(files if digests is None else digests)) if labels is None else np.array(labels)
    return LastLabels("out", labels, digests, files, None if spans is None else np.array(spans))


def match(last, digests, files=None, spans=None, rows=None):
    rows = np.arange(len(digests)) if rows is None else np.array(rows)
    return match_samples(
        last, np.array(digests, np.uint64), files, None if spans is None else np.array(spans, np.int64), rows
    )


def test_other_order_removed_and_new_samples():
    found = match(last_labels([7, 8, 9]), [9, 5, 7])
    assert found.position.tolist() == [2, -1, 0]
    assert (found.known, found.new, found.removed, found.before) == (2, 1, 1, 3)
    assert found.describe() == "2 of 3 samples known, 1 new, 1 removed"


def test_names_settle_between_samples_of_equal_content():
    last = last_labels([7, 7, 7], ["a/1.png", "a/2.png", "b/3.png"])
    found = match(last, [7, 7, 7], ["x/3.png", "a/2.png", "renamed.png"])
    assert found.position.tolist() == [2, 1, 0]
    assert (found.renamed, found.moved) == (1, 1)
    assert found.describe() == "3 of 3 samples known, 0 new, 0 removed, 1 renamed, 1 in other folders"
    assert match(last_labels([7, 7]), [7, 7]).position.tolist() == [0, 1]  # without names the order does


def test_a_folder_further_above_moves_no_sample():
    last = last_labels([7, 8], ["1.png", "a/2.png"])
    found = match(last, [7, 8, 9], ["monday/1.png", "monday/a/2.png", "tuesday/1.png"])
    assert found.describe() == "2 of 2 samples known, 1 new, 0 removed"
    assert match(last, [7, 8], ["b/1.png", "b/2.png"]).moved == 1


def test_the_path_goes_before_the_name_and_names_never_override_contents():
    last = last_labels([7, 7], ["a/1.png", "b/1.png"])
    assert match(last, [7, 7], ["b/1.png", "a/1.png"]).position.tolist() == [1, 0]
    assert match(last_labels([7, 8], ["1.png", "2.png"]), [8, 7], ["1.png", "2.png"]).position.tolist() == [1, 0]


def test_more_copies_of_a_known_sample_are_known():
    found = match(last_labels([7, 8]), [7, 7, 7, 6])
    assert found.position.tolist() == [0, 0, 0, -1]
    assert (found.known, found.copies, found.new, found.removed) == (3, 2, 1, 1)
    assert found.describe() == "1 of 2 samples known, 1 new, 1 removed, 2 more copies of known ones"


def test_the_order_of_the_data_decides_and_not_that_of_the_store():
    """Recordings are stored by length."""
    assert match(last_labels([7, 7, 7]), [7, 7, 7], rows=[2, 0, 1]).position.tolist() == [2, 0, 1]


def test_segments_are_told_apart_by_start_and_end():
    last = last_labels([7, 7], spans=[[0, 500], [500, 1000]])
    found = match(last, [7, 7, 7], spans=[[500, 1000], [0, 500], [0, 600]], rows=[0, 0, 0])
    assert found.position.tolist() == [1, 0, -1]
    assert round_spans(np.array([[0.1 + 0.2, 1.0005]])).tolist() == [[300, 1000]]
    with pytest.raises(ValueError, match="out has labels of segments, but this run trains on whole samples"):
        match(last, [7])
    with pytest.raises(ValueError, match="out has labels of whole samples, but this run trains on segments"):
        match(last_labels([7]), [7], spans=[[0, 500]])


def test_folders_of_older_releases_are_matched_by_names():
    last = last_labels(None, ["a/1.png", "b/1.png"])
    assert match(last, [1, 2, 3], ["b/1.png", "a/1.png", "a/2.png"]).position.tolist() == [1, 0, -1]
    found = match(last_labels(None, ["1.png", "2.png"]), [1, 2, 3], ["old/2.png", "old/1.png", "new/4.png"])
    assert found.position.tolist() == [1, 0, -1]  # the folder of all files is another one now
    with pytest.raises(ValueError, match="by an older release, without digests of contents"):
        match(last_labels(None, ["1.png", "1.png"]), [1], ["1.png"])
    with pytest.raises(ValueError, match="by an older release, without digests of contents"):
        match(last, [1, 2])


def test_data_without_a_known_sample_are_refused():
    with pytest.raises(ValueError, match="out has none of these 2 samples: continue_from needs the data of that run"):
        match(last_labels([7, 8]), [1, 2])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=15), st.lists(st.integers(0, 6), min_size=1, max_size=15))
def test_a_known_sample_has_the_content_of_its_partner_and_no_partner_is_left_over(before, now):
    last = last_labels(before)
    if not set(before) & set(now):
        with pytest.raises(ValueError, match="none of these"):
            match(last, now)
        return
    found = match(last, now)
    assert found.known + found.new == len(now)
    for content, position in zip(now, found.position.tolist(), strict=True):
        assert (position == -1) == (content not in before)
        assert position == -1 or before[position] == content
    once = sum((Counter(before) & Counter(now)).values())
    assert found.removed == len(before) - once
    assert found.copies == found.known - once
    assert len(set(found.position[found.position >= 0].tolist())) == once


def test_labels_are_read_and_damaged_ones_are_refused_by_name(tmp_path):
    path = tmp_path / "pseudo_labels.parquet"
    with pytest.raises(FileNotFoundError, match=r"holds no pseudo_labels\.parquet"):
        LastLabels.read(str(tmp_path))
    digests = np.array([2**64 - 1, 5], np.uint64)
    columns = {"index": [0, 1], "file": ["a", "b"], "start": [0.0, 1.0], "end": [1.0, 2.5], "label": [3, -1]}
    pd.DataFrame({**columns, "digest": format_digests(digests)}).to_parquet(path)
    found = LastLabels.read(str(tmp_path))
    np.testing.assert_array_equal(found.digests, digests)
    assert found.labels.tolist() == [3, -1]
    assert found.files == ["a", "b"]
    assert found.spans.tolist() == [[0, 1000], [1000, 2500]]
    assert found.sizes() == {3: 1}
    pd.DataFrame({"index": [0], "label": [2]}).to_parquet(path)
    older = LastLabels.read(str(tmp_path))
    assert (older.digests, older.files, older.spans) == (None, None, None)
    for damaged, fault in (
        ({"label": [0.5, 1.0]}, "no column 'label' of integers"),
        ({"label": [0, -2]}, "label -2 is below -1"),
        ({"label": [0, 1], "digest": ["00", "zz"]}, "invalid literal"),
        ({"label": [0, 1], "digest": ["00", None]}, "column 'digest' has empty values"),
        ({"cluster": [0, 1]}, "no column 'label' of integers"),
    ):
        pd.DataFrame(damaged).to_parquet(path)
        with pytest.raises(
            ValueError, match=rf"pseudo_labels\.parquet cannot be read as the labels of a run: .*{fault}"
        ):
            LastLabels.read(str(tmp_path))
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match=r"pseudo_labels\.parquet cannot be read as the labels of a run"):
        LastLabels.read(str(tmp_path))
