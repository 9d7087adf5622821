"""What happens when memory does not hold a batch: parts of it in extraction, smaller ones in training."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from helpers.runs import StopAt

from hf_plr.modality import SampleOpener
from hf_plr.refinement import NOISE
from hf_plr.trainer.checkpoints.finding import CheckpointError


class Refusing:
    """Features of a modality, as long as a batch has few enough samples."""

    def __init__(self, features, limit):
        self.features, self.limit, self.sizes = features, limit, []

    def __call__(self, model, batch, numbers=None):
        n = len(batch["index"])
        self.sizes.append(n)
        if n > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.features(model, batch, numbers)


def test_extraction_halves_its_own_batch(make_trainer, monkeypatch, caplog):
    trainer = make_trainer(per_device_eval_batch_size=64)
    trainer.check_samples(extract=False)  # which keeps no features
    whole = trainer.extract_features()
    refusing = Refusing(trainer.modality.features, limit=20)
    monkeypatch.setattr(trainer.modality, "features", refusing)
    assert torch.allclose(trainer.extract_features(), whole, atol=1e-5)
    assert refusing.sizes[:3] == [64, 32, 16]
    assert max(refusing.sizes[3:]) == 16  # and stays there
    assert "features are computed of 16" in caplog.text
    refusing.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        trainer.extract_features()


def test_a_trainer_learns_once_how_many_samples_memory_holds(make_trainer, monkeypatch):
    trainer = make_trainer(per_device_eval_batch_size=64, num_train_epochs=2, pair_weight=0.0)
    refusing = Refusing(trainer.modality.features, limit=32)
    monkeypatch.setattr(trainer.modality, "features", refusing)
    trainer.train()
    assert [size for size in refusing.sizes if size > 32] == [64]


def test_samples_of_an_evaluation_are_let_go_of_with_their_data_set(make_trainer, some_digits):
    kept, passed = some_digits.select(range(20)), some_digits.select(range(30))
    trainer = make_trainer({"eval_dataset": kept})
    stores = []
    for dataset in (None, kept, passed, some_digits):  # the last is that of training
        trainer.evaluate(dataset)
        stores.append(weakref.ref(trainer.open_samples.latest))
    del dataset, passed
    gc.collect()
    assert [store() is not None for store in stores] == [True, True, False, True]
    assert stores[0]() is stores[1]()  # decoded once
    assert trainer.accelerator._dataloaders == []


def test_a_data_set_holds_no_store_of_an_opener_that_is_gone(make_trainer, some_digits):
    modality = make_trainer().modality
    opener = SampleOpener(modality, "label")
    store = weakref.ref(opener(some_digits))
    assert store() is not None
    del opener
    gc.collect()
    assert store() is None


def test_other_errors_of_extraction_are_not_taken_for_a_lack_of_memory(make_trainer, monkeypatch):
    trainer = make_trainer()

    def fail(*args):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer.modality, "features", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.extract_features()


def refuse_large_batches(trainer, monkeypatch):
    """Let a step of more than 16 samples find no memory."""
    training_step = trainer.training_step

    def refuse_large(model, inputs, *args):
        if len(inputs["index"]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return training_step(model, inputs, *args)

    monkeypatch.setattr(trainer, "training_step", refuse_large)


def test_a_smaller_batch_keeps_the_steps_of_an_epoch(make_trainer, monkeypatch):
    trainer = make_trainer(
        auto_find_batch_size=True,
        pair_weight=0.0,
        per_device_train_batch_size=32,
        steps_per_epoch=3,
        num_train_epochs=2,
    )
    refuse_large_batches(trainer, monkeypatch)
    trainer.train()
    assert trainer._train_batch_size <= 16
    assert trainer.state.global_step == 6
    assert trainer.state.epoch == 2.0


def test_a_smaller_batch_begins_with_labels_of_its_own(make_trainer, monkeypatch):
    trainer = make_trainer(
        auto_find_batch_size=True, pair_weight=0.0, per_device_train_batch_size=32, num_train_epochs=1
    )
    refuse_large_batches(trainer, monkeypatch)
    trainer.train()
    assert (trainer.pseudo_labels.previous_labels == NOISE).all()
    (stage,) = [entry for entry in trainer.state.log_history if "plr/clusters" in entry]
    assert "plr/agreement_ari" not in stage


class Full:
    """Memory that is full whenever it is asked for."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("place", ["refresh_labels", "assess"])
def test_a_stage_that_memory_does_not_hold_does_not_begin_training_anew(make_trainer, monkeypatch, place):
    trainer = make_trainer(auto_find_batch_size=True, pair_weight=0.0, score_every=1, per_device_eval_batch_size=48)
    full = Full()
    monkeypatch.setattr(trainer, place, full)
    with pytest.raises(RuntimeError, match="reduce per_device_eval_batch_size=48"):
        trainer.train()
    assert full.calls == 1


def test_a_checkpoint_that_memory_does_not_hold_does_not_begin_training_anew(make_trainer, monkeypatch):
    trainer = make_trainer(auto_find_batch_size=True, pair_weight=0.0)
    full = Full()
    monkeypatch.setattr(trainer, "run_state", full)
    with pytest.raises(CheckpointError, match=r"could not be written: CUDA out of memory"):
        trainer.train()
    assert full.calls == 1


def test_a_run_goes_on_with_the_batches_that_were_found(make_trainer, tmp_path, monkeypatch):
    arguments = {"pair_weight": 0.0, "steps_per_epoch": 3, "num_train_epochs": 2}
    trainer = make_trainer({"callbacks": [StopAt(3)]}, auto_find_batch_size=True, **arguments)
    refuse_large_batches(trainer, monkeypatch)
    trainer.train()
    found = trainer._train_batch_size
    message = f"checkpoint-3 was written with batches of {found} samples, .* resume with auto_find_batch_size=True"
    with pytest.raises(ValueError, match=message):
        make_trainer(**arguments).train(resume_from_checkpoint=True)
    resumed = make_trainer(auto_find_batch_size=True, **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._train_batch_size == found
    assert resumed.state.global_step == 6
