"""Decoding: equal to the image processor, cached or not, and clear about what it cannot read."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import SamImageProcessorPil, Siglip2ImageProcessorPil, ViTImageProcessorPil
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from hf_plr.data.image_decoding import ImageDecoder
from hf_plr.data.image_store import ImageGeometry, ImageStore, UnreadableImage, collate_images, read_image_sizes
from hf_plr.data.sample_store import spread_rows
from hf_plr.data.true_labels import encode_labels
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


def uncropped_processor(size):
    return BitImageProcessorPil(size={"shortest_edge": size}, do_center_crop=False)


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
    transparent = png(np.full((9, 9, 4), 51, dtype=np.uint8))  # a fifth of it is opaque
    store = ImageStore(data_set([grey, transparent]), "image", ImageGeometry(small_vit_processor(16), 3))
    assert store[0]["pixel_values"].shape == (3, 16, 16)
    assert store[0]["pixel_values"].unique().tolist() == [77]
    assert store[1]["pixel_values"].unique().tolist() == [(255 * 4 + 51) // 5]


def test_an_unreadable_image_is_named_or_left_out(colour):
    rows = [png(np.full((9, 9), i, dtype=np.uint8)) for i in range(6)]
    rows[2] = {"bytes": rows[2]["bytes"][:40], "path": None}
    rows[4] = None
    geometry = ImageGeometry(small_vit_processor(16), 3)
    with pytest.raises(UnreadableImage, match=r"image 2 cannot be read .*--skip_unreadable"):
        ImageStore(data_set(rows), "image", geometry).check()
    for cache_bytes in (0, 2**20):
        store = ImageStore(data_set(rows), "image", geometry, cache_bytes=cache_bytes, skip_unreadable=True).check()
        assert store.unreadable == [2, 4]
        assert store.rows.tolist() == [0, 1, 3, 5]
        assert store[2]["pixel_values"].unique().tolist() == [3]
        assert store[3]["index"] == 3


def test_an_unreadable_image_is_located_in_the_whole_data_set(colour, tmp_path, caplog):
    paths = []
    for i in range(6):
        paths.append(str(tmp_path / f"{i}.png"))
        (tmp_path / f"{i}.png").write_bytes(png(np.full((9, 9), i, dtype=np.uint8))["bytes"][: 40 if i == 3 else None])
    drawn = data_set([{"bytes": None, "path": path} for path in paths]).select([0, 2, 3, 5])
    geometry = ImageGeometry(small_vit_processor(16), 3)
    with pytest.raises(UnreadableImage, match=r"image 2 cannot be read .*3\.png, row 3 of the whole data set\)"):
        ImageStore(drawn, "image", geometry).check()
    ImageStore(drawn, "image", geometry, skip_unreadable=True).check()
    assert "left out: row 2 (" in caplog.text
    assert "3.png, row 3 of the whole data set)" in caplog.text


def test_empty_data_and_all_bad_data_are_refused():
    geometry = ImageGeometry(small_vit_processor(16), 3)
    with pytest.raises(ValueError, match="empty"):
        ImageStore(data_set([]), "image", geometry)
    with pytest.raises(ValueError, match="none of the 2 images"):
        ImageStore(data_set([None, {"bytes": b"no", "path": None}]), "image", geometry, skip_unreadable=True).check()


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


def test_a_fitted_geometry_refuses_deep_images_without_a_range():
    geometry = ImageGeometry(small_vit_processor(8), 3)
    geometry.fit(data_set([png(np.full((9, 9), 5, dtype=np.uint8))]), "image")
    deep = Dataset.from_dict({"image": [tiff(np.zeros((4, 4), dtype=np.float32))]})
    with pytest.raises(UnreadableImage, match=r"image 0 cannot be read .*set pixel_range"):
        ImageStore(deep, "image", geometry).check()


def test_columns_of_bytes_and_of_paths(tmp_path):
    array = np.full((9, 9), 5, dtype=np.uint8)
    PILImage.fromarray(array).save(tmp_path / "a.png")
    geometry = ImageGeometry(small_vit_processor(8), 3)
    for value in (png(array)["bytes"], str(tmp_path / "a.png")):
        store = ImageStore(Dataset.from_dict({"image": [value]}), "image", geometry)
        assert store[0]["pixel_values"].unique().tolist() == [5]


def test_processors_that_do_not_fit_are_named(colour):
    with pytest.raises(ValueError, match=r"several sizes: image 1 \(21 x 30\) becomes 28 x 40, others 28 x 42.*crop"):
        ImageStore(colour, "image", ImageGeometry(uncropped_processor(28), 3))
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


@pytest.mark.parametrize("processor", [ViTImageProcessorPil(do_resize=False), uncropped_processor(28)])
def test_processors_that_keep_the_shape_take_images_of_one_size(processor, tmp_path):
    rng = np.random.default_rng(0)
    same = data_set([png(rng.integers(0, 255, (28, 42, 3), dtype=np.uint8)) for _ in range(4)])
    geometry = ImageGeometry(processor, 3)
    store = ImageStore(same, "image", geometry)
    assert geometry.image_size == (28, 42)
    assert store[0]["pixel_values"].shape == (3, 28, 42)
    PILImage.new("RGB", (20, 50)).save(tmp_path / "tall.png")
    with pytest.raises(ValueError, match=r"image 0 \(.*tall.png\) becomes .*, others 28 x 42"):
        ImageStore(data_set([{"bytes": None, "path": str(tmp_path / "tall.png")}]), "image", geometry).check()


@pytest.mark.parametrize(
    ("processor", "edge"),
    [
        (ViTImageProcessorPil(size={"height": 32, "width": 64}), 128),
        (uncropped_processor(28), 56),
        (ViTImageProcessorPil(do_resize=False), None),
        (SamImageProcessorPil(), None),  # by the longest edge
    ],
)
def test_pixels_that_a_jpeg_file_must_keep(processor, edge):
    assert ImageGeometry(processor, 3).smallest_edge == edge


def test_processors_that_make_no_images_are_named(colour):
    with pytest.raises(ValueError, match="Siglip2ImageProcessorPil does not leave images of shape"):
        ImageGeometry(Siglip2ImageProcessorPil(), 3).fit(colour, "image")


def test_a_size_beyond_the_sample_is_refused_by_row():
    rows = [png(np.zeros((6, 8), dtype=np.uint8)) for _ in range(300)]
    unseen = next(row for row in range(300) if row not in spread_rows(300, 256))
    rows[unseen] = png(np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match=f"image {unseen} becomes 8 x 8, others 6 x 8"):
        ImageStore(data_set(rows), "image", ImageGeometry(ViTImageProcessorPil(do_resize=False), 3)).check()


def test_many_large_images_are_resized_a_few_at_a_time(monkeypatch):
    alive = []
    resize = ImageGeometry.resize
    monkeypatch.setattr(ImageGeometry, "resize", lambda self, images: alive.append(len(images)) or resize(self, images))
    large = data_set([png(np.zeros((2048, 1024), dtype=np.uint8))] * 5)
    ImageStore(large, "image", ImageGeometry(small_vit_processor(8), 3)).check()
    assert max(alive) == 2  # of 2 megapixels each
    alive.clear()
    small = data_set([png(np.zeros((9, 9), dtype=np.uint8))] * 20)
    ImageStore(small, "image", ImageGeometry(small_vit_processor(8), 3)).check()
    assert max(alive) == 8


def test_a_large_jpeg_is_reduced_while_it_is_decoded_and_looks_alike():
    rng = np.random.default_rng(0)
    coarse = PILImage.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((640, 512))
    noisy = np.clip(np.asarray(coarse) + rng.normal(0, 20, (512, 640, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(noisy).save(buffer, "JPEG", quality=90)
    jpeg = {"bytes": buffer.getvalue(), "path": None}
    decoder = ImageDecoder(3)
    assert decoder.decode(jpeg, 0).size == (640, 512)
    assert decoder.decode(jpeg, 0, smallest_edge=128).size == (160, 128)
    assert decoder.decode(jpeg, 0, smallest_edge=300).size == (640, 512)
    in_full = png(np.asarray(decoder.decode(jpeg, 0)))
    geometry = ImageGeometry(small_vit_processor(64), 3)
    reduced, full = ImageStore(data_set([jpeg, in_full]), "image", geometry).pixels(torch.arange(2)).float()
    assert (reduced - full).abs().mean() < 1
    assert (reduced - full).abs().max() < 12
    assert not torch.equal(reduced, full)


def test_the_mode_of_the_column_is_honoured():
    colour = png(np.dstack([np.full((9, 9), level, dtype=np.uint8) for level in (200, 50, 10)]))
    grey = data_set([colour]).cast_column("image", Image(mode="L"))
    pixels = ImageStore(grey, "image", ImageGeometry(small_vit_processor(8), 3))[0]["pixel_values"]
    expected = PILImage.new("RGB", (1, 1), (200, 50, 10)).convert("L").getpixel((0, 0))
    assert pixels.unique().tolist() == [expected]
    hidden = data_set([png(np.full((9, 9, 4), 40, dtype=np.uint8))]).cast_column("image", Image(mode="RGB"))
    assert ImageStore(hidden, "image", ImageGeometry(small_vit_processor(8), 3))[0]["pixel_values"].unique() == 40


def test_a_transform_of_the_data_set_is_refused(colour):
    transformed = colour.with_transform(lambda batch: batch)
    with pytest.raises(ValueError, match=r"transform of the data set .* would not be applied to column 'image'"):
        ImageStore(transformed, "image", ImageGeometry(small_vit_processor(8), 3))
    ImageStore(colour.with_format("torch"), "image", ImageGeometry(small_vit_processor(8), 3))


def test_sizes_of_images_are_those_that_are_shown(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    rows = [{"bytes": None, "path": str(tmp_path / "turned.jpg")}, {"bytes": b"", "path": "empty.jpg"}]
    assert read_image_sizes(data_set(rows), "image") == ([30], [20])
    with pytest.raises(ValueError, match=r"none of 1 images can be read \(image 0: .*\)"):
        read_image_sizes(data_set([{"bytes": b"<html>404</html>", "path": "a.jpg"}]), "image")
