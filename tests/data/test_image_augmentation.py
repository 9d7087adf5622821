"""Augmentation of an image depends on its own numbers and not on its batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.data.image_augmentation import IMAGE_AUGMENTATIONS
from hf_plr.utils.rng import uniform


def test_random_numbers_are_uniform_and_belong_to_the_sample():
    numbers = uniform(torch.arange(20_000), seed=1, epoch=2)
    assert ((numbers >= 0) & (numbers < 1)).all()
    histogram = torch.histc(numbers, 10, 0, 1) / numbers.numel()
    assert (histogram - 0.1).abs().max() < 0.003
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.03
    torch.testing.assert_close(uniform(torch.tensor([17, 4]), 1, 2), numbers[[17, 4]])
    assert not torch.equal(uniform(torch.arange(5), 1, 3), numbers[:5])
    assert not torch.equal(uniform(torch.arange(5), 2, 2), numbers[:5])


@pytest.mark.parametrize("name", ["affine", "photo", "reid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_of_an_image_does_not_depend_on_its_batch(name, channels):
    images = torch.rand(9, channels, 24, 24)
    numbers = uniform(torch.arange(9), 0, 0)
    together = IMAGE_AUGMENTATIONS[name](images, numbers)
    alone = torch.cat([IMAGE_AUGMENTATIONS[name](images[i : i + 1], numbers[i : i + 1]) for i in range(9)])
    assert torch.equal(together, alone)
    assert together.shape == images.shape
    assert ((together >= 0) & (together <= 1)).all()
    changed = (together - images).abs().mean(dim=(1, 2, 3))
    if name == "reid":  # one in twelve is neither mirrored nor moved nor erased
        assert (changed > 0.01).float().mean() > 0.7
    else:
        assert changed.min() > 0.01


def test_affine_never_mirrors():
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32)
    out = IMAGE_AUGMENTATIONS["affine"](ramp, uniform(torch.arange(64), 0, 0))
    assert (out[:, :, :, 24:].mean(dim=(1, 2, 3)) > out[:, :, :, :8].mean(dim=(1, 2, 3))).all()


@given(st.integers(8, 80), st.integers(8, 80), st.sampled_from([1, 3]), st.integers(0, 5))
def test_reid_erases_rectangles_of_the_mean_colour(height, width, channels, seed):
    """On a black image whatever is not black was erased, wherever the image was moved."""
    out = IMAGE_AUGMENTATIONS["reid"](torch.zeros(64, channels, height, width), uniform(torch.arange(64), seed, 0))
    assert out.shape == (64, channels, height, width)
    erased = out[:, 0] > 0
    fill = torch.tensor([0.485, 0.456, 0.406] if channels == 3 else [0.5])
    assert torch.equal(out, erased[:, None] * fill[:, None, None])
    assert 0.25 < erased.any(2).any(1).float().mean() < 0.75
    heights, widths = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(erased.sum((1, 2)), heights * widths)
    share = (erased.float().mean((1, 2)))[heights > 0]
    rounding = 0.5 / height + 0.5 / width
    assert share.max() <= 0.4 + rounding
    if 0.5 <= height / width <= 2.0:  # otherwise the aspect may not fit
        assert share.min() >= 0.02 / (1 + 20 * rounding)
        assert share.mean() > 0.1


def test_reid_mirrors_half_and_moves_by_up_to_ten_pixels_of_256():
    numbers = uniform(torch.arange(2000), 0, 0)
    numbers[:, 3] = 0.9  # nothing is erased
    images = torch.zeros(2000, 1, 256, 128)
    images[:, :, 100, 20] = 1.0
    out = IMAGE_AUGMENTATIONS["reid"](images, numbers)
    assert torch.equal(out.sum((1, 2, 3)), torch.ones(2000))
    row, column = (out[:, 0].amax(axis).argmax(1) for axis in (2, 1))
    mirrored = column > 64
    assert 0.45 < mirrored.float().mean() < 0.55
    column = torch.where(mirrored, 127 - column, column)
    for place, start in ((row, 100), (column, 20)):
        assert (place.min(), place.max()) == (start - 10, start + 10)
        assert 0.03 < (place == start).float().mean() < 0.07
