"""`image_size`: another size of images than the backbone's image processor asks for."""

from __future__ import annotations

import pytest
from helpers.tiny import image_trainer, tiny_vit
from transformers import AutoImageProcessor, BitImageProcessorPil, ViTImageProcessorPil

from hf_plr.data.image_geometry import read_sizes, scale_processor
from hf_plr.models.vision import choose_vit_size, small_vit_processor

CROPPING = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}


@pytest.mark.parametrize(
    ("processor", "size", "crop_size"),
    [
        (small_vit_processor(32), {"height": 84, "width": 84}, None),
        (ViTImageProcessorPil(size={"height": 100, "width": 200}), {"height": 84, "width": 168}, None),
        (BitImageProcessorPil(**CROPPING), {"shortest_edge": 96}, {"height": 84, "width": 84}),
    ],
)
def test_sizes_are_scaled_and_saved(tmp_path, processor, size, crop_size):
    for _ in range(2):  # again changes nothing
        scale_processor(processor, 84)
        assert read_sizes(processor.size) == size
        processor.save_pretrained(tmp_path)
        read = AutoImageProcessor.from_pretrained(tmp_path)
        assert read_sizes(read.size) == size
        if crop_size is not None:
            assert read_sizes(read.crop_size) == crop_size


@pytest.mark.parametrize("processor", [ViTImageProcessorPil(do_resize=False)])
def test_processors_that_do_not_resize_are_refused(processor):
    with pytest.raises(ValueError, match="image_size=84 has no effect: ViTImageProcessorPil does not resize"):
        scale_processor(processor, 84)


def test_a_run_has_it_in_its_backbone_and_resumes_with_it_alone(some_digits, tmp_path):
    processor = small_vit_processor(32)
    parts = {"model": tiny_vit(), "processing_class": processor}
    trainer = image_trainer(tmp_path / "out", some_digits, parts, image_size=24, num_train_epochs=1)
    assert read_sizes(processor.size) == {"height": 32, "width": 32}  # the caller's own stays
    trainer.train()
    trainer.save_model()
    assert trainer.train_dataset[0]["pixel_values"].shape == (3, 24, 24)
    assert read_sizes(AutoImageProcessor.from_pretrained(tmp_path / "out").size) == {"height": 24, "width": 24}
    other = image_trainer(tmp_path / "out", some_digits, parts, num_train_epochs=1)
    with pytest.raises(ValueError, match="image_size was 24 and is None"):
        other.train(resume_from_checkpoint=True)


def test_a_small_vit_is_made_for_it():
    assert choose_vit_size([28] * 3, [28] * 3) == (32, 8)
    assert choose_vit_size([28] * 3, [28] * 3, 64) == (64, 8)
    assert choose_vit_size([28] * 3, [28] * 3, 128) == (128, 16)
