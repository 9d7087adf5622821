"""Decoding: equal to the image processor, cached or not, and clear about what it cannot read."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from hf_plr.data.image_store import ImageGeometry, ImageStore, UnreadableImage, collate_images
from hf_plr.data.sample_store import encode_labels
from hf_plr.models.vision import small_vit_processor


def png(array):
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def data_set(rows):
    return Dataset.from_dict({"image": rows}, features=Features({"image": Image(decode=False)})).cast_column(
        "image", Image()
    )


def tiff(array):
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.fixture
def colour():
    rng = np.random.default_rng(0)
    return data_set([png(rng.integers(0, 255, (20 + i, 30, 3), dtype=np.uint8)) for i in range(7)])


@pytest.mark.parametrize("kind", ["vit", "bit"])
def test_equals_the_image_processor(colour, kind):
    processor = small_vit_processor(32)
    if kind == "bit":  # shortest edge, centre crop and ImageNet's mean, as DINOv2 has it
        processor = BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    geometry = ImageGeometry(processor, 3)
    store = ImageStore(colour, "image", geometry)
    batch = collate_images(store.__getitems__([0, 3, 6]))
    ours = geometry.normalise(geometry.unit_range(batch["pixel_values"]))
    theirs = processor([colour[i]["image"] for i in (0, 3, 6)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
    assert batch["index"].tolist() == [0, 3, 6]


def test_without_cache_the_same(colour):
    geometry = ImageGeometry(small_vit_processor(16), 3)
    cached = ImageStore(colour, "image", geometry)
    decoded = ImageStore(colour, "image", geometry, cache_bytes=0)
    for i in range(len(colour)):
        assert torch.equal(cached[i]["pixel_values"], decoded[i]["pixel_values"])


def test_grey_and_transparent_images_become_three_channels():
    grey = png(np.full((9, 9), 77, dtype=np.uint8))
    transparent = png(np.full((9, 9, 4), 77, dtype=np.uint8))
    store = ImageStore(data_set([grey, transparent]), "image", ImageGeometry(small_vit_processor(16), 3))
    assert store[0]["pixel_values"].shape == (3, 16, 16)
    assert store[0]["pixel_values"].unique().tolist() == [77]


def test_an_unreadable_image_is_named_or_left_out(colour):
    rows = [png(np.full((9, 9), i, dtype=np.uint8)) for i in range(6)]
    rows[2] = {"bytes": rows[2]["bytes"][:40], "path": None}
    rows[4] = None
    geometry = ImageGeometry(small_vit_processor(16), 3)
    with pytest.raises(UnreadableImage, match=r"image 2 cannot be read .*--skip_unreadable"):
        ImageStore(data_set(rows), "image", geometry)
    for cache_bytes in (0, 2**20):
        store = ImageStore(data_set(rows), "image", geometry, cache_bytes=cache_bytes, skip_unreadable=True)
        assert store.unreadable == [2, 4]
        assert store.rows.tolist() == [0, 1, 3, 5]
        assert store[2]["pixel_values"].unique().tolist() == [3]
        assert store[3]["index"] == 3


def test_empty_data_and_all_bad_data_are_refused():
    geometry = ImageGeometry(small_vit_processor(16), 3)
    with pytest.raises(ValueError, match="empty"):
        ImageStore(data_set([]), "image", geometry)
    with pytest.raises(ValueError, match="none of the 2 images"):
        ImageStore(data_set([None, {"bytes": b"no", "path": None}]), "image", geometry, skip_unreadable=True)


def test_sixteen_bit_and_turned_images():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    turned = PILImage.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    buffer = io.BytesIO()
    exif = PILImage.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to show it
    turned.save(buffer, "PNG", exif=exif)
    geometry = ImageGeometry(small_vit_processor(8), 3)
    store = ImageStore(data_set([png(ramp), {"bytes": buffer.getvalue(), "path": None}]), "image", geometry)
    assert store[0]["pixel_values"][0].flatten().tolist() == (ramp.flatten() // 257).tolist()
    assert store[1]["pixel_values"][0].tolist() == np.rot90(np.arange(64).reshape(8, 8), -1).tolist()
    with pytest.raises(UnreadableImage, match="pixels of 32 bits"):
        ImageStore(Dataset.from_dict({"image": [tiff(np.zeros((4, 4), dtype=np.float32))]}), "image", geometry)


def test_columns_of_bytes_and_of_paths(tmp_path):
    array = np.full((9, 9), 5, dtype=np.uint8)
    PILImage.fromarray(array).save(tmp_path / "a.png")
    geometry = ImageGeometry(small_vit_processor(8), 3)
    for value in (png(array)["bytes"], str(tmp_path / "a.png")):
        store = ImageStore(Dataset.from_dict({"image": [value]}), "image", geometry)
        assert store[0]["pixel_values"].unique().tolist() == [5]


def test_processors_that_do_not_fit_are_named(colour):
    uncropped = BitImageProcessorPil(size={"shortest_edge": 28}, do_center_crop=False)
    with pytest.raises(ValueError, match="images of several sizes"):
        ImageStore(colour, "image", ImageGeometry(uncropped, 3))
    with pytest.raises(ValueError, match="normalises 3 channels but the model has 1"):
        ImageGeometry(small_vit_processor(16), 1)


def test_class_labels_go_by_name_in_every_split():
    names: dict[str, int] = {}
    train = Dataset.from_dict({"kind": [0, 1, 1]}, features=Features({"kind": ClassLabel(names=["dog", "cat"])}))
    test = Dataset.from_dict({"kind": [0, 1, 2]}, features=Features({"kind": ClassLabel(names=["cat", "eel", "dog"])}))
    assert encode_labels(train, "kind", names).tolist() == [0, 1, 1]
    assert encode_labels(test, "kind", names).tolist() == [1, 2, 0]


def test_text_labels_are_numbered_and_missing_ones_unknown():
    rows = Dataset.from_dict({"kind": ["b", None, "a", "b"]}, features=Features({"kind": Value("string")}))
    assert encode_labels(rows, "kind").tolist() == [1, -1, 0, 1]
    numbers = Dataset.from_dict({"kind": [4, None, 2]})
    assert encode_labels(numbers, "kind").tolist() == [4, -1, 2]
    gaps = Dataset.from_dict({"kind": [4.0, float("nan"), 2.0]})
    assert encode_labels(gaps, "kind").tolist() == [4, -1, 2]
