"""Files that are whole, or as they were before."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_plr.utils.files import give_usual_mode, replacing
from hf_plr.utils.shards import list_files


def test_a_folder_that_is_not_there_is_told_of_by_the_name_of_the_file(tmp_path):
    message = r"^the folder of .*absent.x\.csv does not exist$"
    with pytest.raises(FileNotFoundError, match=message), replacing(tmp_path / "absent" / "x.csv"):
        pass


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


@pytest.fixture(params=[0o022, 0o077])
def usual_mode(request):
    """The mode that the umask gives to new files."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode_of(path):
    return path.stat().st_mode & 0o777


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_whoever_may_read_a_folder_may_read_its_arrays(tmp_path, usual_mode):
    arrays, weights = tmp_path / "arrays.safetensors", tmp_path / "model.safetensors"
    with replacing(arrays) as temporary:
        save_file({"a": np.zeros(3)}, temporary)
    save_file({"a": np.zeros(3)}, weights)  # as transformers does
    weights.chmod(0o600)  # as some versions of safetensors do
    give_usual_mode(tmp_path)
    assert (mode_of(arrays), mode_of(weights)) == (usual_mode, usual_mode)
    assert sorted(os.listdir(tmp_path)) == ["arrays.safetensors", "model.safetensors"]
