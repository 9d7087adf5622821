"""Decoded images in a memory-mapped file."""

from __future__ import annotations

import os

import pytest
import torch
from datasets import Dataset

from hf_plr.data.image_store import ImageGeometry, ImageStore, UnreadableImage
from hf_plr.data.pixel_cache import PixelCache
from hf_plr.models.vision import small_vit_processor


@pytest.fixture
def geometry() -> ImageGeometry:
    return ImageGeometry(small_vit_processor(16), 3)


def test_images_are_decoded_once_and_then_read_from_the_file(some_digits, geometry, tmp_path, monkeypatch):
    in_memory = ImageStore(some_digits, "image", geometry)
    first = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path)
    assert sorted(name.rsplit(".")[-1] for name in os.listdir(tmp_path)) == ["json", "uint8"]
    monkeypatch.setattr("hf_plr.data.image_decoding.ImageDecoder.decode", lambda *_: pytest.fail("decoded again"))
    second = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path)
    some = torch.tensor([202, 0, 17])
    for store in (first, second):
        assert store.is_cached
        assert torch.equal(store.pixels(some), in_memory.pixels(some))
        assert torch.equal(store[5]["pixel_values"], in_memory[5]["pixel_values"])


def test_other_images_sizes_and_torn_files_are_decoded_anew(some_digits, geometry, tmp_path):
    ImageStore(some_digits, "image", geometry, cache_dir=tmp_path)
    ImageStore(some_digits.select(range(50)), "image", geometry, cache_dir=tmp_path)
    ImageStore(some_digits, "image", ImageGeometry(small_vit_processor(32), 3), cache_dir=tmp_path)
    files = sorted(tmp_path.glob("*.uint8"))
    assert len(files) == 3
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:-1])
    for store in (some_digits, some_digits.select(range(50))):
        for size in (16, 32):
            ImageStore(store, "image", ImageGeometry(small_vit_processor(size), 3), cache_dir=tmp_path)
    assert files[0].read_bytes() == whole


def test_too_many_images_for_the_bound_leave_no_file(some_digits, geometry, tmp_path):
    store = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path, cache_bytes=1000)
    assert not store.is_cached
    assert os.listdir(tmp_path) == []


def test_unreadable_rows_are_remembered_and_an_error_leaves_no_file(some_digits, geometry, tmp_path):
    images = some_digits.select(range(5)).cast_column("image", some_digits.features["image"]).to_list()
    images[3]["image"]["bytes"] = b"no image"
    damaged = Dataset.from_list(images, features=some_digits.features)
    with pytest.raises(UnreadableImage, match="image 3 cannot be read"):
        ImageStore(damaged, "image", geometry, cache_dir=tmp_path)
    assert os.listdir(tmp_path) == []
    for _ in range(2):
        store = ImageStore(damaged, "image", geometry, cache_dir=tmp_path, skip_unreadable=True)
        assert store.unreadable == [3]
        assert store.rows.tolist() == [0, 1, 2, 4]
        assert torch.equal(
            store.pixels(torch.tensor([3])), ImageStore(some_digits, "image", geometry).pixels(torch.tensor([4]))
        )
    with pytest.raises(UnreadableImage, match="image 3 cannot be read"):
        ImageStore(damaged, "image", geometry, cache_dir=tmp_path)


def test_two_writers_with_one_process_id_do_not_meet(tmp_path):
    """Machines that share a folder number their processes alike."""
    first, second = (PixelCache(tmp_path, "key", (2, 1, 1, 1)) for _ in range(2))
    with first.create() as one:
        one.fill_(1)
        with second.create() as other:
            other.fill_(2)
        assert one.tolist() == [[[[1]]], [[[1]]]]
