"""Adapters: what is trained and saved, resumption, and adapters that a user brings."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from helpers import tiny
from helpers.runs import FallingScore, StopAt, assert_same_run
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetModel,
    ViTForImageClassification,
    WavLMConfig,
    WavLMModel,
)

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer
from hf_plr.cli import main as run_cli
from hf_plr.hub.push import list_published_files
from hf_plr.models.adapter_files import merge_adapters
from hf_plr.models.lora import adapter_state, prepare_adapters
from hf_plr.models.vision import load_backbone, small_vit_processor
from hf_plr.report.terminal_summary import format_summary

PLAIN = """import sys, numpy, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    tokens = model(pixel_values=torch.from_numpy(numpy.load(sys.argv[2]))).last_hidden_state
assert not {"hf_plr", "peft"} & set(sys.modules)
numpy.save(sys.argv[3], tokens.numpy())
"""
BIG = 3e-2  # a learning rate that moves features well beyond rounding


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A folder with a backbone and its processor, whose norms are not those of an untrained one."""
    folder = tmp_path_factory.mktemp("start")
    model = tiny.tiny_vit()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder)
    small_vit_processor(16).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_lora(make_trainer, start):
    """Make a trainer of adapters in that backbone."""

    def make(trainer=None, **arguments):
        settings = {"lora": True, "lora_rank": 4, "learning_rate": BIG, "report": "no", **arguments}
        return make_trainer({"model": start, "processing_class": None, **(trainer or {})}, **settings)

    return make


def pixels() -> torch.Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.inference_mode()
def tokens_of(model) -> torch.Tensor:
    return model.eval()(pixel_values=pixels()).last_hidden_state


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def moved(trainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}


# ---- what is trained and saved ---------------------------------------------------------------------------------------


def test_adapters_alone_are_trained_and_results_are_plain(make_lora, start, tmp_path):
    trainer = make_lora(num_train_epochs=2)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    assert_close(tokens_of(trainer.backbone), tokens_of(AutoModel.from_pretrained(start)))  # as yet nothing is changed
    features = trainer.extract_features()
    trainer.train()
    changed = moved(trainer, before)
    assert changed == {name for name in before if ".lora_" in name}
    assert {name.split(".lora_")[0] for name in changed} == {
        f"layers.0.{name}" for name in (*(f"attention.{part}_proj" for part in "qkvo"), "mlp.fc1", "mlp.fc2")
    }
    assert all((value.grad is None) or name in changed for name, value in trainer.model.named_parameters())
    assert not torch.allclose(trainer.extract_features(), features, atol=1e-2)  # the stage sees adapted features

    out = Path(trainer.args.output_dir)
    adapted = tokens_of(trainer.backbone)
    trainer.save_model()
    assert torch.equal(tokens_of(trainer.backbone), adapted)  # merged on a copy
    np.save(tmp_path / "pixels.npy", pixels().numpy())
    command = [sys.executable, "-c", PLAIN, str(out), str(tmp_path / "pixels.npy"), str(tmp_path / "tokens.npy")]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert_close(torch.from_numpy(np.load(tmp_path / "tokens.npy")), adapted)
    loaded = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(start), str(out / "adapter"))
    assert_close(tokens_of(loaded), adapted)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (start, 4, 8)
    assert sorted(path.name for path in (out / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    published = [path.relative_to(out).as_posix() for path in list_published_files(out)]
    assert {"config.json", "model.safetensors", "adapter/adapter_config.json"} < set(published)
    trainer.train()  # goes on


def test_card_and_summary_tell_the_adapters(make_lora):
    trainer = make_lora(max_steps=1)
    trainer.train()
    trainer.create_model_card()
    summary = trainer.summary()
    trained = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    total = sum(value.numel() for value in trainer.model.parameters())
    words = f"LoRA, rank 4, alpha 8: {trained:,} of {total:,} parameters were trained"
    assert summary.adapters == words
    assert words in (Path(trainer.args.output_dir) / "README.md").read_text()
    text = format_summary(summary, 1.0, ("command", "purpose"))
    assert words in text
    assert "adapter/" in text
    assert summary.architecture == "ViTModel"


def test_a_start_without_a_name(make_trainer, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(lora=True, max_steps=7, report="no")
    assert "lora=True with random weights" in caplog.text
    trainer.train()
    trainer.save_model()
    out = Path(trainer.args.output_dir)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert_close(tokens_of(AutoModel.from_pretrained(out)), tokens_of(trainer.backbone))
    with pytest.raises(ValueError, match="do not tell the model that they belong to"):
        load_backbone(out / "adapter")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("step", [10, 14])  # of 7 per epoch: in the middle of one, and at its end
def test_a_resumed_run_is_the_same(start, some_digits, tmp_path, step, ema_decay):
    def make(name, **trainer):
        arguments = {"lora": True, "lora_rank": 4, "report": "no", "ema_decay": ema_decay}
        parts = {"model": start, "processing_class": None, **trainer}
        return tiny.image_trainer(tmp_path / name, some_digits, parts, **arguments)

    whole = make("whole")
    whole.train()
    make("parts", callbacks=[StopAt(step)]).train()
    checkpoint = tmp_path / "parts" / f"checkpoint-{step}"
    assert not (checkpoint / "model.safetensors").exists()
    resumed = make("parts")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_run(whole, resumed)


def test_a_checkpoint_of_a_teacher_holds_adapters_alone(make_lora):
    trainer = make_lora(max_steps=7, ema_decay=0.9)
    trainer.train()
    assert {name for name in trainer.run_state() if name.startswith("student.")} == {
        f"student.{name}" for name in adapter_state(trainer.student)
    }
    pairs = zip(trainer.student.parameters(), trainer.backbone.parameters(), strict=True)
    assert all((own is other) != own.requires_grad for own, other in pairs)  # what is frozen is there once
    trainer.save_model()
    assert_close(tokens_of(AutoModel.from_pretrained(trainer.args.output_dir)), tokens_of(trainer.ema_teacher.model))


def test_the_best_checkpoint_is_loaded(make_lora, all_digits):
    trainer = make_lora(
        {"eval_dataset": all_digits.select(range(60)), "compute_metrics": FallingScore()},
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert trainer.state.best_global_step == 7 < trainer.state.global_step
    best = peft.load_peft_weights(trainer.state.best_model_checkpoint)
    for name, value in adapter_state(trainer.backbone).items():
        assert torch.equal(value, best[f"base_model.model.{name}"])


def test_other_settings_are_refused(make_lora, start):
    make_lora(max_steps=7).train()
    with pytest.raises(ValueError, match="lora_rank was 4 and is 2"):
        make_lora(max_steps=7, lora_rank=2).train(resume_from_checkpoint=True)
    other = AutoModel.from_pretrained(start)
    with torch.no_grad():
        other.layernorm.weight.add_(1.0)
    parts = {"model": other, "processing_class": small_vit_processor(16)}
    with pytest.raises(ValueError, match="frozen weights was"):
        make_lora(parts, max_steps=7).train(resume_from_checkpoint=True)


def test_a_push_in_the_middle_takes_the_merged_backbone(make_lora, tmp_path):
    trainer = make_lora(max_steps=7)
    trainer.train()
    trainer.publisher._stage_files(Path(trainer.args.output_dir) / "checkpoint-7", tmp_path / "staged")
    published = {path.relative_to(tmp_path / "staged").as_posix() for path in list_published_files(tmp_path / "staged")}
    assert {"model.safetensors", "README.md", "adapter/adapter_model.safetensors"} < published
    assert_close(tokens_of(AutoModel.from_pretrained(tmp_path / "staged")), tokens_of(trainer.backbone))


def test_a_checkpoint_is_a_model_to_start_from(make_lora, make_trainer, start, some_digits, tmp_path):
    trainer = make_lora(max_steps=7)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-7"
    again = make_trainer({"model": str(checkpoint), "processing_class": None}, max_steps=3, report="no")
    assert torch.equal(again.extract_features(), trainer.extract_features())
    assert again.backbone.name_or_path == start
    before = {name: value.detach().clone() for name, value in again.model.named_parameters()}
    again.train()
    assert moved(again, before) == {name for name in before if ".lora_" in name}
    with pytest.raises(ValueError, match=r"lora_rank=16, but the model has adapters already, LoRA, rank 4, alpha 8"):
        make_trainer({"model": str(checkpoint), "processing_class": None}, lora=True)

    some_digits.select(range(40)).to_parquet(tmp_path / "data" / "train.parquet")
    embed = ["embed", "--dataset", str(tmp_path / "data"), "--output", str(tmp_path / "features.parquet")]
    assert run_cli([*embed, "--model", str(checkpoint)]) == 0
    (checkpoint / "adapter_model.safetensors").write_bytes(b"no")
    assert run_cli([*embed, "--model", str(checkpoint), "--overwrite"]) == 2


# ---- adapters that a user brings -------------------------------------------------------------------------------------


def lora_config(**settings) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **settings})


def test_a_peft_model_is_trained_in_place(make_trainer, start):
    model = peft.get_peft_model(AutoModel.from_pretrained(start), lora_config(bias="all"))
    parts = {"model": model, "processing_class": small_vit_processor(16)}
    trainer = make_trainer(parts, learning_rate=BIG, max_steps=7, report="no")
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert {name for name in moved(trainer, before) if "bias" not in name} == {
        f"layers.0.attention.{part}_proj.lora_{matrix}.default.weight" for part in "qv" for matrix in "AB"
    }
    trainer.save_model()
    out = Path(trainer.args.output_dir)
    adapted = tokens_of(trainer.backbone)
    assert_close(tokens_of(model), adapted)
    assert_close(tokens_of(AutoModel.from_pretrained(out)), adapted)
    loaded = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(start), str(out / "adapter"))
    assert_close(tokens_of(loaded), adapted)


def test_adapters_in_the_backbone_of_a_model_with_a_head(make_trainer, start):
    whole = ViTForImageClassification.from_pretrained(start)
    model = peft.get_peft_model(whole, lora_config(modules_to_save=["classifier"]))
    model.save_pretrained(Path(start).parent / "with_a_head")
    parts = {"model": model, "processing_class": small_vit_processor(16)}
    trainer = make_trainer(parts, learning_rate=BIG, max_steps=7, report="no")
    assert type(trainer.model).__name__ == "ViTModel"
    trainer.train()
    trainer.save_model()
    out = Path(trainer.args.output_dir)
    adapted = tokens_of(trainer.backbone)
    assert_close(tokens_of(AutoModel.from_pretrained(out)), adapted)
    loaded = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(start), str(out / "adapter"))
    assert_close(tokens_of(loaded), adapted)
    backbone = load_backbone(Path(start).parent / "with_a_head")
    assert len(adapter_state(backbone)) == 4


@pytest.mark.parametrize("config", [peft.LoHaConfig, peft.IA3Config, peft.LoraConfig], ids=lambda kind: kind.__name__)
def test_other_kinds_that_can_be_merged(make_trainer, start, config):
    settings = {peft.LoraConfig: {"use_dora": True}, peft.IA3Config: {"feedforward_modules": ["fc1"]}}.get(config, {})
    model = peft.get_peft_model(AutoModel.from_pretrained(start), config(target_modules=["fc1"], **settings))
    parts = {"model": model, "processing_class": small_vit_processor(16)}
    trainer = make_trainer(parts, learning_rate=BIG, max_steps=7, report="no")
    trainer.train()
    assert not torch.allclose(tokens_of(trainer.backbone), tokens_of(AutoModel.from_pretrained(start)), atol=1e-3)
    assert_close(tokens_of(merge_adapters(trainer.backbone)), tokens_of(trainer.backbone))


def prompts(_):
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32)
    settings = {"num_virtual_tokens": 2, "task_type": "FEATURE_EXTRACTION"}
    return peft.get_peft_model(BertModel(config), peft.PromptTuningConfig(**settings))


def shared_matrices(start):
    return peft.get_peft_model(AutoModel.from_pretrained(start), peft.VeraConfig(target_modules=["fc1"]))


def head_alone(start):
    return peft.get_peft_model(
        ViTForImageClassification.from_pretrained(start), lora_config(target_modules=["classifier"])
    )


def merged_already(start):
    model = peft.get_peft_model(AutoModel.from_pretrained(start), lora_config())
    model.merge_adapter()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (prompts, "has prompts"),
        (shared_matrices, "cannot be saved with its backbone .*: use LoRA"),
        (head_alone, "has no adapters inside its backbone"),
        (merged_already, "are merged: call unmerge_adapter"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(make_trainer, start, make, message):
    with pytest.raises(ValueError, match=message) as error:
        make_trainer({"model": make(start), "processing_class": small_vit_processor(16)})
    assert "\n" not in str(error.value)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_targets(make_lora):
    trainer = make_lora(lora_targets=["q_proj", "mlp.fc1"], lora_alpha=3.0)
    names = {name.split(".lora_")[0] for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert names == {"layers.0.attention.q_proj", "layers.0.mlp.fc1"}
    for target in ("query", "pooler.dense"):  # no such layer, and one that no feature depends on
        with pytest.raises(ValueError, match=rf"lora_targets: '{target}' names no linear layer of ViTModel .* q_proj"):
            make_lora(lora_targets=[target])


def test_a_backbone_without_linear_layers():
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    arguments = PLRTrainingArguments("unused", lora=True, use_cpu=True)
    with pytest.raises(ValueError, match=r"ResNetModel has no linear layer: train its weights, without lora"):
        prepare_adapters(model, arguments, lambda: model(torch.zeros(1, 3, 32, 32)))


def test_arguments_without_lora_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"lora_alpha=3.0 has no effect without lora=True"):
        make_trainer(lora_alpha=3.0)


def test_without_peft_one_line_says_so(make_lora, monkeypatch):
    monkeypatch.setattr("hf_plr.models.lora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^lora=True needs peft: pip install peft$"):
        make_lora()


@pytest.mark.parametrize(
    "arguments", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["bf16", "gradient_checkpointing"]
)
def test_precision_and_memory(make_lora, arguments):
    trainer = make_lora(max_steps=2, **arguments)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert moved(trainer, before) == {name for name in before if ".lora_" in name}
    assert all(value.dtype == torch.float32 for value in trainer.model.parameters())


# ---- speech ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UnitTrainer, PLRTrainer])
def test_speech(make_sound_trainer, kind):
    def make():
        return make_sound_trainer(kind, lora=True, lora_rank=4, num_train_epochs=2, report="no")

    whole = make()
    before = {name: value.detach().clone() for name, value in whole.backbone.named_parameters()}
    whole.train()
    changed = {name for name, value in whole.backbone.named_parameters() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if ".lora_" in name}
    assert not any("feature_extractor" in name or "pos_conv" in name for name in changed)
    resumed = make()
    resumed.train(resume_from_checkpoint=str(sorted(Path(whole.args.output_dir).glob("checkpoint-*"))[0]))
    assert_same_run(whole, resumed)
    whole.save_model()
    plain = AutoModel.from_pretrained(whole.args.output_dir).eval()
    sound = {"input_values": torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))}
    with torch.inference_mode():
        expected = whole.backbone.eval()(**sound).last_hidden_state
        assert_close(plain(**sound).last_hidden_state, expected)


def test_layers_above_the_feature_get_no_adapters(make_sound_trainer):
    trainer = make_sound_trainer(PLRTrainer, lora=True, layer=1)
    assert not any("layers.1." in name and ".lora_" in name for name, _ in trainer.model.named_parameters())


def test_linear_layers_that_are_not_called_get_no_adapters():
    model = WavLMModel(
        WavLMConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            conv_dim=(16, 32),
            conv_kernel=(10, 8),
            conv_stride=(5, 4),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            num_buckets=8,
        )
    )
    args = PLRTrainingArguments("unused", lora=True, report_to="none", use_cpu=True)
    prepare_adapters(model, args, lambda: model(torch.zeros(1, 1000)))
    names = {name.split(".lora_")[0] for name in model.state_dict() if ".lora_" in name}
    assert "encoder.layers.0.feed_forward.output_dense" in names
    assert not any(name.endswith(("q_proj", "k_proj", "v_proj", "out_proj")) for name in names)
