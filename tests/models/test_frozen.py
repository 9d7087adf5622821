"""Frozen weights: whose they are, and the statistics of batch norms."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import tiny
from helpers.runs import StopAt, assert_same_run
from torch import nn
from transformers import (
    HubertForSequenceClassification,
    MobileViTConfig,
    MobileViTModel,
    ResNetConfig,
    ResNetModel,
    set_seed,
)

from hf_plr.models.frozen import freeze, hold_frozen, hold_frozen_statistics, take_back_precision, thaw
from hf_plr.models.vision import small_vit, small_vit_processor


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


def test_only_what_was_frozen_here_is_thawed():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    freeze(model.weight)
    freeze(model.bias)
    thaw(model)
    assert frozen(model) == {"bias"}


def test_a_second_trainer_of_a_model_computes_in_its_own_precision(make_trainer, some_digits):
    trainer = make_trainer(bf16=True, num_train_epochs=1)
    for _ in range(2):
        trainer.train()
    model = trainer.model
    unprepared = tiny.tiny_vit()
    unprepared.load_state_dict(model.state_dict())
    other = make_trainer({"model": model}, bf16=False)
    assert other.accelerator.mixed_precision == "no"
    pixels = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(
            model.eval()(pixel_values=pixels).last_hidden_state,
            unprepared.eval()(pixel_values=pixels).last_hidden_state,
        )
    assert "forward" not in vars(model)


def test_a_forward_of_the_users_own_outlives_the_precision_of_a_trainer():
    model = nn.Linear(2, 2)
    own = model.forward = lambda values: values
    model._original_forward = own
    model.forward = torch.autocast("cpu", torch.bfloat16)(own)
    take_back_precision(model)
    assert model.forward is own


def test_a_second_trainer_of_a_model_freezes_by_its_own_arguments(make_trainer):
    set_seed(0)
    model = small_vit(16, 8, hidden_size=32, num_hidden_layers=3)
    model.embeddings.cls_token.requires_grad_(False)
    fresh = frozen(make_trainer({"model": copy.deepcopy(model)}).model)
    make_trainer({"model": model}, freeze_layers=1)
    make_trainer({"model": model}, layer=1)
    assert frozen(make_trainer({"model": model}).model) == fresh
    assert "embeddings.cls_token" in fresh


@pytest.fixture
def mobile(tmp_path):
    config = MobileViTConfig(
        image_size=16,
        patch_size=1,
        num_attention_heads=2,
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[4, 4, 4, 8, 8, 8, 8],
    )
    set_seed(0)
    MobileViTModel(config).save_pretrained(tmp_path / "start")
    small_vit_processor(16).save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


def test_adapters_leave_the_statistics_and_a_run_resumes(make_trainer, mobile, tmp_path):
    def make(out, **parts):
        parts = {"model": mobile, "processing_class": None, **parts}
        return make_trainer(parts, output_dir=str(tmp_path / out), lora=True, lora_rank=2, num_train_epochs=2)

    whole = make("whole")
    before = statistics(whole.model)
    whole.train()
    assert before
    assert all(torch.equal(value, before[name]) for name, value in statistics(whole.model).items())
    stopped = make("resumed", callbacks=[StopAt(9)])
    stopped.train()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_frozen_stage_keeps_its_statistics(make_trainer):
    set_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = ResNetModel(config)
    trainer = make_trainer({"model": model}, num_train_epochs=1, freeze_layers=1)
    before = statistics(model)
    trainer.train()
    moved = {name for name, value in statistics(model).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("encoder.stages.1.") for name in moved)
    assert all(name.startswith(("embedder.", "encoder.stages.0.")) for name in before.keys() - moved)


def test_statistics_follow_again_once_the_weights_do():
    norm = nn.BatchNorm1d(3)
    freeze(norm.weight)
    freeze(norm.bias)
    hold_frozen_statistics(norm)
    norm.train()(torch.ones(4, 3))
    assert not norm.running_mean.any()
    thaw(norm)
    norm.train()(torch.ones(4, 3))
    assert norm.running_mean.all()


def test_a_held_backbone_has_neither_dropout_nor_masks():
    model = HubertForSequenceClassification(tiny.tiny_hubert().config)
    assert model.config.apply_spec_augment
    model.hubert.requires_grad_(False)
    hold_frozen(model.hubert)
    waveforms = torch.randn(2, 4_000)
    expected = model.eval().hubert(waveforms).last_hidden_state
    assert torch.equal(model.train().hubert(waveforms).last_hidden_state, expected)
    assert model.training
    assert not any(module.training for module in model.hubert.modules())
    model.hubert.requires_grad_(True)
    assert not torch.equal(model.train().hubert(waveforms).last_hidden_state, expected)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_that_is_frozen_is_refused(make_trainer, lora):
    with pytest.raises(ValueError, match=r"all weights of ViTModel .* are frozen: call requires_grad_\(True\)"):
        make_trainer({"model": tiny.tiny_vit().requires_grad_(False)}, lora=lora)


def test_what_a_family_lacks_is_refused(make_trainer):
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))
    with pytest.raises(ValueError, match="ResNetModel has no linear layer: train its weights, without lora"):
        make_trainer({"model": model}, lora=True)
    with pytest.raises(ValueError, match="gradient_checkpointing=True but ResNetModel has none: leave it out"):
        make_trainer({"model": model}, gradient_checkpointing=True)
