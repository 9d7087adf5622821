"""Images of a data set as uint8 tensors of one size, decoded once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_plr.data.batch_buffers import BatchBuffers
from hf_plr.data.image_decoding import DECODING_ERRORS, ImageDecoder, UnreadableImage, describe_error
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_survey import SURVEY_IMAGES, read_size
from hf_plr.data.pixel_cache import PixelCache
from hf_plr.data.sample_store import Items, SampleStore, select_undecoded, spread_rows

logger = logging.getLogger(__name__)

ROWS_READ = 8  # whose files are in memory together


class ImageStore(SampleStore):
    """Images of a data set by position: `{"index": int, "pixel_values": uint8 (C, H, W)}`, optionally with a label.

    Every image is decoded when the store is built, so an unreadable one stops the run before any long work. Each is
    resized as soon as it is decoded: photos of any size take the memory of a few at a time. Resized images are kept as
    uint8, in memory or in a memory-mapped file, if they fit into `cache_bytes`. Otherwise they are
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
        geometry: decodes the images; one that is not fitted yet is fitted to these.
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
        ValueError: if the data set is empty, no image is readable, or the images do not fit the geometry.
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
        if not geometry.is_fitted:
            for note in geometry.fit(dataset, image_column):
                logger.warning("%s.", note)
        self._decoder = geometry.make_decoder(dataset.features[image_column])
        shape = (len(dataset), geometry.num_channels, *geometry.image_size)
        is_cacheable = int(np.prod(shape)) <= cache_bytes
        pixel_cache = None
        if is_cacheable and cache_dir is not None:
            settings = f"{geometry.describe()}|{self._decoder.column_mode}"
            pixel_cache = PixelCache(cache_dir, f"{dataset._fingerprint}|{image_column}|{settings}", shape)
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
        return torch.from_numpy(self.geometry.decode(self._decoder, rows, self._read_in_parts(rows)))

    def _read_in_parts(self, rows: np.ndarray) -> Iterator[Any]:
        """Read the column's values in these rows, a few at a time: they may be the bytes of large photos."""
        for start in range(0, len(rows), ROWS_READ):
            yield from self._read_column(rows[start : start + ROWS_READ])

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


def read_image_sizes(
    dataset: Dataset, image_column: str, n_samples: int = SURVEY_IMAGES
) -> tuple[list[int], list[int]]:
    """Read heights and widths in pixels of up to `n_samples` images, evenly spaced, without unreadable ones.

    Raises:
        ValueError: if none of them can be read.
    """
    decoder = ImageDecoder(3, feature=dataset.features[image_column])
    column = select_undecoded(dataset, image_column)
    heights, widths = [], []
    errors: dict[int, str] = {}
    rows = spread_rows(len(dataset), n_samples)
    for row in map(int, rows):
        value = column[row][image_column]
        try:
            height, width = read_size(decoder.open(value))
        except DECODING_ERRORS as error:
            errors[row] = describe_error(value, error)
            continue
        heights.append(height)
        widths.append(width)
    if not heights:
        row, reason = next(iter(errors.items()))
        raise ValueError(f"none of {len(rows)} images can be read (image {row}: {reason}): use files that Pillow opens")
    return heights, widths
