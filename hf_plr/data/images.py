"""Images of a data set as uint8 tensors of one size, decoded once."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage
from PIL import ImageOps
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from hf_plr.data.pixel_cache import PixelCache

logger = logging.getLogger(__name__)

DECODE_BATCH = 256
HOW_TO_SKIP = "--skip_unreadable (skip_unreadable=True) leaves it out."


class UnreadableImage(ValueError):
    """An image that cannot be decoded."""


class ImageGeometry:
    """Decode, resize and crop as an image processor does; rescaling and normalising is left to the device.

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
        self.mean = torch.tensor(processor.image_mean if normalise else [0.0] * num_channels).view(-1, 1, 1)
        self.std = torch.tensor(processor.image_std if normalise else [1.0] * num_channels).view(-1, 1, 1)
        height, width = self.to_pixels([PILImage.new(self.mode, (64, 64))]).shape[2:]
        self.image_size = (height, width)

    def describe(self) -> str:
        """Everything that decides how an image is decoded, as text."""
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return f"{type(self.processor).__name__}|{self.mode}|{settings}"

    def to_pixels(self, images: list[PILImage.Image]) -> torch.Tensor:
        """uint8 tensor of shape (B, C, H, W)."""
        images = [image if image.mode == self.mode else image.convert(self.mode) for image in images]
        arrays = self.processor(images, do_rescale=False, do_normalize=False)["pixel_values"]
        arrays = [np.asarray(array) for array in arrays]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(
                f"the image processor gives images of several sizes, such as {arrays[0].shape}: it must resize to one "
                "height and width, or crop (do_center_crop=True)"
            )
        return torch.from_numpy(np.stack(arrays))

    def unit_range(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels as float32 in the processor's range before normalisation, usually [0, 1]."""
        return pixels.float() * self.rescale

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Subtract the processor's mean and divide by its standard deviation, by channel."""
        return (images - self.mean.to(images)) / self.std.to(images)


class ImageStore(TorchDataset):
    """The images of a data set by position: `{"index": int, "pixel_values": uint8 (C, H, W)}`, with a label if asked.

    Every image is decoded when the store is built, so an unreadable one is found before any long work. Resized images
    are kept as uint8, in memory or in a memory-mapped file, if they fit into `cache_bytes`; otherwise they are decoded
    again when needed.

    Args:
        dataset: the data set; it is not changed.
        image_column: its column of images.
        geometry: how images are decoded.
        label_column: column of true labels for scoring, handed out as "labels"; None leaves them out.
        label_names: see `encode_labels`.
        cache_bytes: room for decoded images; they are kept if all of them fit.
        cache_dir: folder for a memory-mapped file with them (see `PixelCache`); None keeps them in memory.
        skip_unreadable: leave unreadable images out and say how many, rather than stop.
        progress: show a progress bar.

    Attributes:
        rows: row of the data set at each position, ascending; shape (len(self),).
        unreadable: rows that were left out.

    Raises:
        ValueError: if the data set is empty or no image is readable.
        UnreadableImage: if an image cannot be decoded; the message has its row.
    """

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
        if len(dataset) == 0:
            raise ValueError("the data set is empty: it has no row")
        self.geometry = geometry
        self.labels = None if label_column is None else encode_labels(dataset, label_column, label_names)
        self._column = _undecoded(dataset, image_column)
        self._image_column = image_column
        shape = (len(dataset), 1 if geometry.mode == "L" else 3, *geometry.image_size)
        fits = int(np.prod(shape)) <= cache_bytes
        file = None
        if fits and cache_dir is not None:
            file = PixelCache(cache_dir, f"{dataset._fingerprint}|{image_column}|{geometry.describe()}", shape)
        self._cache, self.unreadable = self._decode_or_read(file, shape if fits else None, skip_unreadable, progress)
        self.rows = self._readable_rows(skip_unreadable)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        rows = self.rows[np.asarray(positions)]
        pixels = self.pixels(torch.as_tensor(positions))
        items = [
            {"index": int(position), "pixel_values": image} for position, image in zip(positions, pixels, strict=True)
        ]
        if self.labels is not None:
            for item, row in zip(items, rows, strict=True):
                item["labels"] = int(self.labels[row])
        return items

    def pixels(self, positions: torch.Tensor) -> torch.Tensor:
        """The images at these positions (B,): uint8 of shape (B, C, H, W)."""
        rows = self.rows[positions.numpy()]
        return self._pixels(rows) if self._cache is None else self._cache[torch.from_numpy(rows)]

    @property
    def is_cached(self) -> bool:
        """Whether the decoded images are kept, in memory or in a memory-mapped file."""
        return self._cache is not None

    def true_labels(self) -> np.ndarray:
        """True label of each position, -1 = unknown, shape (len(self),).

        Raises:
            ValueError: if the store was made without a label column.
        """
        if self.labels is None:
            raise ValueError("these images have no label column")
        return self.labels[self.rows]

    def _pixels(self, rows: np.ndarray) -> torch.Tensor:
        values = self._column[[int(row) for row in rows]][self._image_column]
        images = [_decode(value, int(row)) for value, row in zip(values, rows, strict=True)]
        return self.geometry.to_pixels(images)

    def _decode_or_read(
        self, file: PixelCache | None, shape: tuple[int, ...] | None, skip_unreadable: bool, progress: bool
    ) -> tuple[torch.Tensor | None, list[int]]:
        """The decoded images, None where they are not kept, and the rows that are unreadable."""
        if file is None:
            room = None if shape is None else torch.empty(shape, dtype=torch.uint8)
            return room, self._decode_all(room, skip_unreadable, progress)
        found = file.read()
        if found is not None:
            return found
        with file.written() as room:
            unreadable = self._decode_all(room, skip_unreadable, progress)
            file.note(unreadable)
        return room, unreadable

    def _decode_all(self, room: torch.Tensor | None, skip_unreadable: bool, progress: bool) -> list[int]:
        """Decode every image, into `room` (N, C, H, W) if there is some; the rows that are unreadable."""
        n = len(self._column)
        unreadable: list[int] = []
        starts = range(0, n, DECODE_BATCH)
        for start in tqdm(starts, desc="Reading images", unit="batch", disable=not progress, leave=False):
            rows = np.arange(start, min(start + DECODE_BATCH, n))
            try:
                pixels = self._pixels(rows)
            except UnreadableImage as error:
                if not skip_unreadable:
                    raise UnreadableImage(f"{error}. {HOW_TO_SKIP}") from error
                good = [row for row in rows if self._readable(int(row))]
                unreadable.extend(sorted(set(rows.tolist()) - set(good)))
                rows = np.asarray(good, dtype=np.int64)
                if len(rows) == 0:
                    continue
                pixels = self._pixels(rows)
            if room is not None:
                room[torch.from_numpy(rows)] = pixels
        return unreadable

    def _readable_rows(self, skip_unreadable: bool) -> np.ndarray:
        n = len(self._column)
        if self.unreadable and not skip_unreadable:  # known from an earlier run that left them out
            raise UnreadableImage(f"image {self.unreadable[0]} cannot be read. {HOW_TO_SKIP}")
        kept = np.setdiff1d(np.arange(n), self.unreadable)
        if len(kept) == 0:
            raise ValueError(f"none of the {n} images can be read")
        if self.unreadable:
            shown = ", ".join(map(str, self.unreadable[:10])) + (", ..." if len(self.unreadable) > 10 else "")
            logger.warning("%d of %d images cannot be read and are left out: rows %s", n - len(kept), n, shown)
        return kept

    def _readable(self, row: int) -> bool:
        try:
            self._pixels(np.asarray([row]))
        except UnreadableImage:
            return False
        return True


def collate_images(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of an `ImageStore` to a batch."""
    batch = {
        "index": torch.tensor([item["index"] for item in items]),
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
    }
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def image_sizes(dataset: Dataset, image_column: str, n_samples: int = 256) -> tuple[list[int], list[int]]:
    """Heights and widths in pixels of up to `n_samples` images, evenly spaced; unreadable ones are left out.

    Raises:
        ValueError: if none of them can be read.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(n_samples, len(dataset))).astype(np.int64))
    column = _undecoded(dataset, image_column)
    sizes: list[tuple[int, int]] = []
    for row in rows:
        try:
            sizes.append(_decode(column[int(row)][image_column], int(row)).size)
        except UnreadableImage:
            continue
    if not sizes:
        raise ValueError(f"none of {len(rows)} images looked at can be read")
    return [height for _, height in sizes], [width for width, _ in sizes]


def encode_labels(dataset: Dataset, label_column: str, names: dict[str, int] | None = None) -> np.ndarray:
    """True labels as integers.

    Args:
        dataset: the data set.
        label_column: column of class labels, integers or text.
        names: numbers of class names so far. Names that are new are added, so that a class has the same number in every
            split that is encoded with the same dictionary.

    Returns:
        int64 array of shape (N,); -1 where a label is missing.
    """
    names = {} if names is None else names
    values = dataset.with_format(None).select_columns([label_column])[:][label_column]
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        values = [None if value is None or value < 0 else feature.names[value] for value in values]
        new = feature.names
    else:
        new = sorted({value for value in values if isinstance(value, str)})
    for name in new:
        names.setdefault(name, len(names))
    labels = np.full(len(values), -1, dtype=np.int64)
    for i, value in enumerate(values):
        if isinstance(value, str):
            labels[i] = names[value]
        elif value is not None and value == value:  # not NaN, which stands for a missing number
            labels[i] = int(value)
    return labels


def _undecoded(dataset: Dataset, image_column: str) -> Dataset:
    """The column of images as bytes or paths: decoded here, so that a bad one can be named by its row."""
    column = dataset.select_columns([image_column])
    if isinstance(dataset.features[image_column], Image):
        column = column.cast_column(image_column, Image(decode=False))
    return column.with_format(None)


def _decode(value: Any, row: int) -> PILImage.Image:
    """An upright 8-bit image out of what a column holds: an image, bytes, a path, or bytes and path."""
    try:
        if isinstance(value, PILImage.Image):
            image = value
        else:
            source = value if isinstance(value, (bytes, str)) else value["bytes"] or value["path"]
            image = PILImage.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip at 255
            return PILImage.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image.load()
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, PILImage.DecompressionBombError) as error:
        what = "is missing" if value is None else f"cannot be read ({error})"
        raise UnreadableImage(f"image {row} {what}") from error
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            f"image {row} has pixels of 32 bits, whose range is not known: convert it to 8 or 16 bits"
        )
    return image
