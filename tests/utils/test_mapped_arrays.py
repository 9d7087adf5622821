"""Arrays in files without a name are zeros, and a full disk is an error before anything is written to them."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
from accelerate import Accelerator

from hf_plr.units.frame_labels import SharedLabels
from hf_plr.utils.mapped_arrays import allocate_array, reserve


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
