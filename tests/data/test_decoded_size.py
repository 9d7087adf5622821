"""Images that are kept larger than the model takes them: zoomed crops have detail, and the stage sees the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.tiny import image_trainer
from PIL import Image as PILImage
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from hf_plr.data.image_augmentation import affine_augmentation, photo_augmentation, reid_augmentation
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_store import ImageStore
from hf_plr.models.vision import small_vit_processor

SIZE, KEPT = 32, 64


@pytest.fixture(scope="module")
def photos() -> Dataset:
    """Eight images of 160 x 200 with detail down to four pixels: smaller than one of the model's."""
    return make_photos(40, 50)


def make_photos(height: int, width: int) -> Dataset:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(8):
        coarse = PILImage.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((200, 160), PILImage.Resampling.BICUBIC).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"image": rows})


def load(photos: Dataset, decoded_size: int | None) -> tuple[ImageGeometry, torch.Tensor]:
    geometry = ImageGeometry(small_vit_processor(SIZE), 3, decoded_size=decoded_size)
    store = ImageStore(photos, "image", geometry)
    return geometry, geometry.unit_range(store.pixels(torch.arange(len(photos))))


def measure_sharpness(images: torch.Tensor) -> float:
    return float((images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()).sqrt())


def test_a_geometry_that_is_fitted_again_is_that_of_the_last_data(photos):
    geometry = ImageGeometry(small_vit_processor(SIZE), 3, decoded_size=KEPT)
    found = []
    for _ in range(2):
        geometry.fit(photos, "image")
        found.append((geometry.image_size, geometry.decoded_size, geometry.smallest_edge, geometry.describe()))
    assert found[0] == found[1]
    assert found[0][:3] == ((SIZE, SIZE), (KEPT, KEPT), 2 * KEPT)


@pytest.mark.parametrize(
    ("processor", "size", "kept", "tolerance"),
    [
        (small_vit_processor(SIZE), (32, 32), (48, 48), 0.1),
        (ViTImageProcessorPil(size={"height": 32, "width": 64}), (32, 64), (48, 96), 0.1),
        (
            CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
            (32, 32),
            (48, 48),
            0.25,
        ),
    ],
    ids=["square", "wide", "cropped"],
)
def test_sizes_grow_together_and_the_processor_stays_as_it_is(processor, size, kept, tolerance):
    photos = make_photos(16, 20)  # without detail that the model's size cannot hold
    before = processor.to_dict()
    geometry = ImageGeometry(processor, 3, decoded_size=48)
    edge = geometry.smallest_edge
    store = ImageStore(photos, "image", geometry)
    assert (geometry.image_size, geometry.decoded_size) == (size, kept)
    assert processor.to_dict() == before
    assert geometry.smallest_edge == 1.5 * edge  # pixels that a JPEG keeps
    pixels = store.pixels(torch.arange(8))
    assert pixels.shape == (8, 3, *kept)
    direct = ImageStore(photos, "image", ImageGeometry(processor, 3)).pixels(torch.arange(8)).float()
    reduced = geometry.reduce(geometry.unit_range(pixels)) / geometry.rescale
    assert reduced.shape == direct.shape
    assert float((reduced - direct).square().mean().sqrt()) < tolerance * float(direct.std())


def test_images_of_the_right_size_are_not_touched(photos):
    geometry, images = load(photos, None)
    assert geometry.decoded_size == geometry.image_size
    assert geometry.reduce(images) is images


def test_zoomed_crops_have_more_detail_that_is_that_of_the_photo(photos):
    numbers = torch.full((8, 16), 0.5)
    numbers[:, 4] = 1.0  # the largest zoom
    (_, small), (geometry, large) = load(photos, None), load(photos, KEPT)
    enlarged = photo_augmentation(small, numbers)
    detailed = photo_augmentation(large, numbers, geometry.image_size)
    assert detailed.shape == enlarged.shape
    assert measure_sharpness(detailed) > 1.3 * measure_sharpness(enlarged)
    truth, _ = load(photos, 4 * SIZE)[1], None
    truth = geometry.reduce(photo_augmentation(truth, numbers))
    errors = [float((images - truth).square().mean()) for images in (detailed, enlarged)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0])
def test_an_augmentation_that_changes_nothing_only_reduces(ratio):
    size = (24, 16)
    large = round(ratio * size[0]), round(ratio * size[1])
    rows, columns = (torch.linspace(0, 1, n + 1)[:-1] + 0.5 / n for n in large)
    ramp = (rows[:, None] * 0.6 + columns * 0.4).expand(2, 3, *large)
    images = affine_augmentation(ramp, torch.full((2, 16), 0.5), size)  # no turn, shift, shear, zoom or contrast
    rows, columns = (torch.linspace(0, 1, n + 1)[:-1] + 0.5 / n for n in size)
    expected = (rows[:, None] * 0.6 + columns * 0.4).expand(2, 3, *size)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("augment", [affine_augmentation, photo_augmentation])
def test_the_models_size_is_the_default_bit_for_bit(augment):
    images, numbers = torch.rand(4, 3, 20, 24), torch.rand(4, 16)
    assert torch.equal(augment(images, numbers), augment(images, numbers, (20, 24)))


@pytest.mark.parametrize(
    ("processor", "decoded_size", "message"),
    [
        (small_vit_processor(SIZE), 32, "decoded_size=32 must be above 32, the size of the model's images"),
        (ViTImageProcessorPil(do_resize=False), 400, "decoded_size=400 has no effect: ViTImageProcessorPil does not"),
    ],
)
def test_sizes_without_effect_are_refused(photos, processor, decoded_size, message):
    with pytest.raises(ValueError, match=message):
        ImageGeometry(processor, 3, decoded_size=decoded_size).fit(photos, "image")


@pytest.mark.parametrize("augmentation", ["photo", "affine", "reid", "none", reid_augmentation])
def test_training_and_the_stage_take_larger_images(some_digits, tmp_path, augmentation):
    parts = {"augmentation": augmentation} if callable(augmentation) else {}
    named = {} if callable(augmentation) else {"augmentation": augmentation}
    settings = {"num_train_epochs": 1, "feature_dtype": "float32", **named}
    plain = image_trainer(tmp_path / "plain", some_digits, dict(parts), **settings)
    larger = image_trainer(tmp_path / "larger", some_digits, dict(parts), decoded_size=24, **settings)
    assert larger.train_dataset[0]["pixel_values"].shape == (3, 24, 24)
    features = [trainer.extract_features() for trainer in (plain, larger)]
    centered = [rows - rows.mean(dim=0) for rows in features]
    assert torch.cosine_similarity(*centered).mean() > 0.95
    larger.train()
    assert larger.pseudo_labels is not None
    assert larger.run_settings()["decoded_size"] == 24
