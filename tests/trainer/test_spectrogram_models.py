"""`PLRTrainer` with models of spectrograms: it trains, resumes exactly, and what it saves needs nothing of ours."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.runs import StopAt, assert_same_run, weights
from helpers.spectrograms import MODELS, make_extractor, make_model
from transformers import AutoFeatureExtractor, AutoModel

from hf_plr import PLRTrainer, UnitTrainer
from hf_plr.cli import main


@pytest.fixture
def make(make_sound_trainer):
    """Make a trainer of 2 epochs; keywords go to the arguments, those of the trainer to it."""

    def make(name, trainer=None, **arguments):
        parts = {"model": make_model(name), "processing_class": make_extractor(name), **(trainer or {})}
        return make_sound_trainer(PLRTrainer, parts, **{"num_train_epochs": 2, **arguments})

    return make


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_and_the_card_of_what_it_saves_runs_elsewhere(make, some_sounds, tmp_path, capsys, name):
    trainer = make(name)
    before = weights(trainer)
    trainer.train()
    trained = {key for key, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {key for key, value in weights(trainer).items() if not torch.equal(value, before[key])} == trained
    trainer.save_model()
    trainer.create_model_card()
    out = trainer.args.output_dir
    model, report = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights(trainer).items())
    assert type(AutoFeatureExtractor.from_pretrained(out)) is type(trainer.modality.processor)

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("Its decoder is saved with it" in card) == (name == "whisper")
    assert ("return_attention_mask=True" in card) == (name == "wav2vec2-bert")
    snippet = card.split("```python\n")[1].split("```")[0]
    position = 40
    row = int(trainer.train_dataset.rows[position])
    undecoded = some_sounds.cast_column("audio", some_sounds.features["audio"].__class__(decode=False))
    (tmp_path / "sound.wav").write_bytes(undecoded[row]["audio"]["bytes"])
    code = f"import sys; sys.modules['hf_plr'] = None\n{snippet}\nprint(feature[0].tolist())"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    features = trainer.extract_features()
    found = torch.tensor(eval(run.stdout.strip().splitlines()[-1]))
    torch.testing.assert_close(found, features[position], atol=1e-6, rtol=1e-6)  # of a file of 16 bits at this rate

    (tmp_path / "data").mkdir()
    some_sounds.to_parquet(tmp_path / "data" / "train.parquet")
    command = ["--model", out, "--dataset", str(tmp_path / "data")]
    assert main(["embed", *command, "--batch_size", "8", "--output", str(tmp_path / "f.parquet")]) == 0
    embedded = np.stack(pd.read_parquet(tmp_path / "f.parquet")["feature"])
    np.testing.assert_allclose(embedded, features.numpy()[np.argsort(trainer.train_dataset.rows)], atol=1e-5)
    np.testing.assert_allclose(found, embedded[row], atol=1e-6, rtol=1e-6)
    capsys.readouterr()


@pytest.mark.parametrize("name", MODELS)
def test_resume_is_bit_exact(make, tmp_path, name):
    whole = make(name, output_dir=str(tmp_path / "whole"))
    whole.train()
    make(name, {"callbacks": [StopAt(4)]}, output_dir=str(tmp_path / "part")).train()
    resumed = make(name, output_dir=str(tmp_path / "part"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ast", {"pooling": "cls+mean", "ema_decay": 0.5}),
        ("wav2vec2-bert", {"layer": 1, "ema_decay": 0.5}),
        ("whisper", {"layer": 1, "ema_decay": 0.5}),
    ],
)
def test_checkpointing_bf16_teachers_and_segments(make, name, arguments):
    more = {"gradient_checkpointing": True, "bf16": True, "segment_seconds": 0.4, "segment_overlap": 0.1}
    trainer = make(name, **arguments, **more)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all()
    assert trainer.extract_features().shape == (len(trainer.train_dataset), trainer.modality.feature_size)
    assert len(trainer.train_dataset) > 83


@pytest.mark.parametrize("name", MODELS)
def test_layers_have_rates_of_their_own_and_the_first_can_be_frozen(make, name):
    trainer = make(name, layer_decay=0.5, learning_rate=1e-3)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-3, 5e-4, 2.5e-4}
    frozen = make(name, layer_decay=0.5, learning_rate=1e-3, freeze_layers=1)
    assert {group["lr"] for group in frozen.create_optimizer().param_groups} == {1e-3}
    with pytest.raises(ValueError, match="freeze_layers=2 leaves nothing to train: 2 layers are trained"):
        make(name, freeze_layers=2)


def test_batches_of_a_fixed_length_count_its_seconds_and_longer_clips_are_told_of(make, caplog):
    with caplog.at_level("WARNING"):
        trainer = make("ast", {"model": make_model("ast", max_length=40), "processing_class": _short_extractor()})
    assert "only their beginnings count: --segment_seconds" in caplog.text
    modality, store = trainer.modality, trainer.train_dataset
    fixed = modality.backbone.max_samples
    batches = modality.batches(store, torch.arange(len(store)), 8)
    assert {len(batch) for batch in batches[:-1]} == {8 * 8_000 // fixed}
    assert (modality.costs(store) == fixed).all()


def _short_extractor():
    extractor = make_extractor("ast")
    extractor.max_length = 40
    return extractor


@pytest.mark.parametrize("name", MODELS)
def test_frames_need_waveforms(make_sound_trainer, name):
    parts = {"model": make_model(name), "processing_class": make_extractor(name)}
    with pytest.raises(ValueError, match="is not a speech transformer backbone that takes waveforms: use a HuBERT"):
        make_sound_trainer(UnitTrainer, parts)
    trainer = make_sound_trainer(PLRTrainer, parts)
    with pytest.raises(ValueError, match="takes spectrograms: units of frames need a HuBERT"):
        _ = trainer.modality.frame_backbone


def test_what_does_not_fit_is_named(make):
    with pytest.raises(ValueError, match="pooling='cls' but WhisperModel has no class token: use 'mean'"):
        make("whisper", pooling="cls")
    with pytest.raises(ValueError, match=r"max_seconds=0\.01 is too short"):
        make("ast", max_seconds=0.01)
    assert make("ast", pooling="pooler").modality.feature_size == 32
