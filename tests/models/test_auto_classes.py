"""Which backbones transformers has a classifier for."""

from __future__ import annotations

import pytest
from helpers import tiny
from helpers.launching import load_script
from helpers.paths import RECIPES
from transformers import CLIPVisionConfig, CLIPVisionModel, DINOv3ViTConfig, DINOv3ViTModel

from hf_plr.models.vision import small_vit_processor

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}


def test_card_and_recipe_tell_that_there_is_no_classifier(make_trainer, some_digits, tmp_path):
    trainer = make_trainer({"model": DINOv3ViTModel(DINOv3ViTConfig(**TINY))}, num_train_epochs=1)
    assert trainer.modality.classifier is None
    trainer.save_model()
    small_vit_processor(16).save_pretrained(trainer.args.output_dir)
    trainer.create_model_card(model_name="dinov3")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "transformers has no classifier of this kind of backbone" in card
    assert "AutoModelForImageClassification" not in card
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        some_digits.to_parquet(tmp_path / "data" / f"{split}.parquet")
    words = f"--model_name_or_path {trainer.args.output_dir} --dataset_name {tmp_path / 'data'} --output_dir {tmp_path}"
    with pytest.raises(ValueError, match=r"has no classifier for .* train one on the features that `hf-plr embed`"):
        load_script(RECIPES / "finetune_image.py").main([*words.split(), "--use_cpu", "true"])


def test_the_card_of_a_tower_names_what_puts_it_into_a_classifier(make_trainer, tmp_path):
    trainer = make_trainer({"model": CLIPVisionModel(CLIPVisionConfig(**TINY))})
    trainer.create_model_card(model_name="clip")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "load it with `hf_plr.models.image_classifier.load_image_classifier(..., num_labels=...)`" in card


def test_of_most_kinds_there_is_one(make_trainer, tmp_path):
    trainer = make_trainer({"model": tiny.tiny_vit()})
    assert trainer.modality.classifier == "AutoModelForImageClassification.from_pretrained"
    trainer.create_model_card(model_name="vit")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "load it with `AutoModelForImageClassification.from_pretrained(..., num_labels=...)`" in card
