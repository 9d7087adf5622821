"""Look at a sample of the images of a data set: bits and range of their pixels, transparency, sizes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage

from hf_plr.data.image_decoding import DECODING_ERRORS, ImageDecoder, composite, describe_error, read_upright_size
from hf_plr.data.sample_store import spread_rows

SURVEY_IMAGES = 256
TAIL = 0.001  # of the pixels of an image, at either end
IMAGE_TAIL = 0.01  # of the images, at either end
MEASURED_PIXELS = 1 << 20  # of an image
PIXELS_READ, FEWEST_READ = 1 << 28, 16  # of deep images, and of transparent ones
WHOLE_CEILINGS = tuple(2.0**bits - 1 for bits in range(8, 33))
FLOAT_CEILINGS = (1.0, 255.0, 65535.0)
FLAT = 16  # levels


@dataclass
class ImageSurvey:
    """What a sample of images has in common.

    Attributes:
        rows: rows that were looked at, ascending.
        sizes: the first row of each upright size (H, W).
        errors: why images could not be opened, by row.
        n_deep: images of more than 8 bits.
        n_wide: those of 32 or 64 bits, or in which Pillow holds their 16.
        n_fractions: those whose pixels are floating-point numbers.
        pixel_range: range of their pixels, see `choose_pixel_range`; None if it was not measured or there are none.
        n_alpha: images with an alpha channel whose pixels were read.
        n_transparent: those with transparent pixels.
        n_flat: transparent images that show nearly nothing on the background.
    """

    rows: np.ndarray
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    n_deep: int = 0
    n_wide: int = 0
    n_fractions: int = 0
    pixel_range: tuple[float, float] | None = None
    n_alpha: int = 0
    n_transparent: int = 0
    n_flat: int = 0


def survey_images(column: Dataset, name: str, decoder: ImageDecoder, n_images: int = SURVEY_IMAGES) -> ImageSurvey:
    """Look at up to `n_images` images, evenly spaced: the same ones in every process.

    Headers are read. Pixels are read of transparent images, and of those of more than 8 bits if the decoder has no
    range for them; of images that have more than a quarter of a gigapixel together, only of some, evenly spaced.

    Args:
        column: undecoded column, see `select_undecoded`.
        name: its name.
        decoder: opens the images.
        n_images: number of images.
    """
    survey = ImageSurvey(spread_rows(len(column), n_images))
    deep: list[int] = []
    with_alpha: list[int] = []
    for row in map(int, survey.rows):
        value = column[row][name]
        try:
            opened = decoder.open(value)
            survey.sizes.setdefault(read_size(opened), row)
            if decoder.is_deep(opened):
                deep.append(row)
                _count_deep(opened, survey)
            elif _may_be_transparent(opened, decoder):
                with_alpha.append(row)
        except DECODING_ERRORS as error:
            survey.errors[row] = describe_error(value, error)
    largest = max((height * width for height, width in survey.sizes), default=1)
    n_read = max(FEWEST_READ, PIXELS_READ // largest)
    bounds: list[tuple[float, float]] = []
    for row in _thin(deep, n_read) if decoder.settings.pixel_range is None else ():
        value = column[row][name]
        with contextlib.suppress(*DECODING_ERRORS):
            bounds += _measure(_without_alpha(decoder.read_deep(value, decoder.open(value)), decoder.num_channels))
    if bounds:
        survey.pixel_range = choose_pixel_range(np.asarray(bounds), has_floats=survey.n_fractions > 0)
    for row in _thin(with_alpha, n_read):
        with contextlib.suppress(*DECODING_ERRORS):
            _count_transparent(decoder.open(column[row][name]), decoder.settings.background, survey)
    return survey


def choose_pixel_range(bounds: np.ndarray, has_floats: bool = False) -> tuple[float, float]:
    """Choose one range for all images from the lowest and highest pixels of some.

    One percent of the images at either end may lie outside, such as frames that failed. If the rest fills at least
    half of a usual range from zero, that range is taken: 0 to 4,095 for a camera of 12 bits. Otherwise, as for
    thermal cameras, the range is what was seen.

    Args:
        bounds: lowest and highest pixel per image, float64 of shape (N, 2).
        has_floats: the pixels are fractions; only 0 to 1, 255 and 65,535 are usual for them.

    Returns:
        Lowest and highest pixel, the lower first.
    """
    low = float(np.quantile(bounds[:, 0], IMAGE_TAIL, method="lower"))
    high = float(np.quantile(bounds[:, 1], 1 - IMAGE_TAIL, method="higher"))
    for ceiling in FLOAT_CEILINGS if has_floats else WHOLE_CEILINGS:
        if high <= ceiling:
            if low >= 0 and high - low >= ceiling / 2:
                return 0.0, ceiling
            break
    return low, high if high > low else low + 1.0


def describe_range(survey: ImageSurvey, pixel_range: tuple[float, float]) -> str:
    """Describe in a sentence which pixels become 0 and 255."""
    low, high = map(_format_number, pixel_range)
    counts = f"{survey.n_deep} of {len(survey.rows)} looked at have more than 8 bits"
    if 0 < survey.n_fractions < survey.n_deep:
        counts += f", {survey.n_fractions} of these floating-point pixels: they need a data set of their own"
    images = "16-bit images" if survey.n_wide == 0 else "Images of more than 8 bits"
    return (
        f"{images}: pixels {low} to {high} become 0 to 255 in all images ({counts}); "
        "pixel_range (--pixel_range) sets another range"
    )


def describe_transparency(survey: ImageSurvey, background: str) -> str:
    """Describe in a sentence what transparent images are laid on."""
    count = f"{survey.n_transparent} of {survey.n_alpha} images with an alpha channel"
    text = f"{count} are transparent: they lie on {background}"
    if 2 * survey.n_flat > survey.n_transparent:
        text += f", where {survey.n_flat} of them show nearly nothing"
    return f"{text}; transparency_background (--transparency_background) sets another colour"


def read_size(opened: PILImage.Image | np.ndarray) -> tuple[int, int]:
    """Read height and width of an opened image as it is shown, without its pixels."""
    if isinstance(opened, PILImage.Image):
        return read_upright_size(opened)
    height, width, *channels = opened.shape
    is_channels_first = bool(channels) and channels[0] > height
    return (width, channels[0]) if is_channels_first else (height, width)


def _without_alpha(pixels: np.ndarray, num_channels: int) -> np.ndarray:
    has_alpha = num_channels in (1, 3) and pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    return pixels[:, :, :-1] if has_alpha else pixels


def _thin(rows: list[int], n: int) -> list[int]:
    return [rows[i] for i in spread_rows(len(rows), n)] if rows else []


def _measure(pixels: np.ndarray) -> list[tuple[float, float]]:
    """Measure the lowest and highest pixel without the tails; empty if none is finite."""
    flat = pixels.reshape(-1)
    flat = flat[:: max(1, len(flat) // MEASURED_PIXELS)]
    flat = flat[np.isfinite(flat)]
    if len(flat) == 0:
        return []
    low = np.quantile(flat, TAIL, method="lower")
    high = np.quantile(flat, 1 - TAIL, method="higher")
    return [(float(low), float(high))]


def _may_be_transparent(opened: PILImage.Image | np.ndarray, decoder: ImageDecoder) -> bool:
    is_kept = decoder.num_channels in (1, 3) and decoder.column_mode in (None, "RGBA", "LA", "PA", "P")
    return is_kept and isinstance(opened, PILImage.Image) and opened.has_transparency_data


def _count_deep(opened: PILImage.Image | np.ndarray, survey: ImageSurvey) -> None:
    survey.n_deep += 1
    if isinstance(opened, PILImage.Image):
        survey.n_wide += opened.mode in ("I", "F")
        survey.n_fractions += opened.mode == "F"
    else:
        survey.n_wide += opened.dtype.itemsize > 2
        survey.n_fractions += opened.dtype.kind == "f"


def _count_transparent(opened: Any, background: str, survey: ImageSurvey) -> None:
    layer = opened.convert("RGBA")
    survey.n_alpha += 1
    if layer.getchannel("A").getextrema()[0] == 255:
        return
    shown = np.asarray(composite(layer, background).convert("L"))
    survey.n_transparent += 1
    survey.n_flat += int(shown.max()) - int(shown.min()) < FLAT


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
