"""Vision backbones: what is loaded, and which feature a trial finds in it."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as tf
from torch import nn

from hf_plr.models.pooling import Layout
from hf_plr.models.vision import choose_vit_size, load_backbone, small_vit
from hf_plr.models.vision_backbone import VisionBackbone

TINY = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WITH_MLP = {**TINY, "intermediate_size": 32}
TEXT = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 32, "vocab_size": 99},
}
FAMILY = [
    tf.ViTModel(tf.ViTConfig(**WITH_MLP)),
    tf.DeiTModel(tf.DeiTConfig(**WITH_MLP)),
    tf.Dinov2Model(tf.Dinov2Config(**TINY)),
    tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(num_register_tokens=3, **TINY)),
]


def clip():
    return tf.CLIPModel(tf.CLIPConfig(text_config=TEXT, vision_config=WITH_MLP))


def siglip(vision=WITH_MLP):
    return tf.SiglipModel(tf.SiglipConfig(text_config=TEXT, vision_config=vision))


def yolos():
    config = tf.YolosConfig(**{**WITH_MLP, "image_size": [16, 16]}, num_detection_tokens=5)
    return tf.YolosModel(config)


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
        both = VisionBackbone(model, "cls+mean", (size, size)).features(model, images)
    torch.testing.assert_close(cls, tokens[:, 0])
    n_patches = (size // 8) ** 2
    torch.testing.assert_close(mean, tokens[:, -n_patches:].mean(dim=1))
    torch.testing.assert_close(both, torch.cat([cls, mean], dim=1))


@pytest.mark.parametrize(
    ("model", "layout", "pooling", "width"),
    [
        (tf.DINOv3ViTModel(tf.DINOv3ViTConfig(num_register_tokens=4, **WITH_MLP)), Layout(1, 5), "cls", 32),
        (tf.DeiTModel(tf.DeiTConfig(**WITH_MLP)), Layout(1, 2), "cls", 32),
        (tf.PixioModel(tf.PixioConfig(**WITH_MLP)), Layout(8, 8), "cls", 32),
        (yolos(), Layout(1, 1, n_after=5), "cls", 32),
        (tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**WITH_MLP)), Layout(0, 0), "pooler", 32),
        (tf.IJepaModel(tf.IJepaConfig(**WITH_MLP)), Layout(0, 0), "mean", 32),
        (clip(), Layout(1, 1), "cls", 32),
        (siglip(), Layout(0, 0), "pooler", 32),
        (siglip({**WITH_MLP, "vision_use_head": False}), Layout(0, 0), "mean", 32),
        (tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2)), None, "pooler", 12),
        (tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])), None, "pooler", 12),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_trial_finds_the_class_token_the_patches_and_the_default(model, layout, pooling, width):
    backbone = VisionBackbone(load_backbone(model), None, (16, 16))
    assert backbone.layout == (layout or Layout(0, 0, map_channels=1))
    assert backbone.pooling == pooling
    assert backbone.feature_size == width


def test_the_mean_has_neither_registers_nor_detection_tokens():
    registers = load_backbone(tf.DINOv3ViTModel(tf.DINOv3ViTConfig(num_register_tokens=4, **WITH_MLP)).eval())
    detection = load_backbone(yolos().eval())
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        for model, patches in ((registers, slice(5, 9)), (detection, slice(1, 5))):
            tokens = model(pixel_values=images).last_hidden_state
            mean = VisionBackbone(model, "mean", (16, 16)).features(model, images)
            torch.testing.assert_close(mean, tokens[:, patches].mean(dim=1))


def test_a_layer_of_images_is_pooled_and_what_lies_above_it_is_unused():
    model = load_backbone(tf.ViTModel(tf.ViTConfig(**WITH_MLP)).eval())
    backbone = VisionBackbone(model, "mean", (16, 16), layer=1)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        states = model(pixel_values=images, output_hidden_states=True).hidden_states
        torch.testing.assert_close(backbone.features(model, images), states[1][:, 1:].mean(dim=1))
    backbone.freeze_unused(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("layers.0.") for name in trained)
    assert not any(name.startswith(("layers.1.", "layernorm", "pooler")) for name in trained)
    with pytest.raises(ValueError, match="layer=3 but the model has 2 layers: use 0 to 2"):
        VisionBackbone(model, None, (16, 16), layer=3)
    with pytest.raises(ValueError, match="has no pooler of a layer"):
        VisionBackbone(model, "pooler", (16, 16), layer=1)


SAM = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
    **{"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 32},
}


@pytest.mark.parametrize(
    ("make", "size", "layer", "channels"),
    [
        (lambda: tf.SamVisionModel(tf.SamVisionConfig(**SAM)), 32, None, 1),
        (lambda: tf.SamVisionModel(tf.SamVisionConfig(**SAM)), 32, 1, 3),
        (lambda: tf.SamVisionModel(tf.SamVisionConfig(**{**SAM, "hidden_size": 16})), 32, 0, 3),
        (lambda: tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)), 32, 1, 1),
        (lambda: tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)), 128, None, 1),
        (lambda: tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])), 8, 2, 1),
    ],
    ids=[
        *("SAM", "SAM, layer 1", "SAM, layer 0", "ConvNeXt, layer 1 of 8 x 8 x 8", "ConvNeXt of 16 x 16 x 16"),
        "ResNet, layer 2 of 16 x 1 x 1",
    ],
)
def test_a_map_is_averaged_over_its_places(make, size, layer, channels):
    model = load_backbone(make().eval())
    backbone = VisionBackbone(model, "mean", (size, size), layer=layer)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        output = model(pixel_values=images, output_hidden_states=True)
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        expected = hidden.mean(dim=(2, 3) if channels == 1 else (1, 2))
        torch.testing.assert_close(backbone.features(model, images), expected)
    assert backbone.layout.map_channels == channels


def test_a_layer_whose_channels_cannot_be_told_is_refused():
    model = load_backbone(tf.SamVisionModel(tf.SamVisionConfig(**{**SAM, "hidden_size": 4})).eval())
    with pytest.raises(ValueError, match=r"layer=1 of SamVisionModel is a map of shape \(4, 4, 4\), and nothing tells"):
        VisionBackbone(model, None, (32, 32), layer=1)


def test_the_feature_in_words_is_the_feature():
    images = torch.rand(2, 3, 16, 16)
    for model in (FAMILY[3], yolos(), siglip(), tf.PixioModel(tf.PixioConfig(**WITH_MLP))):
        bare = load_backbone(copy.deepcopy(model).eval())
        for pooling in VisionBackbone(bare, None, (16, 16)).poolings:
            backbone = VisionBackbone(bare, pooling, (16, 16))
            with torch.no_grad():
                output = bare(pixel_values=images, **backbone.forward_arguments)
                names = {"torch": torch, "output": output, "tokens": eval(backbone.tokens_expression())}
                feature = eval(backbone.feature_expression(), names)
                torch.testing.assert_close(feature, backbone.features(bare, images))


def test_the_trial_leaves_no_trace():
    model = load_backbone(tf.ViTModel(tf.ViTConfig(**WITH_MLP)).train())
    before = torch.random.get_rng_state()
    weights = copy.deepcopy(model.state_dict())
    VisionBackbone(model, None, (16, 16))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_head_gives_its_own_backbone_in_full_precision():
    classifier = tf.ViTForImageClassification(tf.ViTConfig(**WITH_MLP)).half()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    model = load_backbone(classifier)
    assert model is classifier.vit
    assert model.dtype is torch.float32
    assert model.config.dtype is torch.float32
    held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert {id(parameter) for name, parameter in model.named_parameters() if not name.startswith("pooler.")} <= held


def test_a_backbone_is_never_unwrapped():
    dinov3 = tf.DINOv3ViTModel(tf.DINOv3ViTConfig(num_register_tokens=4, **WITH_MLP))
    assert dinov3.base_model is not dinov3
    assert load_backbone(dinov3) is dinov3


def test_several_towers_give_the_one_for_images(caplog, tmp_path):
    whole = clip()
    tower = load_backbone(whole)
    assert tower is whole.vision_model
    assert "Training CLIPVisionModel, the backbone in the CLIPModel" in caplog.text
    whole.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert type(loaded) is tf.CLIPVisionModel
    assert loaded.name_or_path == str(tmp_path)


def test_a_sam_gives_its_vision_encoder_as_automodel_loads_it(tmp_path):
    prompts = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    decoder = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 16}
    config = tf.SamConfig(vision_config=SAM, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    sam = tf.SamModel(config).eval()
    backbone = load_backbone(sam)
    assert backbone.vision_encoder is sam.vision_encoder
    backbone.save_pretrained(tmp_path)
    again = tf.AutoModel.from_pretrained(tmp_path).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = sam.get_image_embeddings(images)
        torch.testing.assert_close(again(pixel_values=images).last_hidden_state, expected)
    assert VisionBackbone(backbone, None, (32, 32)).poolings == ("mean",)


def test_a_masked_autoencoder_becomes_a_vit_of_the_same_weights():
    mae = tf.ViTMAEForPreTraining(tf.ViTMAEConfig(decoder_hidden_size=32, mask_ratio=0.0, **WITH_MLP)).eval()
    vit = load_backbone(mae)
    assert type(vit) is tf.ViTModel
    held = {id(parameter) for parameter in mae.vit.parameters()}
    assert {id(parameter) for name, parameter in vit.named_parameters() if not name.startswith("pooler.")} == held
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = mae.vit(images).last_hidden_state[:, 0]  # whatever the order of the patches
        found = VisionBackbone(vit, "cls", (16, 16)).features(vit, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_untrained_pooler_of_another_kind_gives_no_feature(tmp_path):
    whole = tf.SiglipVisionModel(tf.SiglipVisionConfig(**WITH_MLP))
    state = {name: value for name, value in whole.state_dict().items() if not name.startswith("head.")}
    whole.save_pretrained(tmp_path, state_dict=state)
    model = load_backbone(str(tmp_path))
    assert VisionBackbone(model, None, (16, 16)).pooling == "mean"
    with pytest.raises(ValueError, match="has no weights for its pooler"):
        VisionBackbone(model, "pooler", (16, 16))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            tf.BertModel(tf.BertConfig(**{**TEXT, "num_hidden_layers": 1})),
            r"BertModel \(model_type='bert'\) takes input_",
        ),
        (
            tf.VideoMAEModel(tf.VideoMAEConfig(num_frames=2, **WITH_MLP)),
            "VideoMAEModel takes no images of 16 x 16 pixels and 3 channels: not enough values",
        ),
        (
            tf.Siglip2VisionModel(tf.Siglip2VisionConfig(**{**WITH_MLP, "image_size": None}, num_patches=4)),
            "Siglip2VisionModel needs pixel_attention_mask and spatial_shapes beside images of one size",
        ),
        (
            tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**{**WITH_MLP, "image_size": 24})),
            "takes no images of 16 x 16 pixels and 3 channels: .* It was made for 24 x 24: resize to that",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_no_backbone_of_such_images_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        VisionBackbone(load_backbone(model), None, (16, 16))


def test_features_that_are_random_are_refused():
    class Noisy(tf.ViTModel):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.last_hidden_state = output.last_hidden_state + torch.randn_like(output.last_hidden_state)
            return output

    with pytest.raises(ValueError, match="Noisy returns other features each time"):
        VisionBackbone(load_backbone(Noisy(tf.ViTConfig(**WITH_MLP))), None, (16, 16))


def test_a_pooling_that_a_model_lacks_is_refused():
    model = load_backbone(tf.IJepaModel(tf.IJepaConfig(**WITH_MLP)))
    for pooling, lack in (("cls", "class token"), ("cls+mean", "class token"), ("pooler", "pooler")):
        with pytest.raises(ValueError, match=f"IJepaModel has no {lack}: use pooling='mean'"):
            VisionBackbone(model, pooling, (16, 16))


def test_an_untrained_pooler_hands_the_class_token_through(tmp_path):
    made = small_vit(16, 8, hidden_size=32, num_hidden_layers=1).eval()
    bare = tf.ViTModel(tf.ViTConfig(**WITH_MLP), add_pooling_layer=False)
    bare.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path)).eval()
    headless = load_backbone(tf.ViTForImageClassification(tf.ViTConfig(**WITH_MLP))).eval()
    for model in (made, loaded, headless):
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
