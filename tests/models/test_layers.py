"""Depths of parameters: embeddings, layers from the first to the last, and what is above."""

from __future__ import annotations

import pytest
import torch
from helpers.spectrograms import make_model
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    Dinov2Config,
    Dinov2Model,
    HubertConfig,
    HubertModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from hf_plr.models.frozen import freeze
from hf_plr.models.layers import find_depths, freeze_first_layers
from hf_plr.models.spectrogram import prepare_spectrogram_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SOUNDS = {**SIZES, "conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 5), "conv_stride": (5, 4, 2)}
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES, image_size=16, patch_size=8)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, image_size=16, patch_size=8)),
    "swin": lambda: SwinModel(
        SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 3], num_heads=[2, 2], window_size=4)
    ),
    "convnext": lambda: ConvNextModel(ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])),
    "hubert": lambda: HubertModel(HubertConfig(**SOUNDS, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)),
    "data2vec": lambda: Data2VecAudioModel(
        Data2VecAudioConfig(**SOUNDS, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    ),
}
EXPECTED = {
    "vit": {
        "embeddings.cls_token": 0,
        "embeddings.position_embeddings": 0,
        "embeddings.patch_embeddings.projection.weight": 0,
        "layers.0.layernorm_before.weight": 1,
        "layers.2.mlp.fc1.bias": 3,
        "layernorm.weight": 3,
        "pooler.dense.weight": 3,
    },
    "dinov2": {"embeddings.mask_token": 0, "encoder.layer.1.layer_scale1.lambda1": 2, "layernorm.bias": 3},
    "swin": {
        "embeddings.norm.weight": 0,
        "encoder.layers.0.blocks.0.layernorm_before.weight": 1,
        "encoder.layers.0.downsample.norm.weight": 1,
        "encoder.layers.1.blocks.0.layernorm_before.weight": 2,
        "encoder.layers.1.blocks.2.layernorm_before.weight": 4,
        "layernorm.weight": 4,
    },
    "convnext": {
        "embeddings.patch_embeddings.weight": 0,
        "encoder.stages.0.layers.0.dwconv.weight": 1,
        "encoder.stages.1.downsampling_layer.1.weight": 2,
        "encoder.stages.1.layers.1.dwconv.weight": 3,
        "layernorm.weight": 3,
    },
    "resnet": {
        "embedder.embedder.convolution.weight": 0,
        "encoder.stages.0.layers.0.layer.0.convolution.weight": 1,
        "encoder.stages.1.layers.1.layer.2.convolution.weight": 3,
    },
    "hubert": {
        "masked_spec_embed": 0,
        "feature_extractor.conv_layers.2.conv.weight": 0,
        "feature_projection.projection.weight": 0,
        "encoder.layer_norm.weight": 0,
        "encoder.layers.0.final_layer_norm.weight": 1,
        "encoder.layers.2.final_layer_norm.weight": 3,
    },
    "data2vec": {"encoder.pos_conv_embed.layers.1.conv.weight": 0, "encoder.layers.2.final_layer_norm.weight": 3},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_depth(name):
    model = MODELS[name]()
    depths = find_depths(model)
    assert list(depths) == [parameter for parameter, _ in model.named_parameters()]
    assert {parameter: depths[parameter] for parameter in EXPECTED[name]} == EXPECTED[name]
    assert set(depths.values()) == set(range(max(depths.values()) + 1))


@pytest.mark.parametrize("name", MODELS)
def test_depths_follow_the_order_of_execution(name):
    model = MODELS[name]().eval()
    depths = find_depths(model)
    executed: list[int] = []
    for module_name, module in model.named_modules():
        own = {
            depths[f"{module_name}.{parameter}"]
            for parameter in dict(module.named_parameters(recurse=False))
            if f"{module_name}.{parameter}" in depths
        }
        if own and not list(module.children()):
            (depth,) = own
            module.register_forward_pre_hook(lambda *_, depth=depth: executed.append(depth))
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", 32)
        model(pixel_values=torch.rand(2, 3, size, size))
    else:
        model(input_values=torch.rand(2, 2000))
    assert executed == sorted(executed)
    assert set(executed) == set(depths.values())


def test_the_norm_that_is_applied_last_is_above():
    model = HubertModel(HubertConfig(**SOUNDS, do_stable_layer_norm=True, num_conv_pos_embedding_groups=2))
    depths = find_depths(model)
    assert depths["encoder.layer_norm.weight"] == 3
    assert depths["encoder.pos_conv_embed.conv.bias"] == 0


@pytest.fixture
def whisper():
    """A Whisper as it is trained: its decoder, as deep as the encoder and larger, is frozen."""
    model = prepare_spectrogram_model(make_model("whisper", encoder_layers=3, decoder_layers=3))
    for parameter in model.get_decoder().parameters():
        freeze(parameter)
    return model


def test_the_layers_of_a_model_with_a_decoder_are_those_of_the_trained_encoder(whisper):
    depths = find_depths(whisper)
    expected = {"conv1.weight": 0, "layers.0.fc1.weight": 1, "layers.2.fc1.weight": 3, "layer_norm.weight": 3}
    assert {name: depths[f"encoder.{name}"] for name in expected} == expected
    freeze_first_layers(whisper, 2)
    trained = {name for name, parameter in whisper.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in depths if name.startswith("encoder.") and depths[name] == 3}
    assert find_depths(whisper) == depths


def test_depths_of_a_model_stay_where_all_of_it_is_frozen(whisper):
    depths = find_depths(whisper)
    whisper.requires_grad_(False)
    assert find_depths(whisper) == depths
    with pytest.raises(ValueError, match="freeze_layers=1 leaves nothing to train: 0 layers are trained"):
        freeze_first_layers(whisper, 1)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no list of layers: use layer_decay=1 and freeze_layers=0"):
        find_depths(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", MODELS)
def test_the_first_layers_are_frozen(name):
    model = MODELS[name]()
    depths = find_depths(model)
    freeze_first_layers(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze_first_layers(model, 1)
    frozen = {parameter for parameter, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {parameter for parameter in depths if depths[parameter] <= 1}


@pytest.mark.parametrize("n", [3, 12])
def test_freezing_all_layers_is_refused(n):
    with pytest.raises(ValueError, match=f"freeze_layers={n} leaves nothing to train: 3 layers are trained"):
        freeze_first_layers(MODELS["vit"](), n)
