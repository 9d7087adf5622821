"""Files that are whole or as they were before, and arrays in files without a name.

Such arrays are zeros, and a full disk is an error before anything is written to them.
"""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
from accelerate import Accelerator

from hf_plr.units.frame_labels import SharedLabels
from hf_plr.utils.files import allocate_array, replacing, reserve
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


def test_an_array_is_of_zeros_and_has_no_name(tmp_path):
    array = allocate_array((3, 5), np.int16, tmp_path / "new")
    assert (array == np.zeros((3, 5), np.int16)).all()
    array[1] = 7
    assert array.sum() == 35
    assert os.listdir(tmp_path / "new") == []
    assert allocate_array((0, 4), np.float32, tmp_path).shape == (0, 4)


def test_a_disk_without_room_is_an_error(tmp_path, monkeypatch):
    n_bytes = shutil.disk_usage(tmp_path).free + 2**40
    with pytest.raises(OSError, match=r"No space left on device, which needs .* GiB") as caught:
        allocate_array((n_bytes,), np.uint8, tmp_path)
    assert caught.value.filename == str(tmp_path)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr("hf_plr.units.frame_labels.is_single_process", lambda accelerator: False)
    with pytest.raises(RuntimeError, match=r"labels of all frames could not be allocated in .*No space left"):
        SharedLabels(accelerator, tmp_path).allocate(n_bytes, np.dtype(np.uint8))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_room_is_reserved_where_the_file_system_can(tmp_path, monkeypatch, number):
    reserved = []

    def allocate(file, start, length):
        reserved.append((start, length))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with open(tmp_path / "file", "wb") as file:
        if number == errno.ENOSPC:  # another process was faster, or there is a quota
            with pytest.raises(OSError, match="No space left") as caught:
                reserve(file.fileno(), 5000, tmp_path)
            assert caught.value.filename == str(tmp_path)
        else:
            reserve(file.fileno(), 5000, tmp_path)
            assert os.path.getsize(tmp_path / "file") == 5000
    assert reserved == [(0, 5000)]
