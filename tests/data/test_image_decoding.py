"""Decoding of what is not 8-bit RGB: deep pixels, transparency, channels, formats."""

from __future__ import annotations

import io
import itertools
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Image
from PIL import Image as PILImage
from PIL import features
from transformers import AutoImageProcessor, ViTImageProcessorPil

from hf_plr.data import image_survey
from hf_plr.data.image_decoding import (
    DecodingSettings,
    ImageDecoder,
    UnreadableImage,
    WrongChannels,
    describe_unreadable,
    has_heic,
    map_to_8_bits,
)
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_store import ImageStore
from hf_plr.data.image_survey import choose_pixel_range
from hf_plr.models.vision import small_vit_processor

PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
NO_AVIF = None if "avif" in features.get_supported() else "AVIF needs Pillow 11.3"
TWELVE_BITS = DecodingSettings(pixel_range=(0, 4095))


def encode(image: PILImage.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_png_16(pixels: np.ndarray) -> bytes:
    """Encode uint16 pixels (H, W, C) as a PNG file of 16 bits per channel."""
    height, width, channels = pixels.shape
    lines = pixels.astype(">u2").reshape(height, -1)
    filtered = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def encode_tiff(pixels: np.ndarray, extra_samples: int | None = None, planar: bool = False, order: str = "<") -> bytes:
    """Encode uint8 or uint16 pixels (H, W, C) as an uncompressed TIFF file; a fourth sample is of no named kind."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    data = pixels.transpose(2, 0, 1) if planar else pixels
    data = data.astype(data.dtype.newbyteorder(order)).tobytes()
    entries = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [2], 277: [channels], 278: [height]}
    n_strips = channels if planar else 1
    entries |= {284: [2 if planar else 1], 279: [len(data) // n_strips] * n_strips, 273: [0] * n_strips}
    if extra_samples is not None:
        entries[338] = [extra_samples]
    start = 8 + 2 + 12 * len(entries) + 4
    room = sum(4 * len(values) for values in entries.values() if len(values) > 1)
    entries[273] = [start + room + i * (len(data) // n_strips) for i in range(n_strips)]
    directory, more = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        directory += struct.pack(f"{order}HHI", tag, 4, len(values))
        directory += packed if len(values) == 1 else struct.pack(f"{order}I", start + len(more))
        more += packed if len(values) > 1 else b""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8) + directory + b"\0\0\0\0" + more + data


def data_set(files, **feature):
    stored = Dataset.from_dict(
        {"image": [{"bytes": file, "path": None} for file in files]}, features=Features({"image": Image(decode=False)})
    )
    return stored.cast_column("image", Image(**feature))


@pytest.fixture
def deep():
    """Grey and colour pixels of 12 bits in 16, all levels of the grey ones."""
    rng = np.random.default_rng(0)
    return rng.permutation(4096).astype(np.uint16).reshape(64, 64), rng.integers(0, 4096, (64, 64, 4), np.uint16)


def test_grey_pixels_of_twelve_bits_keep_all_levels(deep):
    grey, _ = deep
    float_image = PILImage.fromarray(grey.astype(np.float32))
    files = [
        encode(PILImage.fromarray(grey)),
        encode(PILImage.fromarray(grey), "TIFF"),
        encode(PILImage.fromarray(grey), "TIFF", compression="tiff_lzw"),
        encode(PILImage.fromarray(grey.astype(np.int32)), "TIFF"),
        encode(float_image, "TIFF"),
    ]
    for file in files:
        decoded = np.asarray(ImageDecoder(1, TWELVE_BITS).decode(file, 0))
        assert np.array_equal(decoded, grey.astype(np.int64) * 255 // 4095)
        assert len(np.unique(decoded)) == 256
        assert np.array_equal(np.asarray(ImageDecoder(3, TWELVE_BITS).decode(file, 0))[:, :, 1], decoded)


def test_colours_of_sixteen_bits_keep_their_low_bytes(deep):
    _, colour = deep
    rgb = np.ascontiguousarray(colour[:, :, :3])
    expected = rgb.astype(np.int64) * 255 // 4095
    for file in (encode_png_16(rgb), encode_tiff(rgb), encode_tiff(rgb, order=">")):
        assert np.array_equal(np.asarray(ImageDecoder(3, TWELVE_BITS).decode(file, 0)), expected)
        turned = PILImage.open(io.BytesIO(file))
        assert len(np.unique(np.asarray(turned))) == 16  # Pillow by itself drops the low bytes
    with pytest.raises(UnreadableImage, match="stored one after the other"):
        ImageDecoder(3, TWELVE_BITS).decode(encode_tiff(rgb, planar=True), 0)
    with pytest.raises(ValueError, match="stored one after the other"):
        ImageDecoder(3).is_deep(PILImage.open(io.BytesIO(encode_tiff(rgb, planar=True))))
    assert ImageDecoder(3).decode(encode_tiff((rgb // 16).astype(np.uint8), planar=True), 0).getpixel((5, 3)) == tuple(
        rgb[3, 5] // 16
    )


def test_images_in_memory_have_the_bits_that_pillow_keeps(deep):
    grey, colour = deep
    opened = PILImage.open(io.BytesIO(encode_png_16(np.ascontiguousarray(colour[:, :, :3]))))
    assert np.array_equal(np.asarray(ImageDecoder(3).decode(opened, 0)), colour[:, :, :3] // 256)
    decoded = np.asarray(ImageDecoder(1, TWELVE_BITS).decode(PILImage.fromarray(grey), 0))
    assert np.array_equal(decoded, grey.astype(np.int64) * 255 // 4095)


def test_deep_images_with_alpha_lie_on_the_background(deep):
    grey, colour = deep
    colour = colour.copy()
    colour[:, :, 3] = 65535
    colour[:32, :, 3] = 0
    decoded = np.asarray(ImageDecoder(3, TWELVE_BITS).decode(encode_png_16(colour), 0))
    assert np.array_equal(decoded[32:], colour[32:, :, :3].astype(np.int64) * 255 // 4095)
    assert (decoded[:32] == 255).all()
    with_alpha = np.dstack([grey, colour[:, :, 3]])
    decoded = np.asarray(ImageDecoder(1, TWELVE_BITS).decode(encode_png_16(with_alpha), 0))
    assert np.array_equal(decoded[32:], grey[32:].astype(np.int64) * 255 // 4095)
    assert (decoded[:32] == 255).all()


def test_mapping_to_eight_bits():
    whole = np.arange(65536).astype(np.uint16)
    assert np.array_equal(map_to_8_bits(whole, 0, 65535), whole // 257)
    assert map_to_8_bits(np.asarray([-5.0, 0.0, 0.5, 1.0, 9.0, np.nan]), 0, 1).tolist() == [0, 0, 127, 255, 255, 0]


@pytest.mark.parametrize(
    ("low", "high", "has_floats", "expected"),
    [
        (3, 4090, False, (0, 4095)),  # 12 bits
        (0, 900, False, (0, 1023)),
        (100, 65535, False, (0, 65535)),
        (0, 200, False, (0, 255)),  # 8 bits in a file of 16
        (29_000, 31_000, False, (29_000, 31_000)),  # a thermal camera
        (-1000, 3000, False, (-1000, 3000)),  # signed, as from a CT scanner
        (0.0, 0.98, True, (0, 1)),
        (0.0, 0.2, True, (0, 0.2)),
        (2.0, 250.5, True, (0, 255)),
        (7, 7, False, (7, 8)),
    ],
)
def test_the_range_is_a_usual_one_or_what_was_seen(low, high, has_floats, expected):
    assert choose_pixel_range(np.asarray([[low, high], [low, (low + high) / 2]]), has_floats) == expected


def test_of_very_large_images_some_are_measured(monkeypatch, deep):
    monkeypatch.setattr(image_survey, "PIXELS_READ", 1)
    files = [encode(PILImage.fromarray(deep[0]))] * 40
    read = []
    monkeypatch.setattr(image_survey, "_measure", lambda pixels: read.append(1) or [(0, 4000)])
    geometry = ImageGeometry(small_vit_processor(8), 3)
    (note,) = geometry.fit(data_set(files), "image")
    assert len(read) == 16
    assert note.startswith("16-bit images: pixels 0 to 4,095 become 0 to 255 in all images (40 of 40")


def test_floating_point_pixels_among_others_are_told():
    pixels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    files = [encode(PILImage.fromarray(image), "TIFF") for image in (pixels, (60_000 * pixels).astype(np.uint16))]
    (note,) = ImageGeometry(small_vit_processor(8), 3).fit(data_set(files), "image")
    assert "Images of more than 8 bits: pixels 0 to 65,535" in note
    assert "1 of these floating-point pixels: they need a data set of their own" in note


def test_single_images_and_pixels_do_not_set_the_range():
    rng = np.random.default_rng(0)
    files = []
    for i in range(200):
        pixels = rng.integers(28_000, 30_000, (40, 40)).astype(np.uint16)
        pixels[0, 0] = 65535  # a hot pixel
        files.append(encode(PILImage.fromarray(np.full_like(pixels, 65535) if i == 7 else pixels)))
    geometry = ImageGeometry(small_vit_processor(8), 3)
    (note,) = geometry.fit(data_set(files), "image")
    low, high = geometry.settings.pixel_range
    assert 28_000 <= low < 28_020
    assert 29_980 < high <= 30_000
    assert note.startswith(f"16-bit images: pixels {low:,.0f} to {high:,.0f} become 0 to 255 in all images (200 of 200")


def test_the_range_is_one_for_all_and_kept_with_the_processor(deep, tmp_path):
    grey, _ = deep
    dark = encode(PILImage.fromarray(grey // 4))
    train, test = data_set([encode(PILImage.fromarray(grey)), dark]), data_set([dark])
    geometry = ImageGeometry(small_vit_processor(64), 3)
    (note,) = geometry.fit(train, "image")
    assert note.startswith("16-bit images: pixels 0 to 4,095 become 0 to 255")
    expected = ImageStore(train, "image", geometry).pixels(torch.tensor([1]))
    assert torch.equal(ImageStore(test, "image", geometry).pixels(torch.tensor([0])), expected)
    geometry.processor.save_pretrained(tmp_path)
    loaded = ImageGeometry(AutoImageProcessor.from_pretrained(tmp_path), 3)
    assert loaded.settings == geometry.settings
    assert torch.equal(ImageStore(test, "image", loaded).pixels(torch.tensor([0])), expected)
    alone = ImageStore(test, "image", ImageGeometry(small_vit_processor(64), 3)).pixels(torch.tensor([0]))
    assert not torch.equal(alone, expected)
    other = ImageGeometry(AutoImageProcessor.from_pretrained(tmp_path), 3, pixel_range=(0, 1023))
    assert torch.equal(ImageStore(test, "image", other).pixels(torch.tensor([0])), alone)
    assert other.describe() != loaded.describe()  # the key of cached pixels


def test_images_of_eight_bits_keep_nothing_and_pass_as_they_are(deep):
    grey, _ = deep
    plain = (grey // 16).astype(np.uint8)
    processor = small_vit_processor(64)
    geometry = ImageGeometry(processor, 3)
    assert geometry.fit(data_set([encode(PILImage.fromarray(plain))]), "image") == []
    assert not {"pixel_range", "transparency_background"} & set(processor.to_dict())
    mixed = data_set([encode(PILImage.fromarray(plain)), encode(PILImage.fromarray(grey))])
    store = ImageStore(mixed, "image", ImageGeometry(small_vit_processor(64), 3))
    assert np.array_equal(store[0]["pixel_values"][0], plain)


@pytest.mark.parametrize("value", [[1], [3, 2], "ab", [0, float("nan")], [0, float("inf")], {"low": 0}, 5])
def test_damaged_kept_ranges_are_refused(value, tmp_path):
    processor = small_vit_processor(8)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pixel_range": value}))
    with pytest.raises(ValueError, match="pixel_range"):
        ImageGeometry(AutoImageProcessor.from_pretrained(tmp_path), 3)


def shape_in_alpha(colour: int) -> PILImage.Image:
    """An image of one colour whose shape is in its alpha channel."""
    pixels = np.full((20, 20, 4), colour, np.uint8)
    pixels[:, :, 3] = 0
    pixels[5:15, 5:15, 3] = 255
    return PILImage.fromarray(pixels)


def test_transparent_images_lie_on_the_background():
    icon = shape_in_alpha(0)
    black = np.zeros((20, 20), bool)
    black[5:15, 5:15] = True
    palette = icon.convert("RGB").quantize(4)
    grey_levels = PILImage.fromarray(np.where(black, 0, 9).astype(np.uint8))
    colours = grey_levels.convert("RGB")
    files = [
        encode(icon),
        encode(icon.convert("LA")),
        encode(icon, "WEBP", lossless=True),
        encode(grey_levels, transparency=9),
        encode(colours, transparency=(9, 9, 9)),
        encode(grey_levels.convert("P"), "GIF", transparency=9),
    ]
    for file, channels in itertools.product(files, (1, 3)):
        shown = np.asarray(ImageDecoder(channels).decode(file, 0)).reshape(20, 20, channels)
        assert np.array_equal(shown == 0, np.broadcast_to(black[:, :, None], shown.shape))
        assert set(np.unique(shown)) == {0, 255}
    assert np.asarray(ImageDecoder(3).decode(encode(palette), 0)).max() == 0  # no index of it is transparent
    red = ImageDecoder(3, DecodingSettings(background="#ff0000")).decode(files[0], 0)
    assert red.getpixel((0, 0)) == (255, 0, 0)
    opaque = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))
    assert np.array_equal(np.asarray(ImageDecoder(3).decode(encode(opaque.convert("RGBA")), 0)), np.asarray(opaque))
    with pytest.raises(ValueError, match="transparency_background='whitish' is not a colour"):
        DecodingSettings(background="whitish")


def test_the_background_is_told_and_kept(tmp_path):
    processor = small_vit_processor(8)
    files = [encode(shape_in_alpha(0)), encode(PILImage.new("RGBA", (9, 9), (1, 2, 3, 255)))]
    (note,) = ImageGeometry(processor, 3).fit(data_set(files), "image")
    assert note.startswith("1 of 2 images with an alpha channel are transparent: they lie on white;")
    assert processor.to_dict()["transparency_background"] == "white"
    (note,) = ImageGeometry(small_vit_processor(8), 3).fit(data_set([encode(shape_in_alpha(255))]), "image")
    assert "white, where 1 of them show nearly nothing; transparency_background (--transparency_background) s" in note
    processor = small_vit_processor(8)
    assert len(ImageGeometry(processor, 3, background="black").fit(data_set(files), "image")) == 1
    processor.save_pretrained(tmp_path)
    kept = ImageGeometry(AutoImageProcessor.from_pretrained(tmp_path), 3)
    assert kept.settings.background == "black"
    assert kept.make_decoder().decode(files[0], 0).getpixel((0, 0)) == (0, 0, 0)


def bands_processor(channels: int) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=[0.5] * channels, image_std=[0.5] * channels, resample=0
    )


def test_models_of_four_channels_take_the_bands_as_they_are(deep):
    _, colour = deep
    bands = (colour[:8, :8] // 16).astype(np.uint8)
    bands[:4, :, 3] = 0  # as alpha it would hide the other bands
    rgba = PILImage.fromarray(bands)
    cmyk = encode(PILImage.fromarray(bands, "CMYK"), "TIFF")
    for file in (encode(rgba), cmyk, encode_tiff(bands, extra_samples=0), encode_tiff(bands, extra_samples=2)):
        store = ImageStore(data_set([file]), "image", ImageGeometry(bands_processor(4), 4))
        assert np.array_equal(store[0]["pixel_values"].numpy().transpose(1, 2, 0), bands)
    sixteen = np.ascontiguousarray(colour[:8, :8])
    for file in (encode_png_16(sixteen), encode_tiff(sixteen, extra_samples=0)):
        decoded = ImageDecoder(4, TWELVE_BITS).decode(file, 0)
        assert np.array_equal(decoded, sixteen.astype(np.int64) * 255 // 4095)
        in_colour = np.asarray(ImageDecoder(3, TWELVE_BITS).decode(encode_tiff(sixteen, extra_samples=0), 0))
        assert np.array_equal(in_colour, decoded[:, :, :3])


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "P"])
def test_other_channels_than_the_models_are_refused(mode):
    files = data_set([encode(PILImage.new(mode, (9, 9)))])
    with pytest.raises(ValueError, match=rf"image 0 has .* channels: \d \({mode}\), but the model takes 4"):
        ImageGeometry(bands_processor(4), 4).fit(files, "image")
    with pytest.raises(WrongChannels, match="image 7 has the wrong number of channels"):
        ImageDecoder(5).decode(encode(PILImage.new(mode, (9, 9))), 7)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_arrays_of_any_number_of_channels(channels):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 100, (3, 8, 9, channels), np.uint8)
    processor = bands_processor(channels)
    for stored in (arrays, arrays.transpose(0, 3, 1, 2)):
        feature = Array3D(stored.shape[1:], "uint8")
        rows = Dataset.from_dict({"image": list(stored)}, features=Features({"image": feature}))
        store = ImageStore(rows, "image", ImageGeometry(processor, channels))
        assert store.pixels(torch.arange(3)).shape == (3, channels, 8, 8)
        decoded = np.asarray(ImageDecoder(channels, feature=feature).decode(stored[1].tolist(), 1))
        assert np.array_equal(decoded.reshape(arrays[1].shape), arrays[1])


@pytest.mark.parametrize(
    ("head", "suffix", "reason"),
    [
        (b"", ".jpg", "empty"),
        (b"<html>404</html>", ".jpg", "HTML"),
        (b"\n<!DOCTYPE html><p>", "", "HTML"),
        (b'<?xml version="1.0"?><svg/>', ".svg", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1", ".png", "git lfs pull"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", ".mp4", "video"),
        (b"\xff\x0a\0\0", ".jxl", "JPEG XL"),
        (b"\0" * 128 + b"DICM", ".dcm", "DICOM"),
        (b"%PDF-1.7", ".pdf", "PDF"),
        (b"\x89PNG\r\n", ".png", None),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", ".avif", NO_AVIF),
        (b"\0\0\0\x1cftypmif1\0\0\0\0avifmiaf", ".avif", NO_AVIF),
    ],
)
def test_files_that_are_no_images_are_described(head, suffix, reason):
    described = describe_unreadable(head, suffix)
    assert described is None if reason is None else reason in described


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_values_without_bytes_and_path_are_missing(value):
    with pytest.raises(UnreadableImage, match=r"^image 7 is missing$"):
        ImageDecoder(3).decode(value, 7)


def test_tiff_files_that_pillow_does_not_read_are_told(deep):
    colour = encode_tiff((deep[1] // 16).astype(np.uint8))
    as_grey = colour.replace(struct.pack("<HHII", 262, 4, 1, 2), struct.pack("<HHII", 262, 4, 1, 1))
    with pytest.raises(UnreadableImage, match="does not read TIFF files of this kind, such as several channels"):
        ImageDecoder(4).decode({"bytes": as_grey, "path": "a.tif"}, 0)


HEIC_HEADS = [b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" for brand in (b"heic", b"heix", b"mif1", b"hevc")]


@pytest.mark.skipif(has_heic(), reason="pillow-heif is installed")
@pytest.mark.parametrize("head", [*HEIC_HEADS, b"\0\0\0\x18ftypheic" + b"\0" * 100])
def test_heic_without_pillow_heif_says_what_it_needs(head):
    needed = "HEIC needs pillow-heif (pip install pillow-heif)"
    assert describe_unreadable(head, ".jpg") == needed
    with pytest.raises(UnreadableImage) as caught:
        ImageDecoder(3).decode({"bytes": head, "path": "IMG_1.HEIC"}, 3)
    assert str(caught.value) == f"image 3 cannot be read ({needed})"


@pytest.mark.skipif(not has_heic(), reason="pillow-heif is not installed (pip install pillow-heif)")
def test_heic_with_pillow_heif_is_read():
    assert [describe_unreadable(head, ".heic") for head in HEIC_HEADS] == [None] * len(HEIC_HEADS)
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = PILImage.fromarray(np.dstack([np.tile(ramp, (64, 1)), np.full((64, 64, 2), 99, np.uint8)]))
    decoded = np.asarray(ImageDecoder(3).decode(encode(picture, "HEIF", quality=95), 0)).astype(int)
    assert np.abs(decoded - np.asarray(picture)).mean() < 6


@pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow has no AVIF")
def test_avif_is_read():
    picture = PILImage.new("RGB", (32, 24), (200, 100, 50))
    decoded = np.asarray(ImageDecoder(3).decode(encode(picture, "AVIF"), 0)).astype(int)
    assert np.abs(decoded - np.asarray(picture)).max() < 6


def test_a_hundredth_of_the_images_does_not_set_the_range():
    bounds = np.tile([0.0, 4000.0], (1000, 1))
    bounds[:9, 1] = 60_000.0  # frames that failed
    assert choose_pixel_range(bounds) == (0.0, 4095.0)
    bounds[:20, 1] = 60_000.0
    assert choose_pixel_range(bounds) == (0.0, 65535.0)
