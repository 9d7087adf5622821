"""From decoded images to pixels of one size, by the image processor of a model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image as PILImage

from hf_plr.data.image_decoding import (
    DEFAULT_BACKGROUND,
    DecodingSettings,
    ImageDecoder,
    UnreadableImage,
    WrongChannels,
    find_path,
)
from hf_plr.data.image_survey import ImageSurvey, describe_range, describe_transparency, survey_images
from hf_plr.data.sample_store import select_undecoded
from hf_plr.utils.constants import make_constant

IMAGES_RESIZED, PIXELS_RESIZED = 8, 1 << 22  # at most together, or a single larger image
DRAFT_MARGIN = 2  # pixels that a JPEG file is decoded at, per pixel that it is resized to
PROBED_SIZES = 32
SIZE_NAMES = ("height", "width", "shortest_edge")
KEPT_RANGE, KEPT_BACKGROUND = "pixel_range", "transparency_background"  # names in preprocessor_config.json


class ImageGeometry:
    """Geometry of an image processor: decodes, resizes and crops; the device rescales and normalises.

    `fit` looks at the data that a model is trained on. It finds the size of the processor's images, and the range of
    pixels of more than 8 bits, which it stores as an attribute of the processor: `save_pretrained` writes it to
    preprocessor_config.json, and whoever loads the processor decodes alike.

    A JPEG file with at least four times the pixels per edge that the processor resizes to is decoded at a half, a
    quarter or an eighth of its size, never below twice that number. Other images are decoded in full.

    Example:
        >>> from hf_plr.data.example_data import digits
        >>> from hf_plr.models.vision import small_vit_processor
        >>> geometry = ImageGeometry(small_vit_processor(32), num_channels=3)
        >>> geometry.fit(digits(), "image")
        []
        >>> geometry.image_size
        (32, 32)

    Args:
        processor: any image processor with `image_mean`, `image_std` and `rescale_factor`; `fit` adds attributes to it.
        num_channels: 3 for colour models (grey images are converted), 1 for grey ones; models of other numbers take
            images of exactly these channels.
        pixel_range: lowest and highest pixel of images of more than 8 bits, which become 0 and 255. None takes what is
            kept with the processor, otherwise what `fit` finds.
        background: colour behind transparent pixels; None takes what is kept with the processor, otherwise white.
        decoded_size: pixels of the shorter edge of the images as they are decoded and kept, more than the processor's:
            zoomed crops then have detail, see `reduce`. None decodes to the processor's size.

    Attributes:
        settings: pixel range and background.

    Raises:
        ValueError: if the processor and the model have different numbers of channels, or a setting is not valid.
    """

    def __init__(
        self,
        processor: Any,
        num_channels: int,
        pixel_range: Sequence[float] | None = None,
        background: str | None = None,
        decoded_size: int | None = None,
    ):
        self.processor = processor
        self.num_channels = num_channels
        self.rescale = float(processor.rescale_factor) if processor.do_rescale else 1.0
        normalise = bool(processor.do_normalize)
        if normalise and len(processor.image_mean) not in (1, num_channels):
            raise ValueError(
                f"the image processor normalises {len(processor.image_mean)} channels but the model has {num_channels}"
            )
        self.mean = tuple(map(float, processor.image_mean if normalise else [0.0] * num_channels))
        self.std = tuple(map(float, processor.image_std if normalise else [1.0] * num_channels))
        kept = read_kept_settings(processor)
        self.settings = DecodingSettings(
            kept.pixel_range if pixel_range is None else check_pixel_range(pixel_range),
            background or kept.background,
        )
        self._draft_edge = find_smallest_edge(processor)
        self._image_size: tuple[int, int] | None = None
        self._decoded_edge = decoded_size
        self._decoded_size: tuple[int, int] | None = None
        self._scale = 1.0  # of what is decoded, to the processor's size
        self._larger: dict[str, dict[str, int]] = {}  # sizes in place of the processor's own

    @property
    def is_fitted(self) -> bool:
        """True after `fit`."""
        return self._image_size is not None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images.

        Raises:
            RuntimeError: before `fit`.
        """
        if self._image_size is None:
            raise RuntimeError("the size of the images is known after fit(dataset, image_column)")
        return self._image_size

    @property
    def smallest_edge(self) -> int | None:
        """Pixels of the shorter edge that a JPEG file is decoded at, at least; None decodes all."""
        return None if self._draft_edge is None else math.ceil(self._draft_edge * self._scale)

    @property
    def decoded_size(self) -> tuple[int, int]:
        """Height and width of the images as they are decoded: those of `image_size` without `decoded_size`."""
        return self.image_size if self._decoded_size is None else self._decoded_size

    def fit(self, dataset: Dataset, image_column: str) -> list[str]:
        """Find the size of the images and the range of their pixels, from up to 256 images, evenly spaced.

        Every process finds the same. Unreadable images are passed over.

        Returns:
            Sentences that tell users what was found: the range of deep pixels, the background of transparent images.

        Raises:
            ValueError: if images do not have the channels of the model, or the processor gives several sizes.
        """
        self._scale, self._decoded_size, self._larger = 1.0, None, {}  # the processor's own sizes, at first
        column = select_undecoded(dataset, image_column)
        feature = dataset.features[image_column]
        survey = survey_images(column, image_column, self.make_decoder(feature))
        notes = self._take_settings(survey)
        self._image_size = self._find_image_size(column, image_column, survey, feature)
        self._check_sizes(survey)
        if self._decoded_edge is not None:
            self._enlarge(self._decoded_edge)
        return notes

    def make_decoder(self, feature: Any = None) -> ImageDecoder:
        """Make the decoder of a column of this type."""
        return ImageDecoder(self.num_channels, self.settings, feature)

    def describe(self) -> str:
        """Describe all settings that change a decoded image, as text."""
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return f"{type(self.processor).__name__}|{self.describe_decoding()}|{settings}"

    def describe_decoding(self) -> str:
        """Describe the settings that decide whether an image can be decoded, as text."""
        return f"{self.num_channels}|{self.settings}|{self.smallest_edge}"

    def decode(self, decoder: ImageDecoder, rows: Sequence[int] | np.ndarray, values: Iterable[Any]) -> np.ndarray:
        """Decode and resize stored images, a few at a time: uint8 array of shape (B, C, H, W).

        Args:
            decoder: decoder of the column.
            rows: their rows, (B,), for errors.
            values: the stored values, B of them.

        Raises:
            UnreadableImage: naming the row.
            ValueError: if the processor leaves an image at another size than the first of the data, naming its row.
        """
        pixels = np.empty((len(rows), self.num_channels, *self.decoded_size), np.uint8)
        decoded: list[PILImage.Image | np.ndarray] = []
        paths: list[str] = []
        n_resized = 0
        for row, value in zip(rows, values, strict=True):
            decoded.append(decoder.decode(value, int(row), self.smallest_edge))
            paths.append(find_path(value))
            is_last = n_resized + len(decoded) == len(rows)
            if is_last or len(decoded) == IMAGES_RESIZED or sum(map(_count_pixels, decoded)) >= PIXELS_RESIZED:
                for array, path in zip(self.resize(decoded), paths, strict=True):
                    if array.shape[1:] != self.decoded_size:
                        image = f"image {rows[n_resized]} ({path})" if path else f"image {rows[n_resized]}"
                        size = (array.shape[1], array.shape[2])
                        raise ValueError(describe_other_size(image, size, self.decoded_size))
                    pixels[n_resized] = array
                    n_resized += 1
                decoded.clear()
                paths.clear()
        return pixels

    def resize(self, images: Sequence[PILImage.Image | np.ndarray]) -> list[np.ndarray]:
        """Resize and crop what the decoder returns, by the processor: uint8 arrays of shape (C, H, W)."""
        if self.num_channels in (1, 3):
            return [array[: self.num_channels] for array in self._process(images)]
        return [self._resize_bands(np.asarray(image)) for image in images]

    def unit_range(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 pixels to float32 in the processor's range before normalisation, usually [0, 1]."""
        return pixels.float() * self.rescale

    def reduce(self, images: torch.Tensor) -> torch.Tensor:
        """Reduce images (B, C, H, W) of `unit_range` to `image_size` on their device; others stay as they are.

        The filter is the processor's if that is bicubic, otherwise bilinear; both are antialiased.
        """
        if images.shape[2:] == self.image_size:
            return images
        is_bicubic = getattr(self.processor, "resample", None) == PILImage.Resampling.BICUBIC
        reduced = F.interpolate(images, self.image_size, mode="bicubic" if is_bicubic else "bilinear", antialias=True)
        return reduced.clamp(0.0, 255 * self.rescale)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Subtract the processor's mean and divide by its standard deviation, by channel."""
        mean, std = (make_constant(values, images.device).to(images.dtype) for values in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]

    def _process(self, images: Sequence[Any]) -> list[np.ndarray]:
        processed = self.processor(list(images), do_rescale=False, do_normalize=False, **self._larger)["pixel_values"]
        arrays = [np.asarray(array) for array in processed]
        for array in arrays:
            if array.ndim != 3 or (array.dtype != np.uint8 and not 0 <= array.min() <= array.max() <= 255):
                raise ValueError(
                    f"{type(self.processor).__name__} does not leave images of shape (channels, height, width) with "
                    f"pixels of 0 to 255, but {array.dtype} of shape {array.shape}: use another image processor, such "
                    "as ViTImageProcessor"
                )
        return arrays

    def _enlarge(self, edge: int) -> None:
        """Let the processor leave images whose shorter edge has so many pixels.

        Raises:
            ValueError: if that is not more than it leaves by itself, or it does not resize.
        """
        if edge <= min(self.image_size):
            raise ValueError(
                f"decoded_size={edge} must be above {min(self.image_size)}, the size of the model's images"
            )
        self._scale = edge / min(self.image_size)
        self._larger = scale_sizes(self.processor, self._scale)
        self._decoded_size = self._processed_size(self._make_blank(*self.image_size))
        if min(self._decoded_size) != edge:
            raise ValueError(
                f"decoded_size={edge} has no effect: {type(self.processor).__name__} does not resize to one size. "
                'Leave it out, or let it resize (in preprocessor_config.json: "do_resize": true)'
            )

    def _resize_bands(self, bands: np.ndarray) -> np.ndarray:
        """Resize an image (H, W, C) of any number of channels, three at a time as a colour image: (C, H, W)."""
        n_bands = bands.shape[2]
        groups = np.arange(3 * math.ceil(n_bands / 3)).clip(max=n_bands - 1).reshape(-1, 3)
        images = [PILImage.fromarray(np.ascontiguousarray(bands[:, :, group])) for group in groups]
        return np.concatenate(self._process(images))[:n_bands]

    def _take_settings(self, survey: ImageSurvey) -> list[str]:
        """Take the range from the survey where it is not known, and keep with the processor what matters."""
        if self.settings.pixel_range is None and survey.pixel_range is not None:
            self.settings = dataclasses.replace(self.settings, pixel_range=survey.pixel_range)
        notes: list[str] = []
        pixel_range, background = self.settings.pixel_range, self.settings.background
        if pixel_range is not None:
            setattr(self.processor, KEPT_RANGE, list(pixel_range))
            if survey.n_deep:
                notes.append(describe_range(survey, pixel_range))
        if survey.n_transparent:
            notes.append(describe_transparency(survey, background))
        if survey.n_transparent or background != DEFAULT_BACKGROUND:
            setattr(self.processor, KEPT_BACKGROUND, background)
        return notes

    def _find_image_size(self, column: Dataset, name: str, survey: ImageSurvey, feature: Any) -> tuple[int, int]:
        """Find height and width of the first readable image after the processor."""
        decoder = self.make_decoder(feature)
        for row in map(int, survey.rows):
            try:
                image = decoder.decode(column[row][name], row, self.smallest_edge)
            except WrongChannels as error:
                raise ValueError(str(error)) from error
            except UnreadableImage:
                continue
            return self._processed_size(image)
        return self._processed_size(self._make_blank(64, 64))  # the store tells that no image is readable

    def _check_sizes(self, survey: ImageSurvey) -> None:
        """Refuse a processor that leaves images of several sizes, before all of them are decoded.

        Raises:
            ValueError: naming rows of two sizes.
        """
        if self._processed_size(self._make_blank(48, 64)) == self._processed_size(self._make_blank(64, 48)):
            return
        for (height, width), row in list(survey.sizes.items())[:PROBED_SIZES]:
            size = self._processed_size(self._make_blank(height, width))
            if size != self.image_size:
                raise ValueError(describe_other_size(f"image {row} ({height} x {width})", size, self.image_size))

    def _processed_size(self, image: PILImage.Image | np.ndarray) -> tuple[int, int]:
        height, width = self.resize([image])[0].shape[1:]
        return height, width

    def _make_blank(self, height: int, width: int) -> PILImage.Image | np.ndarray:
        if self.num_channels in (1, 3):
            return PILImage.new("RGB" if self.num_channels == 3 else "L", (width, height))
        return np.zeros((height, width, self.num_channels), np.uint8)


def scale_processor(processor: Any, image_size: int) -> None:
    """Let an image processor resize and crop to other sizes, with what it crops away in proportion.

    Args:
        processor: it is changed in place.
        image_size: pixels of the shorter edge of its images.

    Raises:
        ValueError: if it does not resize to one size.
    """
    is_cropped = bool(getattr(processor, "do_center_crop", False))
    last = read_sizes(getattr(processor, "crop_size" if is_cropped else "size", None))
    if not getattr(processor, "do_resize", False) or not last:
        raise ValueError(
            f"image_size={image_size} has no effect: {type(processor).__name__} does not resize to one size. Leave it "
            'out, or let it resize (in preprocessor_config.json: "do_resize": true)'
        )
    for name, scaled in scale_sizes(processor, image_size / min(last.values())).items():
        size = getattr(processor, name)
        setattr(processor, name, scaled if isinstance(size, dict) else type(size)(**scaled))


def scale_sizes(processor: Any, scale: float) -> dict[str, dict[str, int]]:
    """The `size` and `crop_size` of a processor, as far as it has them, with so many times the pixels per edge."""
    sizes = {name: read_sizes(getattr(processor, name, None)) for name in ("size", "crop_size")}
    return {
        name: {key: max(1, round(value * scale)) for key, value in edges.items()}
        for name, edges in sizes.items()
        if edges
    }


def describe_other_size(image: str, size: tuple[int, int], expected: tuple[int, int]) -> str:
    """Describe that the processor leaves an image at another size than others, and what to do about it."""
    (height, width), (expected_height, expected_width) = size, expected
    return (
        f"the image processor gives images of several sizes: {image} becomes {height} x {width}, others "
        f"{expected_height} x {expected_width}. Let it resize to one height and width (in preprocessor_config.json: "
        '"do_resize": true, "size": {"height": 224, "width": 224}), or crop ("do_center_crop": true)'
    )


def find_smallest_edge(processor: Any) -> int | None:
    """Find how many pixels of the shorter edge suffice before the processor resizes; None if it may need all."""
    size = getattr(processor, "size", None)
    if not getattr(processor, "do_resize", False) or size is None:
        return None
    edges = read_sizes(size)
    if "height" in edges and "width" in edges:
        return DRAFT_MARGIN * max(edges["height"], edges["width"])
    return DRAFT_MARGIN * edges["shortest_edge"] if "shortest_edge" in edges else None


def read_sizes(size: Any) -> dict[str, int]:
    """Read the pixels by name that a processor's `size` or `crop_size` holds, a dictionary or an object."""
    edges = {name: size.get(name) if isinstance(size, dict) else getattr(size, name, None) for name in SIZE_NAMES}
    return {name: int(edge) for name, edge in edges.items() if edge}


def read_kept_settings(processor: Any) -> DecodingSettings:
    """Read the range and the background that are kept with a processor; the defaults where there are none.

    Raises:
        ValueError: if they are not valid.
    """
    pixel_range = getattr(processor, KEPT_RANGE, None)
    background = getattr(processor, KEPT_BACKGROUND, None)
    return DecodingSettings(
        None if pixel_range is None else check_pixel_range(pixel_range),
        DEFAULT_BACKGROUND if background is None else background,
    )


def check_pixel_range(pixel_range: Any) -> tuple[float, float]:
    """Convert two numbers to a range.

    Raises:
        ValueError: if they are not two finite numbers.
    """
    try:
        low, high = map(float, pixel_range)
    except (TypeError, ValueError) as error:
        raise ValueError(f"pixel_range={pixel_range!r} must be two numbers, the lower first") from error
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"pixel_range={pixel_range!r} must be two finite numbers")
    return low, high


def _count_pixels(image: PILImage.Image | np.ndarray) -> int:
    return image.width * image.height if isinstance(image, PILImage.Image) else image.shape[0] * image.shape[1]
