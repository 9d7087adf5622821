"""Decode stored images: from what a column holds to upright 8-bit pixels in the channels of a model."""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any

import numpy as np
from datasets import Array2D, Array3D, Image
from PIL import Image as PILImage
from PIL import ImageColor, ImageOps, UnidentifiedImageError
from PIL import features as pillow_features

from hf_plr.data.archives import open_binary
from hf_plr.data.unreadable import UnreadableSample

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

# Pillow raises all of these for damaged files: RuntimeError for AVIF, MemoryError if a header promises too much.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(PILImage.DecompressionBombError, zipfile.BadZipFile, zlib.error, EOFError),
)
DEFAULT_BACKGROUND = "white"
HEAD_BYTES = 512
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"mif1", b"msf1", b"mif2"}  # of HEIC or of AVIF: further brands tell
NEEDS_PILLOW_HEIF = "HEIC needs pillow-heif (pip install pillow-heif)"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
STRANGE_TIFF = (
    "Pillow does not read TIFF files of this kind, such as several channels that are not colours, or colours in "
    "floating point: convert it, or give arrays (datasets.Array3D)"
)
KNOWN_FORMATS = (
    (b"version https://git-lfs", "it is a pointer of Git LFS: fetch the file by git lfs pull"),
    (b"\xff\x0a", "JPEG XL is not supported: convert it to PNG or JPEG"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL is not supported: convert it to PNG or JPEG"),
    (b"%PDF", "it is a PDF document, not an image"),
)

# Raw modes by which Pillow reads the high byte of each 16-bit channel, and those that read the low byte instead.
NATIVE, SWAPPED = ("L", "B") if sys.byteorder == "little" else ("B", "L")
LOW_BYTE_MODES = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", SWAPPED))
}
GREY_AND_ALPHA = "LA;16B"
BLOCK = 1 << 20  # pixels that are mapped to 8 bits together


class UnreadableImage(UnreadableSample):
    """An image that cannot be decoded."""


class WrongChannels(UnreadableImage):
    """An image that does not have the channels of the model."""


@dataclass(frozen=True)
class DecodingSettings:
    """How pixels become 8-bit channels, one for all images of a run; kept with the backbone.

    Attributes:
        pixel_range: lowest and highest pixel of images of more than 8 bits, which become 0 and 255; pixels outside
            become 0 or 255. None where it is not known yet: such an image is then refused.
        background: colour behind transparent pixels, a name or "#rrggbb".

    Raises:
        ValueError: if the range is empty or Pillow does not know the colour.
    """

    pixel_range: tuple[float, float] | None = None
    background: str = DEFAULT_BACKGROUND

    def __post_init__(self) -> None:
        if self.pixel_range is not None and not self.pixel_range[0] < self.pixel_range[1]:
            raise ValueError(f"pixel_range={list(self.pixel_range)} must be two numbers, the lower first")
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"transparency_background={self.background!r} is not a colour: use a name such as white, black or "
                "gray, or #rrggbb"
            ) from error


class ImageDecoder:
    """Decoder of the values of a column.

    Colour models (3 channels) and grey ones (1 channel) take images of any mode. Transparent images lie on the
    background. A model of another number of channels takes images with exactly these, as they are: RGBA and CMYK, TIFF
    files of red, green, blue and one more sample, grey with a second channel, and arrays.

    Example:
        >>> decoder = ImageDecoder(3)
        >>> decoder.decode(PILImage.new("LA", (40, 30)), row=0).getpixel((0, 0))
        (255, 255, 255)

    Args:
        num_channels: channels of the model.
        settings: range of pixels and background.
        feature: type of the column, `datasets.Image` or an array; its mode or dtype is honoured.
    """

    def __init__(self, num_channels: int, settings: DecodingSettings | None = None, feature: Any = None):
        self.num_channels = num_channels
        self.settings = DecodingSettings() if settings is None else settings
        self.column_mode = feature.mode if isinstance(feature, Image) else None
        self.dtype = feature.dtype if isinstance(feature, (Array2D, Array3D)) else None

    def decode(self, value: Any, row: int, smallest_edge: int | None = None) -> PILImage.Image | np.ndarray:
        """Decode a stored value.

        Args:
            value: image, bytes, path, dictionary of bytes and path, or array of shape (H, W), (H, W, C) or (C, H, W).
            row: its row, for errors.
            smallest_edge: pixels that suffice for the shorter edge. A JPEG file that has at least twice as many is
                decoded at a half, a quarter or an eighth of its size, which scales its blocks, but not below this.

        Returns:
            An image in mode RGB or L; or for models of other numbers of channels a uint8 array of shape (H, W, C).

        Raises:
            UnreadableImage: naming the row and the reason; `WrongChannels` if it has too few or too many.
        """
        try:
            opened = self.open(value)
            if isinstance(opened, PILImage.Image) and opened.format in ("JPEG", "MPO") and smallest_edge is not None:
                opened.draft(None, (smallest_edge, smallest_edge))
            return self._to_channels(value, opened)
        except WrongChannels as error:
            raise WrongChannels(f"image {row} {error}") from error
        except DECODING_ERRORS as error:
            reason = "is missing" if _is_missing(value) else f"cannot be read ({describe_error(value, error)})"
            raise UnreadableImage(f"image {row} {reason}") from error

    def open(self, value: Any) -> PILImage.Image | np.ndarray:
        """Open a stored value: an image whose pixels are not read yet, or an array."""
        if isinstance(value, (list, np.ndarray)):
            return np.asarray(value, self.dtype)
        image = open_image(value)
        if self.column_mode is not None and _is_deep_mode(self.column_mode):
            image = ImageOps.exif_transpose(image).convert(self.column_mode)
        return image

    def is_deep(self, opened: PILImage.Image | np.ndarray) -> bool:
        """True if an opened image has pixels of more than 8 bits.

        Raises:
            ValueError: if Pillow would misread them.
        """
        if isinstance(opened, np.ndarray):
            return opened.dtype not in (np.uint8, np.bool_)
        _refuse_planes_of_16_bits(opened)
        return _is_deep_mode(opened.mode) or find_raw_mode(opened) in (*LOW_BYTE_MODES, GREY_AND_ALPHA)

    def read_deep(self, value: Any, opened: PILImage.Image | np.ndarray) -> np.ndarray:
        """Read upright pixels of more than 8 bits, shape (H, W) or (H, W, C).

        Args:
            value: the stored value; colours of 16 bits are read from it in two halves.
            opened: what `open` returned for it.
        """
        if isinstance(opened, np.ndarray):
            return opened
        if _is_deep_mode(opened.mode):
            return np.asarray(ImageOps.exif_transpose(opened))
        if find_raw_mode(opened) == GREY_AND_ALPHA:  # which Pillow reads as RGBA: four bytes, each pair high byte first
            _replace_raw_mode(opened, {GREY_AND_ALPHA: "RGBA"})
            halves = _read_bands(opened).astype(np.uint16)
            return (halves[:, :, ::2] << 8) | halves[:, :, 1::2]
        low_half = open_image(value)
        _replace_raw_mode(low_half, LOW_BYTE_MODES)
        high, low = (_read_bands(half).astype(np.uint16) for half in (opened, low_half))
        high <<= 8
        high |= low
        return high

    def _to_channels(self, value: Any, opened: PILImage.Image | np.ndarray) -> PILImage.Image | np.ndarray:
        if self.is_deep(opened):
            opened = self._map_deep(self.read_deep(value, opened), opened)
        if isinstance(opened, np.ndarray):
            return self._arrange_array(opened)
        if self.num_channels == 4 and find_raw_mode(opened) == "RGBX" and self.column_mode is None:
            return _read_bands(opened)
        image = ImageOps.exif_transpose(opened)
        image.load()
        if self.column_mode is not None and image.mode != self.column_mode:
            image = image.convert(self.column_mode)
        if self.num_channels in (1, 3):
            return self._flatten(image)
        bands = image.getbands()
        if len(bands) != self.num_channels or image.mode == "P":
            raise self._wrong_channels(f"{len(bands)} ({image.mode})")
        return np.asarray(image)

    def _map_deep(self, pixels: np.ndarray, opened: PILImage.Image | np.ndarray) -> PILImage.Image | np.ndarray:
        """Map deep pixels to 8 bits: an array where the channels are those of the model as they are, else an image."""
        if self.settings.pixel_range is None:
            raise ValueError("its pixels have more than 8 bits, whose range is not known: set pixel_range")
        mapped = map_to_8_bits(pixels, *self.settings.pixel_range)
        n_bands = mapped.shape[2] if mapped.ndim == 3 else 1
        if isinstance(opened, np.ndarray) or (n_bands == self.num_channels and n_bands in (2, 4)):
            return mapped
        if n_bands == 4 and opened.mode == "RGB":  # the fourth is not an alpha channel
            mapped = mapped[:, :, :3]
        elif n_bands in (2, 4):
            mapped[:, :, -1] = pixels[:, :, -1] >> 8
        image = PILImage.fromarray(np.ascontiguousarray(mapped))
        hidden = opened.info.get("transparency")
        if isinstance(hidden, int) and pixels.ndim == 2:  # one grey level is transparent
            image.putalpha(PILImage.fromarray(np.where(pixels == hidden, 0, 255).astype(np.uint8)))
        return image

    def _flatten(self, image: PILImage.Image) -> PILImage.Image:
        """Convert an 8-bit image to RGB or L, on the background where it is transparent."""
        if image.has_transparency_data:
            image = composite(image, self.settings.background)
        mode = "RGB" if self.num_channels == 3 else "L"
        return image if image.mode == mode else image.convert(mode)

    def _arrange_array(self, pixels: np.ndarray) -> PILImage.Image | np.ndarray:
        """Arrange uint8 pixels (H, W), (H, W, C) or (C, H, W) as the model takes them."""
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.ndim != 3:
            raise ValueError(f"an array of shape {pixels.shape} is not an image")
        channels = {self.num_channels} | ({1, 3} if self.num_channels in (1, 3) else set())
        if pixels.shape[2] not in channels and pixels.shape[0] in channels:
            pixels = np.moveaxis(pixels, 0, 2)
        if pixels.shape[2] not in channels:
            raise self._wrong_channels(str(min(pixels.shape[0], pixels.shape[2])))
        pixels = np.ascontiguousarray(pixels, np.uint8)
        if self.num_channels not in (1, 3):
            return pixels
        return self._flatten(PILImage.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))

    def _wrong_channels(self, found: str) -> WrongChannels:
        return WrongChannels(
            f"has the wrong number of channels: {found}, but the model takes {self.num_channels} (num_channels of its "
            "config)"
        )


def open_image(value: Any) -> PILImage.Image:
    """Open what a column holds, without reading the pixels: bytes, a path, or a dictionary of both; or an image."""
    if isinstance(value, PILImage.Image):
        value.load()  # its file cannot be opened again
        return value
    return PILImage.open(open_content(value))


def open_content(value: Any) -> IO[bytes]:
    """Open the bytes, the path, or the dictionary of both that a column holds as a binary file."""
    source = value if isinstance(value, (bytes, str)) else value["bytes"] or value["path"]
    return io.BytesIO(source) if isinstance(source, bytes) else open_binary(source)


def find_path(value: Any) -> str:
    """Find the path of a stored value; empty if there is none."""
    path = value.get("path") if isinstance(value, dict) else value
    return path if isinstance(path, str) else ""


def read_upright_size(image: PILImage.Image) -> tuple[int, int]:
    """Read height and width of an opened image as it is shown, from its header."""
    width, height = image.size
    is_turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def composite(image: PILImage.Image, background: str) -> PILImage.Image:
    """Lay a transparent image on a colour; opaque pixels stay exactly as they are. Returns an RGB image."""
    layer = image.convert("RGBA")
    canvas = PILImage.new("RGB", layer.size, ImageColor.getrgb(background)[:3])
    canvas.paste(layer, mask=layer)
    return canvas


def map_to_8_bits(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map pixels so that `low` becomes 0 and `high` becomes 255: uint8 of the same shape.

    Computes floor(255 (x - low) / (high - low)), clipped; NaN becomes 0. For 0 and 65,535 that is x // 257.
    """
    mapped = np.empty(pixels.shape, np.uint8)
    source, target = np.ascontiguousarray(pixels).reshape(-1), mapped.reshape(-1)
    for start in range(0, len(source), BLOCK):  # a photo in float64 would take eight times its memory
        block = source[start : start + BLOCK].astype(np.float64)
        block = np.clip(np.nan_to_num(block, nan=low), low, high)
        target[start : start + BLOCK] = (block - low) * 255 / (high - low)
    return mapped


def find_raw_mode(image: PILImage.Image) -> str:
    """Find the layout in which the file of an opened image holds its pixels, as Pillow names it; empty if unknown."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def describe_error(value: Any, error: BaseException) -> str:
    """Describe why a stored value cannot be decoded: by its content if that is known, otherwise by the error."""
    head, reason = b"", None
    with contextlib.suppress(*DECODING_ERRORS), open_content(value) as file:
        head = file.read(HEAD_BYTES)
        reason = describe_unreadable(head, PurePath(find_path(value)).suffix)
    if reason is None and isinstance(error, UnidentifiedImageError):
        is_tiff = head.startswith(TIFF_STARTS)
        reason = STRANGE_TIFF if is_tiff else "it is not in any format that Pillow reads"
    return str(error) if reason is None else reason


def describe_unreadable(head: bytes, suffix: str) -> str | None:
    """Describe why a file is not an image that can be read here, from its first bytes.

    Args:
        head: up to 512 first bytes.
        suffix: the file's suffix, such as ".heic", for files that are empty or unknown.

    Returns:
        The reason and the remedy, such as "HEIC needs pillow-heif (pip install pillow-heif)"; None if the content
        is not known, or is of a format that can be read.
    """
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp":
        brands = {head[start : start + 4] for start in range(8, min(int.from_bytes(head[:4], "big"), len(head)), 4)}
        if brands & AVIF_BRANDS:
            return None if "avif" in pillow_features.get_supported() else "AVIF needs Pillow 11.3 or newer"
        if brands & (HEIC_BRANDS | HEIF_BRANDS):
            return None if has_heic() else NEEDS_PILLOW_HEIF
        return "it is a video or a file of sound, not an image"
    for start, reason in KNOWN_FORMATS:
        if head.startswith(start):
            return reason
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "SVG is not supported: convert it to PNG"
    if head[128:132] == b"DICM":
        return "DICOM is not supported: convert it to PNG or TIFF of 16 bits"
    if suffix.lower() in (".heic", ".heif") and not has_heic() and not head.startswith((b"\xff\xd8", b"\x89PNG")):
        return NEEDS_PILLOW_HEIF
    return None


def has_heic() -> bool:
    """True if pillow-heif is installed and opens HEIC files."""
    return "HEIF" in PILImage.OPEN


def _is_missing(value: Any) -> bool:
    """Whether a stored value has neither bytes nor a path."""
    return value is None or (isinstance(value, dict) and not (value.get("bytes") or value.get("path")))


def _read_bands(image: PILImage.Image) -> np.ndarray:
    """Read all bands of an opened colour image upright, the fourth of a file of RGBX too: uint8 of shape (H, W, C)."""
    has_fourth = find_raw_mode(image).startswith("RGBX")
    image = ImageOps.exif_transpose(image)
    image.load()
    if not has_fourth:
        return np.asarray(image)
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)


def _is_deep_mode(mode: str) -> bool:
    return mode.startswith("I;16") or mode in ("I", "F")


def _replace_raw_mode(image: Any, modes: dict[str, str]) -> None:
    """Let an opened image be read as if its file had another layout of pixels."""
    tiles = []
    for tile in image.tile:
        is_plain = isinstance(tile.args, str)
        raw_mode = modes[find_raw_mode(image)]
        tiles.append(tile._replace(args=raw_mode if is_plain else (raw_mode, *tile.args[1:])))
    image.tile = tiles


def _refuse_planes_of_16_bits(image: PILImage.Image) -> None:
    tags: Any = getattr(image, "tag_v2", None)
    if tags is not None and tags.get(284) == 2 and max(tags.get(258) or (8,)) > 8 and len(image.getbands()) > 1:
        raise ValueError(
            "its 16-bit channels are stored one after the other, which Pillow misreads: store them interleaved"
        )
