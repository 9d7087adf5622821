"""Downstream: a stock classifier from the trained backbone, by a stock Trainer, into a stock pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.models.backbone import small_vit, small_vit_processor


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
