"""Backbones of the ViT family, pooling, and the prototype memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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

from hf_plr.models.vision import VisionBackbone, fitting_size, load_backbone, small_vit
from hf_plr.pseudo_labels.prototypes import PrototypeMemory

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
    with pytest.raises(ValueError, match=r"BertModel \(model_type='bert'\) is no vision transformer"):
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
    assert fitting_size([8], [8]) == (32, 8)
    assert fitting_size([28] * 5, [28] * 5) == (32, 8)
    assert fitting_size([64, 64, 500], [48, 64, 500]) == (64, 8)
    assert fitting_size([1000], [700]) == (96, 12)
    for side in range(1, 200, 7):
        image_size, patch_size = fitting_size([side], [side])
        assert image_size % patch_size == 0


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def test_memory_loss_is_cross_entropy_over_cosines_and_noise_has_none():
    memory = PrototypeMemory(temperature=0.1, momentum=0.5)
    features, targets = unit(12, 8), torch.arange(12) % 3
    memory.rebuild(features, targets, 3)
    for cluster in range(3):
        expected = F.normalize(features[targets == cluster].mean(dim=0), dim=0)
        torch.testing.assert_close(memory.prototypes[cluster], expected)
    batch = unit(5, 8).requires_grad_()
    labels = torch.tensor([0, -1, 2, -1, 1])
    loss = memory.loss(batch, labels)
    kept = labels >= 0
    expected = F.cross_entropy(batch[kept] @ memory.prototypes.T / 0.1, labels[kept])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (batch.grad[~kept] == 0).all()
    assert memory.loss(batch, torch.full((5,), -1)).item() == 0.0
    weights = torch.tensor([0.5, 9.0, 2.0, 9.0, 0.0])
    each = F.cross_entropy(batch[kept] @ memory.prototypes.T / 0.1, labels[kept], reduction="none")
    torch.testing.assert_close(memory.loss(batch, labels, weights), (0.5 * each[0] + 2.0 * each[1]) / 3)
    onehot = F.one_hot(labels.clamp(min=0), 3) * kept[:, None]
    torch.testing.assert_close(memory.loss(batch, onehot.float(), weights), memory.loss(batch, labels, weights))


def test_soft_targets_that_are_one_hot_equal_hard_ones():
    memory = PrototypeMemory(temperature=0.1, momentum=0.5)
    memory.rebuild(unit(12, 8), torch.arange(12) % 3, 3)
    batch, hard = unit(4, 8), torch.tensor([2, 0, -1, 1])
    soft = F.one_hot(hard.clamp(min=0), 3).float() * (hard >= 0)[:, None]
    torch.testing.assert_close(memory.loss(batch, soft), memory.loss(batch, hard))


def test_update_moves_only_the_prototypes_of_the_batch():
    memory = PrototypeMemory(temperature=0.1, momentum=0.25)
    memory.rebuild(unit(12, 8), torch.arange(12) % 4, 4)
    before = memory.prototypes.clone()
    features, targets = unit(3, 8), torch.tensor([1, 1, -1])
    memory.update(features, targets)
    assert torch.equal(memory.prototypes[[0, 2, 3]], before[[0, 2, 3]])
    mean = F.normalize(features[:2].mean(dim=0), dim=0)
    torch.testing.assert_close(memory.prototypes[1], F.normalize(0.25 * before[1] + 0.75 * mean, dim=0))


def test_recentring_removes_the_common_part():
    memory = PrototypeMemory(temperature=0.1, momentum=0.5)
    features = torch.randn(50, 8) + 100.0
    embedded = memory.recenter(features)
    assert embedded.mean(dim=0).norm() < 0.3
    np.testing.assert_allclose(embedded.norm(dim=1), 1.0, atol=1e-5)
