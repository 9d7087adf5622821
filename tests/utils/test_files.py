"""Files that are whole, or as they were before."""

from __future__ import annotations

import os

import pytest

from hf_plr.utils.files import replacing
from hf_plr.utils.shards import list_files


def test_a_file_is_that_of_one_of_its_writers(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("before")
    with replacing(path) as first:
        first.write_text("a long text of the first")
        with replacing(str(path)) as second:  # of another process
            second.write_text("half")
            assert path.read_text() == "before"
            assert list_files([str(tmp_path)], (".csv", ".tmp"), "labels") == [str(path)]  # not what is unfinished
        assert path.read_text() == "half"
    assert path.read_text() == "a long text of the first"
    assert os.listdir(tmp_path) == ["labels.csv"]


@pytest.mark.parametrize("is_written", [False, True])
def test_a_file_is_as_before_where_its_writer_fails(tmp_path, is_written):
    path = tmp_path / "labels.csv"
    path.write_text("before")

    def fail():
        with replacing(path) as temporary:
            if is_written:
                temporary.write_text("half")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["labels.csv"]
