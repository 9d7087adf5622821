"""Backbones of the ViT family, pooling, and the prototype memory."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hf_plr.models.vision import VisionBackbone, choose_vit_size, load_backbone, small_vit

TINY = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILY = [
    ViTModel(ViTConfig(intermediate_size=32, **TINY)),
    DeiTModel(DeiTConfig(intermediate_size=32, **TINY)),
    Dinov2Model(Dinov2Config(**TINY)),
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=3, **TINY)),
]


@pytest.mark.parametrize("model", FAMILY, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("size", [16, 24])
def test_pooled_features_of_the_family(model, size):
    model = load_backbone(model.eval())
    images = torch.rand(2, 3, size, size)
    extra = {} if size == 16 or "dinov2" in model.config.model_type else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        tokens = model(pixel_values=images, **extra).last_hidden_state
        cls = VisionBackbone(model, "cls", (size, size)).features(model, images)
        mean = VisionBackbone(model, "mean", (size, size)).features(model, images)
    torch.testing.assert_close(cls, tokens[:, 0])
    n_patches = (size // 8) ** 2
    torch.testing.assert_close(mean, tokens[:, -n_patches:].mean(dim=1))


def test_a_head_gives_its_backbone_and_half_precision_becomes_full():
    classifier = ViTForImageClassification(ViTConfig(intermediate_size=32, **TINY)).half()
    model = load_backbone(classifier)
    assert type(model) is ViTModel
    assert model.dtype is torch.float32
    assert model.config.dtype is torch.float32


def test_what_is_no_vision_transformer_is_refused():
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(ValueError, match=r"BertModel \(model_type='bert'\) is not a vision transformer"):
        load_backbone(bert)
    mae = ViTMAEModel(ViTMAEConfig(intermediate_size=32, decoder_hidden_size=32, **TINY))
    with pytest.raises(ValueError, match="hides patches at random"):
        load_backbone(mae)
    with pytest.raises(ValueError, match="ConvNextModel"):
        load_backbone(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])))


def test_an_untrained_pooler_hands_the_class_token_through(tmp_path):
    made = small_vit(16, 8, hidden_size=32, num_hidden_layers=1).eval()
    bare = ViTModel(ViTConfig(intermediate_size=32, **TINY), add_pooling_layer=False)
    bare.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path)).eval()
    for model in (made, loaded):
        with torch.no_grad():
            output = model(pixel_values=torch.rand(2, 3, 16, 16))
        torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0])


def test_small_vit_fits_the_images():
    assert choose_vit_size([8], [8]) == (32, 8)
    assert choose_vit_size([28] * 5, [28] * 5) == (32, 8)
    assert choose_vit_size([64, 64, 500], [48, 64, 500]) == (64, 8)
    assert choose_vit_size([1000], [700]) == (96, 12)
    for side in range(1, 200, 7):
        image_size, patch_size = choose_vit_size([side], [side])
        assert image_size % patch_size == 0
