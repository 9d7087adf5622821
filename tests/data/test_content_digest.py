"""Digests of samples by their content."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features
from helpers.tiny import deep_images
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.data.content_digest import (
    BLOCK_BYTES,
    WHOLE_BYTES,
    digest_content,
    digest_samples,
    format_digests,
    parse_digests,
)
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_store import ImageStore
from hf_plr.data.loading import load_train_and_test
from hf_plr.models.vision import small_vit_processor

LARGE = np.random.default_rng(0).bytes(3 * WHOLE_BYTES + 7)


def open_store(data):
    """The images of a data set."""
    return ImageStore(data, "image", ImageGeometry(small_vit_processor(16), 3))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_equal_bytes_and_only_these_have_equal_digests(one, other):
    assert (digest_content({"bytes": one, "path": "a"}) == digest_content({"bytes": other, "path": "a"})) == (
        one == other
    )


@pytest.mark.parametrize("content", [b"", b"x" * WHOLE_BYTES, LARGE[: WHOLE_BYTES + 1], LARGE])
def test_bytes_files_and_members_of_archives_have_one_digest(content, tmp_path):
    (tmp_path / "a.bin").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.bin", "inner/b.bin")
    path = str(tmp_path / "a.bin")
    stored = [
        {"bytes": content, "path": None},
        {"bytes": None, "path": path},
        path,
        {"bytes": None, "path": f"zip://inner/b.bin::{tmp_path / 'a.zip'}"},
    ]
    assert len({digest_content(each) for each in stored}) == 1


def test_of_a_large_file_its_size_its_ends_and_spread_blocks_count():
    expected = digest_content({"bytes": LARGE, "path": None})
    for changed in (0, len(LARGE) - 1, (len(LARGE) - BLOCK_BYTES) * 7 // 15):
        content = bytearray(LARGE)
        content[changed] ^= 1
        assert digest_content({"bytes": bytes(content), "path": None}) != expected
    assert digest_content({"bytes": LARGE[:-1], "path": None}) != expected


def test_arrays_differ_by_values_shape_and_rate():
    values = np.arange(6, dtype=np.float32)
    arrays = [values, values.reshape(2, 3), values + 1, values.astype(np.float64)]
    stored = [*arrays, *({"array": values, "sampling_rate": rate} for rate in (8_000, 16_000))]
    assert len({digest_content(each) for each in stored}) == len(stored)
    assert digest_content(values.tolist()) == digest_content(values.tolist())
    named = {"array": values, "sampling_rate": 8_000, "path": "gone.wav"}
    assert digest_content(named) == digest_content({"array": values, "sampling_rate": 8_000})


def test_samples_of_a_store_have_the_digests_of_their_rows():
    data = deep_images(20)
    store = open_store(data.select([*range(20), 3]))
    digests = digest_samples(store, slice(0, 21))
    assert digests.dtype == np.uint64
    assert len(np.unique(digests)) == 20
    assert digests[20] == digests[3]
    np.testing.assert_array_equal(digest_samples(store, slice(5, 9)), digests[5:9])
    np.testing.assert_array_equal(parse_digests(format_digests(digests)), digests)
    assert all(len(text) == 16 for text in format_digests(np.array([0, 1, 2**64 - 1], np.uint64)))


def test_columns_of_arrays_have_digests_too():
    features = Features({"image": Array2D((4, 4), "uint8")})
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 4)).astype(np.uint8)
    column = Dataset.from_dict({"image": list(images)}, features=features).with_format(None)
    values = column[:]["image"]
    assert len({digest_content(value) for value in values}) == 5


def test_a_renamed_file_in_another_folder_has_the_same_digest(tmp_path):
    for i, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        for j, row in enumerate(deep_images(4)):
            row["image"].save(tmp_path / folder / f"{i}-{j}.png")
    digests = []
    for folder in ("one", "two"):
        data, _ = load_train_and_test(str(tmp_path / folder), None, "train", "image")
        store = open_store(data)
        digests.append(digest_samples(store, slice(0, len(store))))
    np.testing.assert_array_equal(*digests)
