"""Images of a data set as uint8 tensors of one size, decoded once."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage
from PIL import ImageOps

from hf_plr.data.archives import open_media
from hf_plr.data.batch_buffers import BatchBuffers
from hf_plr.data.pixel_cache import PixelCache
from hf_plr.data.sample_store import Items, SampleStore, UnreadableSample, select_undecoded, spread_rows
from hf_plr.utils.constants import make_constant

# Pillow raises all of these for damaged files: RuntimeError for AVIF, MemoryError if a header promises too much.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError),
    PILImage.DecompressionBombError,
)


class UnreadableImage(UnreadableSample):
    """An image that cannot be decoded."""


class ImageGeometry:
    """Geometry of an image processor: decodes, resizes and crops; the device rescales and normalises.

    Args:
        processor: any image processor with `image_mean`, `image_std` and `rescale_factor`.
        num_channels: 3 for colour models (grey images are converted), 1 for grey ones.

    Raises:
        ValueError: if the processor and the model have different numbers of channels.
    """

    def __init__(self, processor: Any, num_channels: int):
        self.processor = processor
        self.mode = "RGB" if num_channels == 3 else "L"
        self.rescale = float(processor.rescale_factor) if processor.do_rescale else 1.0
        normalise = bool(processor.do_normalize)
        if normalise and len(processor.image_mean) not in (1, num_channels):
            raise ValueError(
                f"the image processor normalises {len(processor.image_mean)} channels but the model has {num_channels}"
            )
        self.mean = tuple(map(float, processor.image_mean if normalise else [0.0] * num_channels))
        self.std = tuple(map(float, processor.image_std if normalise else [1.0] * num_channels))
        height, width = self.to_pixels([PILImage.new(self.mode, (64, 64))]).shape[2:]
        self.image_size = (height, width)

    def describe(self) -> str:
        """Describe all settings that change a decoded image, as text."""
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return f"{type(self.processor).__name__}|{self.mode}|{settings}"

    def to_pixels(self, images: list[PILImage.Image]) -> torch.Tensor:
        """Convert images to a uint8 tensor of shape (B, C, H, W)."""
        images = [image if image.mode == self.mode else image.convert(self.mode) for image in images]
        arrays = self.processor(images, do_rescale=False, do_normalize=False)["pixel_values"]
        arrays = [np.asarray(array) for array in arrays]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(
                f"the image processor gives images of several sizes, such as {arrays[0].shape}: let it resize to one "
                "height and width, or crop (do_center_crop=True)"
            )
        return torch.from_numpy(np.stack(arrays))

    def unit_range(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 pixels to float32 in the processor's range before normalisation, usually [0, 1]."""
        return pixels.float() * self.rescale

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Subtract the processor's mean and divide by its standard deviation, by channel."""
        mean, std = (make_constant(values, images.device).to(images.dtype) for values in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]


class ImageStore(SampleStore):
    """Images of a data set by position: `{"index": int, "pixel_values": uint8 (C, H, W)}`, optionally with a label.

    Every image is decoded when the store is built, so an unreadable one stops the run before any long work. Resized
    images are kept as uint8, in memory or in a memory-mapped file, if they fit into `cache_bytes`. Otherwise they are
    decoded again when needed.

    Example:
        >>> from hf_plr.data.example_data import digits
        >>> from hf_plr.models.vision import small_vit_processor
        >>> store = ImageStore(digits(), "image", ImageGeometry(small_vit_processor(32), num_channels=3))
        >>> store[0]["pixel_values"].shape
        torch.Size([3, 32, 32])

    Args:
        dataset: the data set; it is not changed.
        image_column: its column of images.
        geometry: decodes the images.
        label_column: column of true labels for scoring, returned as "labels"; None leaves them out.
        label_names: see `encode_labels`.
        cache_bytes: memory for decoded images; they are kept if all of them fit.
        cache_dir: folder for a memory-mapped file with them (see `PixelCache`); None keeps them in memory.
        skip_unreadable: leave unreadable images out with a warning, rather than raise.
        progress: show a progress bar.

    Attributes:
        rows: row of the data set at each position, ascending; shape (len(self),).
        unreadable: rows that were left out.

    Raises:
        ValueError: if the data set is empty or no image is readable.
        UnreadableImage: if an image cannot be decoded, naming its row.
    """

    noun = "image"
    input_name = "pixel_values"
    unreadable_error = UnreadableImage
    decode_batch = 256

    def __init__(
        self,
        dataset: Dataset,
        image_column: str,
        geometry: ImageGeometry,
        label_column: str | None = None,
        label_names: dict[str, int] | None = None,
        cache_bytes: int = 2**31,
        cache_dir: str | os.PathLike[str] | None = None,
        skip_unreadable: bool = False,
        progress: bool = False,
    ):
        super().__init__(dataset, image_column, label_column, label_names)
        self.geometry = geometry
        shape = (len(dataset), 1 if geometry.mode == "L" else 3, *geometry.image_size)
        is_cacheable = int(np.prod(shape)) <= cache_bytes
        pixel_cache = None
        if is_cacheable and cache_dir is not None:
            pixel_cache = PixelCache(cache_dir, f"{dataset._fingerprint}|{image_column}|{geometry.describe()}", shape)
        self._cache, self.unreadable = self._decode_or_read(
            pixel_cache, shape if is_cacheable else None, skip_unreadable, progress
        )
        self.rows = self._list_readable_rows(skip_unreadable)
        self._buffers = BatchBuffers()

    def batch(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Load the images at these positions (B,): "index" and "pixel_values", uint8 of shape (B, C, H, W)."""
        return {"index": positions, "pixel_values": self.pixels(positions)}

    def pixels(self, positions: torch.Tensor) -> torch.Tensor:
        """Load the images at these positions (B,): uint8 of shape (B, C, H, W)."""
        return self._load_inputs(positions.numpy())

    @property
    def is_cached(self) -> bool:
        """True if the decoded images are kept, in memory or in a memory-mapped file."""
        return self._cache is not None

    def _load_inputs(self, positions: np.ndarray) -> torch.Tensor:
        rows = self.rows[positions]
        return self._decode_rows(rows) if self._cache is None else self._buffers.take(self._cache, rows)

    def _decode_rows(self, rows: np.ndarray) -> torch.Tensor:
        images = [_decode(value, int(row)) for value, row in zip(self._read_column(rows), rows, strict=True)]
        return self.geometry.to_pixels(images)

    def _decode_or_read(
        self, pixel_cache: PixelCache | None, shape: tuple[int, ...] | None, skip_unreadable: bool, progress: bool
    ) -> tuple[torch.Tensor | None, list[int]]:
        """Return the decoded images, None if they are not kept, and the unreadable rows."""
        if pixel_cache is None:
            buffer = None if shape is None else torch.empty(shape, dtype=torch.uint8)
            return buffer, self._decode_into(buffer, skip_unreadable, progress)
        cached = pixel_cache.read()
        if cached is not None:
            return cached
        with pixel_cache.create() as buffer:
            unreadable = self._decode_into(buffer, skip_unreadable, progress)
            pixel_cache.write_note(unreadable)
        return buffer, unreadable

    def _decode_into(self, buffer: torch.Tensor | None, skip_unreadable: bool, progress: bool) -> list[int]:
        """Decode every image, into `buffer` (N, C, H, W) if given; returns the unreadable rows."""

        def keep(rows: np.ndarray, pixels: torch.Tensor) -> None:
            if buffer is not None:
                buffer[torch.from_numpy(rows)] = pixels

        return self._decode_all(keep, skip_unreadable, progress)


def collate_images(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of an `ImageStore` to a batch; those that were loaded together are not copied."""
    inputs = items.inputs if isinstance(items, Items) else None
    batch = {
        "index": torch.tensor([item["index"] for item in items]),
        "pixel_values": torch.stack([item["pixel_values"] for item in items]) if inputs is None else inputs,
    }
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def read_image_sizes(dataset: Dataset, image_column: str, n_samples: int = 256) -> tuple[list[int], list[int]]:
    """Read heights and widths in pixels of up to `n_samples` images, evenly spaced, without unreadable ones.

    Raises:
        ValueError: if none of them can be read.
    """
    rows = spread_rows(len(dataset), n_samples)
    column = select_undecoded(dataset, image_column)
    sizes: list[tuple[int, int]] = []
    for row in rows:
        try:
            sizes.append(_decode(column[int(row)][image_column], int(row)).size)
        except UnreadableImage:
            continue
    if not sizes:
        raise ValueError(f"none of {len(rows)} images can be read: use files that Pillow opens")
    return [height for _, height in sizes], [width for width, _ in sizes]


def _decode(value: Any, row: int) -> PILImage.Image:
    """Decode the value of a column (an image, bytes, a path, or bytes and path) to an upright 8-bit image."""
    try:
        if isinstance(value, PILImage.Image):
            image = value
        else:
            source = value if isinstance(value, (bytes, str)) else value["bytes"] or value["path"]
            image = PILImage.open(io.BytesIO(source) if isinstance(source, bytes) else open_media(source))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip at 255
            return PILImage.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image.load()
    except DECODING_ERRORS as error:
        reason = "is missing" if value is None else f"cannot be read ({error})"
        raise UnreadableImage(f"image {row} {reason}") from error
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            f"image {row} has pixels of 32 bits, whose range is not known: convert it to 8 or 16 bits"
        )
    return image
