"""Images of a data set as uint8 tensors of one size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from hf_plr.data.decoded_cache import DecodedCache
from hf_plr.data.image_decoding import DECODING_ERRORS, ImageDecoder, UnreadableImage, describe_error
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_survey import SURVEY_IMAGES, read_size
from hf_plr.data.manifest import Manifest
from hf_plr.data.sample_store import Finding, Items, SampleStore, collate_notes, select_undecoded, spread_rows

logger = logging.getLogger(__name__)

ROWS_READ = 8  # whose files are in memory together


class ImageStore(SampleStore):
    """Images of a data set by position: `{"index": int, "pixel_values": uint8 (C, H, W)}`, optionally with a label.

    Nothing is read when the store is built, see `SampleStore`. Each image is resized as soon as it is decoded: photos
    of any size take the memory of a few at a time. Resized images are kept as uint8 when they are decoded for the first
    time: in memory if all of them fit into `cache_bytes`, or in a file (see `DecodedCache`). Otherwise they are decoded
    again when needed.

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
        cache_dir: folder for a file with them in place of memory, of any size that fits on the disk.
        skip_unreadable: leave unreadable images out with a warning, rather than raise.
        manifest_dir: folder for what is found out about the rows, for later runs; None leaves no trace.
        state: the processes that open the data set together; None for one alone.
        numbers: see `SampleStore`.

    Attributes:
        rows: row of the data set at each position, ascending; shape (len(self),).
        unreadable: rows that were left out.

    Raises:
        ValueError: if the data set is empty, the images do not fit the geometry, or the disk has no room for them.
        UnreadableImage: if an earlier run found an image that cannot be decoded, naming its row.
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
        manifest_dir: str | os.PathLike[str] | None = None,
        state: PartialState | None = None,
        numbers: np.ndarray | None = None,
    ):
        super().__init__(dataset, image_column, label_column, label_names, skip_unreadable, state, numbers)
        self.geometry = geometry
        if not geometry.is_fitted:
            for note in geometry.fit(dataset, image_column):
                logger.warning("%s.", note)
        self._decoder = geometry.make_decoder(dataset.features[image_column])
        self._open_manifest(manifest_dir, f"{geometry.describe_decoding()}|{self._decoder.column_mode}")
        self._adopt(self._known)
        self._shape = (geometry.num_channels, *geometry.decoded_size)
        self._cache = self._make_cache(cache_bytes, cache_dir)

    def batch(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Load the images at these positions (B,): "index" and "pixel_values", uint8 of shape (B, C, H, W)."""
        return {"index": positions, "pixel_values": self.pixels(positions)}

    def pixels(self, positions: torch.Tensor) -> torch.Tensor:
        """Load the images at these positions (B,): uint8 of shape (B, C, H, W)."""
        return self._load_inputs(positions.numpy())

    def _make_cache(self, cache_bytes: int, cache_dir: str | os.PathLike[str] | None) -> DecodedCache | None:
        size = int(np.prod(self._shape))
        offsets = range(0, (len(self._column) + 1) * size, size)
        if cache_dir is not None:
            settings = f"{self.geometry.describe()}|{self._decoder.column_mode}|{self._shape}"
            key = f"{self._fingerprint}|{self._column_name}|{self._stamp}|{settings}"
            return DecodedCache.in_file(cache_dir, "images", key, offsets)
        return DecodedCache.in_memory(offsets) if offsets[-1] <= cache_bytes else None

    def _order(self, sizes: dict[int, int]) -> None:
        self.rows = np.setdiff1d(np.arange(len(self._column)), self.unreadable)

    def _make_manifest(self, unreadable: Sequence[int], sizes: dict[int, int]) -> Manifest:
        return Manifest(np.unique(np.asarray(unreadable, np.int64)))

    def _examine(self, row: int) -> Finding:
        try:
            self._decode_rows(np.array([row]))
        except UnreadableImage as error:
            return str(error)
        return None

    def _number(self, positions: np.ndarray) -> np.ndarray:
        return self.rows[positions]

    def _make_placeholder(self, position: int) -> torch.Tensor:
        return torch.zeros(self._shape, dtype=torch.uint8)

    def _load_inputs(self, positions: np.ndarray) -> torch.Tensor:
        rows, cache = self.rows[positions], self._cache
        if cache is None:
            return self._decode_rows(rows)
        is_kept = cache.find(rows)
        if is_kept.all():
            return self._buffers.take(cache.content.reshape(-1, *self._shape), rows)
        decoded = self._decode_rows(rows[~is_kept])
        for row, pixels in zip(rows[~is_kept].tolist(), decoded.numpy(), strict=True):
            cache.write(row, pixels.reshape(-1))
        if not is_kept.any():
            return decoded
        images = torch.empty(len(rows), *self._shape, dtype=torch.uint8)
        images.numpy()[~is_kept] = decoded.numpy()
        images.numpy()[is_kept] = cache.content.reshape(-1, *self._shape)[rows[is_kept]]
        return images

    def _decode_rows(self, rows: np.ndarray) -> torch.Tensor:
        """Decode these rows of the data set from the stored files; raises an `UnreadableImage`."""
        return torch.from_numpy(self.geometry.decode(self._decoder, rows, self._read_in_parts(rows)))

    def _read_in_parts(self, rows: np.ndarray) -> Iterator[Any]:
        """Read the column's values in these rows, a few at a time: they may be the bytes of large photos."""
        for start in range(0, len(rows), ROWS_READ):
            yield from self._read_column(rows[start : start + ROWS_READ])


def collate_images(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of an `ImageStore` to a batch; those that were loaded together are not copied."""
    inputs = items.inputs if isinstance(items, Items) else None
    batch = {
        "index": torch.tensor([item["index"] for item in items]),
        "pixel_values": torch.stack([item["pixel_values"] for item in items]) if inputs is None else inputs,
    }
    return batch | collate_notes(items)


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
