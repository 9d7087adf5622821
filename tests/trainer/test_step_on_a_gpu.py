"""A training step where a GPU computes: the host never waits for it, and copies nothing but the batch."""

from __future__ import annotations

import pytest
import torch
from helpers.absent_gpu import GPU, CountedCopies, CountedWaits
from transformers import Trainer, TrainingArguments, ViTForImageClassification

from hf_plr import PLRTrainer
from hf_plr.data.audio_augmentation import AUDIO_AUGMENTATIONS
from hf_plr.data.image_augmentation import IMAGE_AUGMENTATIONS
from hf_plr.utils.rng import uniform


def test_waits_and_copies_are_noticed():
    values = torch.ones(3, device=GPU)
    for wait in (lambda: values.sum().item(), values.tolist, lambda: bool(values[0]), values.unique, values.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with CountedCopies() as copies:
        torch.ones(3).to(GPU)
        torch.tensor([1.0], device=GPU)
        values + 1.0
    assert copies.names == ["to", "tensor"]


def test_a_step_waits_no_more_than_that_of_a_stock_trainer(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer(refinement="auto", num_train_epochs=2, save_strategy="no")
    waits = count_waits(trainer, monkeypatch)
    trainer.train()

    class Stock(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            images = trainer.modality.geometry.unit_range(inputs["pixel_values"])
            return model(pixel_values=images, labels=inputs["index"] % 2).loss

    args = TrainingArguments(
        str(tmp_path), max_steps=5, remove_unused_columns=False, use_cpu=True, save_strategy="no", report_to="none"
    )
    stock = Stock(
        ViTForImageClassification(trainer.model.config),
        args,
        train_dataset=trainer.train_dataset,
        data_collator=trainer.modality.collate,
    )
    of_stock = count_waits(stock, monkeypatch)
    stock.train()
    assert len(waits) == 14
    assert len(of_stock) == 5
    assert max(len(names) for names in waits) <= min(len(names) for names in of_stock) + 2


def count_waits(trainer, monkeypatch):
    """What each step of a trainer would wait for, as a list that grows while it trains."""
    found, step = [], trainer.training_step

    def counted(*args, **kwargs):
        with CountedWaits() as waits:
            loss = step(*args, **kwargs)
        found.append(waits.names)
        return loss

    monkeypatch.setattr(trainer, "training_step", counted)
    return found


@pytest.mark.parametrize("augmentation", IMAGE_AUGMENTATIONS)
@pytest.mark.parametrize("settings", [{}, {"confidence_power": 1.0, "min_confidence": 0.3}], ids=["", "confidence"])
def test_a_step_on_images_with_soft_labelings(make_trainer, augmentation, settings):
    settings = {"refinement": "soft", "num_labelings": 3, "num_train_epochs": 2, **settings}
    trainer = make_trainer(augmentation=augmentation, **settings)
    trainer.train()
    assert all(labeling.pseudo_labels.soft_targets is not None for labeling in trainer.labelings)
    index = torch.arange(16, device=GPU)
    copies = count_copies(
        trainer, {"index": index, "pixel_values": torch.zeros(16, 3, 16, 16, dtype=torch.uint8, device=GPU)}
    )
    assert copies == []


@pytest.mark.parametrize("augmentation", AUDIO_AUGMENTATIONS)
def test_waveforms_are_augmented_and_normalised(make_sound_trainer, augmentation):
    """The forward of transformers' HuBERT itself waits twice: for its padding, and for the frames to mask."""
    modality = make_sound_trainer(PLRTrainer, augmentation=augmentation).modality
    batch = {"lengths": torch.full((4,), 4000, device=GPU), "input_values": torch.zeros(4, 4000, device=GPU)}
    with CountedCopies() as copies:
        modality.waveforms(batch, uniform(torch.arange(4, device=GPU), seed=0, epoch=0))
    assert copies.names == []


def count_copies(trainer, batch):
    """Names of the functions that copy in the second of two steps on the GPU."""
    model = trainer.model.to(GPU)
    trainer.cluster_objective.to(GPU)
    if trainer.pair_term is not None:
        trainer.pair_term.head.to(GPU)
    for _ in range(2):
        with CountedCopies() as copies:
            trainer.compute_loss(model, batch).backward()
            trainer.update_prototypes()
    return copies.names
