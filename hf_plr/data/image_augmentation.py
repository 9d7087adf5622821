"""Augmentation in batches on the training device, the same for an image in any batch.

Every random number is a function of (seed, epoch, sample index). A resumed run therefore sees the images that the
uninterrupted run saw, with any number of workers or processes.
"""

from __future__ import annotations

from typing import Protocol

import kornia.enhance as enhance
import kornia.geometry.transform as transform
import torch
import torch.nn.functional as F

from hf_plr.utils.constants import make_constant


class ImageAugmentation(Protocol):
    """Interface of the functions that augment a batch of images."""

    def __call__(self, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Augment images (B, C, H, W), in [0, 1], with random numbers (B, 16), uniform in [0, 1)."""


class SamplingAugmentation(ImageAugmentation, Protocol):
    """Interface of those that can draw their images from larger ones, see `SAMPLING_AUGMENTATIONS`."""

    def __call__(
        self, images: torch.Tensor, numbers: torch.Tensor, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Augment images to (B, C, *size); None is their own size."""


IMAGENET_MEAN = (0.485, 0.456, 0.406)


def no_augmentation(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Leave the images as they are."""
    return images


def affine_augmentation(
    images: torch.Tensor, numbers: torch.Tensor, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Rotate (12 degrees), shear (8 degrees), shift (10%) and scale (10%) a little, and change contrast (20%).

    Writing and drawings stay readable: nothing is mirrored and no colour changes.
    """
    images = _warp(images, numbers, degrees=12.0, shear=8.0, shift=0.10, scale=(0.9, 1.1), mirror=False, size=size)
    return enhance.adjust_contrast(images, 0.8 + 0.4 * numbers[:, 6]).clamp(0.0, 1.0)


def photo_augmentation(
    images: torch.Tensor, numbers: torch.Tensor, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Zoom and crop (to half the side), mirror, and change brightness (30%), contrast and saturation (40%)."""
    images = _warp(images, numbers, degrees=5.0, shear=0.0, shift=0.15, scale=(1.0, 1.8), mirror=True, size=size)
    images = enhance.adjust_brightness(images, 0.6 * (numbers[:, 6] - 0.5), clip_output=True)
    images = enhance.adjust_contrast(images, 0.6 + 0.8 * numbers[:, 7], clip_output=True)
    if images.shape[1] == 3:
        images = enhance.adjust_saturation(images, 0.6 + 0.8 * numbers[:, 8])
    return images.clamp(0.0, 1.0)


def reid_augmentation(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Mirror, shift and erase at random, as is usual in re-identification.

    Half of the images are mirrored. All are shifted by up to 10 pixels for a height of 256; black comes in. In half of
    them a rectangle takes the mean colour of ImageNet (Zhong et al., Random Erasing, AAAI 2020). It covers 2% to 40%
    of the area and is 0.3 to 3.3 times as high as wide, drawn among the aspects that fit into the image.
    """
    images = torch.where(numbers[:, 0, None, None, None] < 0.5, images.flip(3), images)
    return _erase(_shift_pixels(images, numbers[:, 1:3], images.shape[2] * 10 / 256), numbers[:, 3:8])


IMAGE_AUGMENTATIONS: dict[str, ImageAugmentation] = {
    "affine": affine_augmentation,
    "photo": photo_augmentation,
    "reid": reid_augmentation,
    "none": no_augmentation,
}
SAMPLING_AUGMENTATIONS: tuple[SamplingAugmentation, ...] = (affine_augmentation, photo_augmentation)


def _warp(
    images: torch.Tensor,
    numbers: torch.Tensor,
    degrees: float,
    shear: float,
    shift: float,
    scale: tuple[float, float],
    mirror: bool,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Rotate, shear, shift, scale and mirror each image by its own random numbers 0 to 5; edges are repeated.

    Images are sampled to `size`, if it is given: what is zoomed in larger images has detail.
    """
    height, width = images.shape[2:]
    signed = 2.0 * numbers - 1.0
    shift_pixels = signed[:, 2:4] * shift * make_constant((width, height), images.device)
    center = make_constant(((width - 1) / 2, (height - 1) / 2), images.device).expand(len(images), 2)
    scales = (scale[0] + (scale[1] - scale[0]) * numbers[:, 4:5]).expand(-1, 2).clone()
    matrix = transform.get_affine_matrix2d(
        shift_pixels, center, scales, signed[:, 0] * degrees, sx=torch.deg2rad(signed[:, 1] * shear)
    )
    if size is not None and size != (height, width):
        matrix = _make_scaling((height, width), size, images.device).to(matrix) @ matrix
    warped = transform.warp_affine(
        images, matrix[:, :2], dsize=size or (height, width), mode="bilinear", padding_mode="border", align_corners=True
    )
    if mirror:
        warped = torch.where(numbers[:, 5, None, None, None] < 0.5, warped.flip(3), warped)
    return warped


def _make_scaling(size: tuple[int, int], new_size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Matrix (3, 3) from pixels (x, y) of images of one size to those of another; edges lie half a pixel outside."""
    (down, right), (new_down, new_right) = size, new_size
    across, along = new_right / right, new_down / down
    rows = ((across, 0.0, (across - 1) / 2), (0.0, along, (along - 1) / 2), (0.0, 0.0, 1.0))
    return make_constant(tuple(value for row in rows for value in row), device).reshape(3, 3)


def _shift_pixels(images: torch.Tensor, numbers: torch.Tensor, max_shift: float) -> torch.Tensor:
    """Shift images (B, C, H, W) by up to `max_shift` whole pixels, down and right by `numbers` (B, 2)."""
    height, width = images.shape[2:]
    pad = round(max_shift)
    padded = F.pad(images, (pad, pad, pad, pad))
    top, left = (numbers * (2 * pad + 1)).long().T
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    image = torch.arange(len(images), device=images.device)
    # Two index tensors around a slice put the channels last.
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _erase(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Fill a rectangle in half of the images (B, C, H, W); `numbers` (B, 5): choice, area, aspect, top, left."""
    height, width = images.shape[2:]
    area = (0.02 + 0.38 * numbers[:, 1]) * height * width
    lowest = (area / width**2).clamp(0.3, 1 / 0.3)  # as wide as the image
    highest = (height**2 / area).clamp(0.3, 1 / 0.3)  # as high as the image
    aspect = lowest + (highest - lowest).clamp(min=0.0) * numbers[:, 2]
    erased_height = (area * aspect).sqrt().round().clamp(1, height)
    erased_width = (area / aspect).sqrt().round().clamp(1, width)
    top = (numbers[:, 3] * (height - erased_height + 1)).floor()
    left = (numbers[:, 4] * (width - erased_width + 1)).floor()
    row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (row >= top[:, None]) & (row < (top + erased_height)[:, None])
    in_columns = (column >= left[:, None]) & (column < (left + erased_width)[:, None])
    erased = (numbers[:, 0] < 0.5)[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
    fill = make_constant(IMAGENET_MEAN if images.shape[1] == 3 else (0.5,) * images.shape[1], images.device)
    return torch.where(erased[:, None], fill.to(images)[:, None, None], images)
