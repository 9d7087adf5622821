"""Downstream: a stock classifier from the trained backbone, by a stock Trainer, into a stock pipeline."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer, UnitTrainingArguments
from hf_plr.data.loading import synthetic_sounds
from hf_plr.models.backbone import small_vit, small_vit_processor
from hf_plr.models.speech_backbone import small_hubert, small_hubert_extractor


@pytest.mark.slow
def test_fine_tune_and_classify_digits(tmp_path, all_digits):
    out = str(tmp_path / "plr")
    train, test = all_digits.select(range(1400)), all_digits.select(range(1400, 1797))
    arguments = PLRTrainingArguments(out, num_train_epochs=8, disable_tqdm=True, use_cpu=True, save_strategy="no")
    trainer = PLRTrainer(small_vit(32, 8), arguments, train, processing_class=small_vit_processor(32))
    trainer.train()
    trainer.save_model()

    names = all_digits.features["label"].names
    model, report = AutoModelForImageClassification.from_pretrained(
        out, num_labels=10, id2label=dict(enumerate(names)), output_loading_info=True
    )
    assert {key.split(".")[0] for key in report["missing_keys"]} == {"classifier"}
    processor = AutoImageProcessor.from_pretrained(out)

    def with_pixels(batch):
        pixels = processor([image.convert("RGB") for image in batch["image"]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": batch["label"]}

    stock = Trainer(
        model,
        TrainingArguments(
            str(tmp_path / "classifier"),
            num_train_epochs=8,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=train.with_transform(with_pixels),
        data_collator=default_data_collator,
        processing_class=processor,
    )
    stock.train()
    stock.save_model(str(tmp_path / "classifier"))

    classify = pipeline("image-classification", model=str(tmp_path / "classifier"), device="cpu")
    with torch.inference_mode():
        answers = [result[0]["label"] for result in classify(test["image"][:], batch_size=64, top_k=1)]
    assert np.mean([answer == names[label] for answer, label in zip(answers, test["label"], strict=True)]) > 0.85


@pytest.mark.slow
def test_fine_tune_and_classify_sounds(tmp_path):
    out = str(tmp_path / "plr")
    sounds = synthetic_sounds(n_per_class=40, seed=1)
    rows = np.random.default_rng(0).permutation(len(sounds))
    train, test = sounds.select(rows[:240]), sounds.select(rows[240:])
    arguments = UnitTrainingArguments(
        out, num_train_epochs=4, relabel_every=2, num_clusters=30, disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    torch.manual_seed(0)
    start = small_hubert(8_000, hidden_size=64, num_hidden_layers=2)
    trainer = UnitTrainer(start, arguments, train, processing_class=small_hubert_extractor(8_000))
    trainer.train()
    trainer.save_model()

    names = sounds.features["label"].names
    model, report = AutoModelForAudioClassification.from_pretrained(
        out, num_labels=len(names), id2label=dict(enumerate(names)), output_loading_info=True
    )
    assert {key.split(".")[0] for key in report["missing_keys"]} == {"projector", "classifier"}
    extractor = AutoFeatureExtractor.from_pretrained(out)

    def waveforms(rows):
        return [soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")[0] for audio in rows["audio"]]

    def with_values(batch):
        values = extractor(
            waveforms(batch), sampling_rate=8_000, padding="max_length", max_length=8_000, return_tensors="pt"
        )
        return {**values, "labels": batch["label"]}

    undecoded = Audio(decode=False)
    stock = Trainer(
        model,
        TrainingArguments(
            str(tmp_path / "classifier"),
            num_train_epochs=12,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=train.cast_column("audio", undecoded).with_transform(with_values),
        data_collator=default_data_collator,
        processing_class=extractor,
    )
    stock.train()
    stock.save_model(str(tmp_path / "classifier"))

    classify = pipeline("audio-classification", str(tmp_path / "classifier"), device="cpu", top_k=1)
    heard = waveforms(test.cast_column("audio", undecoded)[:])
    found = [classify(waveform)[0]["label"] for waveform in heard]
    expected = [names[label] for label in test["label"]]
    assert np.mean([one == other for one, other in zip(found, expected, strict=True)]) > 0.7
