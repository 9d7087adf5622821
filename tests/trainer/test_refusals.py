"""What a trainer refuses before any long work, in a line that says what to do instead."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from helpers import tiny
from helpers.runs import StopAt, weights
from sklearn.cluster import KMeans
from transformers import ViTConfig, ViTModel

from hf_plr import PLRTrainer, PseudoLabelRefiner, UnitTrainer
from hf_plr.data.sample_store import SampleStore
from hf_plr.models.vision import small_vit_processor
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.checkpoints.finding import CheckpointError
from hf_plr.trainer.settings import own_names
from hf_plr.trainer.start import READ_LATE, TAKEN


@pytest.fixture
def reads_nothing(monkeypatch):
    """No sample is read."""

    def fail(*args, **kwargs):
        raise AssertionError("samples were read")

    monkeypatch.setattr(SampleStore, "__init__", fail)


# ---- model_init ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
@pytest.mark.parametrize("model", [(), (None,), (tiny.tiny_vit,)])
def test_model_init_is_refused(kind, model):
    with pytest.raises(ValueError, match=r"model_init is not supported: .*Pass model=, and make a trainer for each"):
        kind(*model, model_init=tiny.tiny_vit)


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
def test_another_loss_is_refused(kind):
    with pytest.raises(ValueError, match=r"compute_loss_func is not supported: .*Override compute_loss in a subclass"):
        kind(tiny.tiny_vit(), compute_loss_func=torch.nn.functional.mse_loss)


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
def test_a_trainer_needs_a_model(kind):
    with pytest.raises(TypeError, match="model is missing: pass a backbone, its name on the Hub, or its path"):
        kind()


def test_a_search_of_hyperparameters_is_refused(make_trainer):
    with pytest.raises(NotImplementedError, match=r"hyperparameter_search is not supported: .* for each trial"):
        make_trainer().hyperparameter_search(n_trials=2)


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
def test_labels_are_not_saved_in_place_of_a_file(make_sound_trainer, tmp_path, kind):
    (tmp_path / "script.py").touch()
    with pytest.raises(FileExistsError, match=r"script.py is a file: name a folder for the labels"):
        make_sound_trainer(kind).save_labels(tmp_path / "script.py")


# ---- the clusterer ---------------------------------------------------------------------------------------------------


class OnlyFit:
    fit_predict = None

    def fit(self, features):
        return self


@pytest.mark.parametrize("clusterer", [OnlyFit(), object(), "kmeans"])
def test_a_clusterer_without_fit_predict_is_refused(make_trainer, reads_nothing, clusterer):
    with pytest.raises(TypeError, match=f"the clusterer {type(clusterer).__name__} has no fit_predict: give an object"):
        make_trainer({"clusterer": clusterer})


def test_a_clusterer_is_looked_at_before_recordings_are_cut(make_sound_trainer, reads_nothing):
    with pytest.raises(TypeError, match="the clusterer OnlyFit has no fit_predict"):
        make_sound_trainer(PLRTrainer, {"clusterer": OnlyFit()}, segment_seconds=0.2)


def test_a_class_is_not_a_clusterer(make_trainer, reads_nothing):
    with pytest.raises(TypeError, match=r"the clusterer is the class KMeans: give an object, KMeans\(...\)"):
        make_trainer({"clusterer": KMeans})


# ---- an optimizer of the user's --------------------------------------------------------------------------------------


def bare_vit(dtype=torch.float32):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64, image_size=16, patch_size=8
    )
    return ViTModel(config).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_of_the_backbone_trains_it(make_trainer, dtype):
    model = bare_vit(dtype)
    some = [parameter for name, parameter in model.named_parameters() if name.startswith("layers.")]
    optimizer = torch.optim.SGD([{"params": some}, {"params": torch.nn.Linear(2, 2).parameters()}], lr=0.1)
    trainer = make_trainer({"model": model, "optimizers": (optimizer, None)}, num_train_epochs=1, save_strategy="no")
    before = weights(trainer)
    trainer.train()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("layers.") for name in moved)


def test_an_optimizer_of_another_model_is_refused(make_trainer, reads_nothing):
    optimizer = torch.optim.SGD(bare_vit().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers: SGD holds no trained parameter of this ViTModel: load the model"):
        make_trainer({"model": bare_vit(), "optimizers": (optimizer, None)})


def test_an_optimizer_of_frozen_layers_is_refused(make_trainer, reads_nothing):
    model = bare_vit()
    optimizer = torch.optim.SGD(model.pooler.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers: SGD holds no trained parameter"):
        make_trainer({"model": model, "optimizers": (optimizer, None)})


def test_an_optimizer_of_ones_own_has_rates_of_its_own(make_trainer, reads_nothing):
    model = bare_vit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"layer_decay=0.75 has no effect on an optimizer of your own"):
        make_trainer({"model": model, "optimizers": (optimizer, None)}, layer_decay=0.75)


def test_none_is_what_trainer_would_take_by_itself(make_trainer, make_sound_trainer):
    make_trainer({"optimizers": (None, None), "data_collator": None}, max_steps=1).train()
    make_sound_trainer(trainer={"data_collator": None}, max_steps=1).train()


# ---- settings that would be ignored ----------------------------------------------------------------------------------


def test_augmentations_of_the_other_modality_are_refused_before_a_model_is_loaded(
    make_trainer, make_sound_trainer, reads_nothing, monkeypatch
):
    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hf_plr.modality.image.load_backbone", fail)
    monkeypatch.setattr("hf_plr.modality.audio.load_sound_backbone", fail)
    message = "augmentation='waveform' does not fit images: use affine, photo, reid or none"
    with pytest.raises(ValueError, match=message):
        make_trainer(augmentation="waveform")
    with pytest.raises(ValueError, match="augmentation='reid' does not fit recordings: use waveform or none"):
        make_sound_trainer(PLRTrainer, augmentation="reid")


@pytest.mark.parametrize("name", ["segment_seconds", "max_seconds", "sound_cache_gib"])
def test_settings_of_sounds_are_refused_with_images(make_trainer, reads_nothing, name):
    with pytest.raises(ValueError, match=rf"{name}=3\.0 has no effect on images: leave {name} out"):
        make_trainer(**{name: 3.0})


@pytest.mark.parametrize("name", ["image_size", "decoded_size", "image_cache_gib"])
def test_settings_of_images_are_refused_with_sounds(make_sound_trainer, reads_nothing, name):
    with pytest.raises(ValueError, match=rf"{name}=32 has no effect on recordings: leave {name} out"):
        make_sound_trainer(PLRTrainer, **{name: 32})


def test_a_pair_loss_needs_an_augmentation(make_trainer):
    with pytest.raises(ValueError, match="pair_loss='simclr' compares two views of a sample: it needs an augmentation"):
        make_trainer(pair_loss="simclr", augmentation="none")
    with pytest.raises(ValueError, match=r"pair_weight=0\.5 compares two views of a sample: it needs an augmentation"):
        make_trainer(pair_weight=0.5, augmentation="none")


def test_as_many_labelings_as_levels(make_trainer, reads_nothing):
    refiner = PseudoLabelRefiner.from_preset("nested")
    with pytest.raises(ValueError, match=r"num_labelings=2, but the refiner has n_levels=3: leave it out"):
        make_trainer({"refiner": refiner}, num_labelings=2)


class NoHiddenStates(ViTModel):
    def forward(self, pixel_values):
        return super().forward(pixel_values)


def test_a_layer_of_a_model_that_returns_none_is_refused(make_trainer):
    model = NoHiddenStates(tiny.tiny_vit().config)
    with pytest.raises(ValueError, match="layer=1, but NoHiddenStates returns no hidden states: leave it out"):
        make_trainer({"model": model}, layer=1)


def test_an_optimizer_made_before_the_adapters_is_refused(make_trainer):
    model = tiny.tiny_vit()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(
        ValueError, match="SGD holds none of the adapters, which lora=True makes after it: pass a PeftM"
    ):
        make_trainer({"model": model, "optimizers": (optimizer, None)}, lora=True)


# ---- shards ----------------------------------------------------------------------------------------------------------


def test_shards_that_batches_of_features_do_not_fill_are_refused(make_trainer):
    with pytest.raises(ValueError, match="label_shards=4 but the 203 samples are extracted in fewer batches"):
        make_trainer(label_shards=4, per_device_eval_batch_size=256)


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
def test_recordings_that_one_process_shares_out_are_refused(make_sound_trainer, reads_nothing, monkeypatch, kind):
    monkeypatch.setattr(kind.arguments_class, "world_size", 2)
    with pytest.raises(ValueError, match="dispatch_batches=True is not supported for recordings in several processes"):
        make_sound_trainer(kind, accelerator_config={"dispatch_batches": True})


# ---- the output folder -----------------------------------------------------------------------------------------------


def test_what_is_refused_leaves_no_empty_folder(make_trainer, tmp_path):
    out = tmp_path / "a" / "out"
    with pytest.raises(ValueError, match="levels=99"):
        make_trainer(output_dir=str(out), levels="99", num_clusters=None)
    assert not out.exists()
    trainer = make_trainer(output_dir=str(out))
    for checkpoint, fault in ((True, "holds no complete checkpoint"), (str(tmp_path / "none"), "does not exist")):
        with pytest.raises((CheckpointError, ValueError), match=fault):
            trainer.train(resume_from_checkpoint=checkpoint)
        assert not out.exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        make_trainer(output_dir=str(mine)).train(resume_from_checkpoint=True)
    assert mine.exists()


@pytest.mark.parametrize("below", ["a", "a/b"])
def test_an_output_folder_that_cannot_be_made_is_named(make_trainer, tmp_path, below):
    (tmp_path / "taken").write_text("mine")
    out = os.path.join(tmp_path, "taken", below)
    with pytest.raises(OSError, match=rf"--output_dir {out} cannot be made: Not a directory; name another folder"):
        make_trainer(output_dir=out)
    assert (tmp_path / "taken").read_text() == "mine"


def test_other_settings_are_refused_before_samples_are_decoded(make_trainer, tmp_path, monkeypatch):
    make_trainer({"callbacks": [StopAt(7)]}).train()

    def fail(*args, **kwargs):
        raise AssertionError("samples were decoded")

    monkeypatch.setattr(BaseTrainer, "check_samples", fail)
    with pytest.raises(ValueError, match="seed was 42 and is 1"):
        make_trainer(seed=1).train(resume_from_checkpoint=True)
    with pytest.raises(AssertionError, match="decoded"):
        make_trainer().train(resume_from_checkpoint=True)


# ---- what is assigned after the arguments are made -------------------------------------------------------------------


ASSIGNED = [
    ({"feature_source": "epcoh"}, "feature_source='epcoh' is unknown"),
    ({"on_nan": "skip"}, "on_nan='skip' is unknown"),
    ({"samples_per_cluster": 0}, "samples_per_cluster=0 must be at least 1"),
    ({"num_clusters": "six"}, "num_clusters='six' must be a number"),
    ({"refinement": "none", "refinement_weight": 0.3}, "refinement_weight=0.3 has no effect with refinement='none'"),
    ({"continue_from": "out", "output_dir": "out"}, "continue_from='out' is output_dir, too"),
]


@pytest.mark.parametrize(("assigned", "message"), ASSIGNED)
def test_arguments_that_are_assigned_are_checked(some_digits, reads_nothing, tmp_path, assigned, message):
    args = PLRTrainer.arguments_class(str(tmp_path / "out"), use_cpu=True)
    for name, value in assigned.items():
        setattr(args, name, value)
    with pytest.raises(ValueError, match=f"^{message}"):
        PLRTrainer(tiny.tiny_vit(), args, some_digits)


def test_an_argument_of_frames_that_is_assigned_is_checked(some_sounds, reads_nothing, tmp_path):
    args = UnitTrainer.arguments_class(str(tmp_path / "out"), use_cpu=True)
    args.mask_length = 0
    with pytest.raises(ValueError, match=r"^mask_length=0 must be at least 1"):
        UnitTrainer(tiny.tiny_hubert(), args, some_sounds)


def test_json_that_is_assigned_is_read(some_digits, tmp_path):
    args = PLRTrainer.arguments_class(str(tmp_path / "out"), use_cpu=True, num_clusters=4)
    args.clusterer_kwargs = '{"max_iter": 3}'
    trainer = PLRTrainer(tiny.tiny_vit(), args, some_digits, processing_class=small_vit_processor(16))
    assert trainer.args.clusterer_kwargs == {"max_iter": 3}
    assert "learning_rate" in trainer.args.by_default


# ---- what is changed after the trainer is made -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
@pytest.mark.parametrize("resumes", [None, True])
def test_arguments_that_a_trainer_is_made_of_stay(make_sound_trainer, kind, resumes):
    trainer = make_sound_trainer(kind)
    trainer.args.num_clusters = 4
    with pytest.raises(ValueError, match=r"^num_clusters was changed after the trainer was made: make a new trainer$"):
        trainer.train(resume_from_checkpoint=resumes)
    trainer.args.refinement = "none"
    with pytest.raises(ValueError, match=r"^num_clusters, refinement were changed after the trainer was made"):
        trainer.train(resume_from_checkpoint=resumes)


CHANGED = {
    **{"augmentation": "photo", "ema_decay": 0.9, "freeze_layers": 1, "pooling": "mean", "score_every": 1},
    **{"label_column": "other", "image_size": 32, "lora_rank": 4, "feature_dir": "features", "report": "no"},
    **{"per_device_train_batch_size": 8, "data_seed": 3, "seed": 3, "bf16": True},
}


@pytest.fixture(scope="module")
def made_trainer(some_digits, tmp_path_factory):
    """A trainer that does not come to train."""
    return tiny.image_trainer(tmp_path_factory.mktemp("made"), some_digits)


@pytest.mark.parametrize("name", CHANGED)
def test_arguments_without_effect_on_a_trainer_that_is_made_stay(made_trainer, name):
    before = getattr(made_trainer.args, name)
    setattr(made_trainer.args, name, CHANGED[name])
    with pytest.raises(ValueError, match=rf"^{name} was changed after the trainer was made: make a new trainer$"):
        made_trainer.train()
    setattr(made_trainer.args, name, before)


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
def test_every_argument_of_ours_stays_or_is_read_late(kind):
    assert set(READ_LATE) <= set(own_names(PLRTrainer.arguments_class)) | set(own_names(UnitTrainer.arguments_class))
    fields = {field.name for field in dataclasses.fields(kind.arguments_class)}
    assert set(TAKEN) <= fields - set(own_names(kind.arguments_class))


def test_the_samples_stay(make_trainer, make_sound_trainer, some_digits, some_sounds):
    trainer = make_trainer()
    trainer.train_dataset = some_digits.select(range(50))
    with pytest.raises(ValueError, match=r"^train_dataset was replaced: make a new trainer, or continue the run with"):
        trainer.train()
    trainer = make_sound_trainer()
    trainer.train_dataset = some_sounds
    with pytest.raises(ValueError, match=r"^train_dataset was replaced: make a new trainer$"):
        trainer.train()


def test_parts_of_an_argument_stay(make_trainer):
    trainer = make_trainer(clusterer_kwargs={"max_iter": 5})
    trainer.args.clusterer_kwargs["max_iter"] = 9
    with pytest.raises(ValueError, match="clusterer_kwargs was changed"):
        trainer.train()


def test_other_arguments_may_change(make_trainer):
    trainer = make_trainer(num_train_epochs=3)
    trainer.args.num_train_epochs, trainer.args.learning_rate, trainer.args.levels = 1, 1e-5, [2]
    trainer.args.steps_per_epoch, trainer.args.on_nan = 2, "skip_epoch"
    trainer.train()
    assert trainer.state.epoch == 1
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("name", "value"), [("on_nan", "skip"), ("learning_rate", -1.0), ("label_smoothing_factor", 1)]
)
def test_what_may_change_is_checked_when_training_begins(make_trainer, name, value):
    trainer = make_trainer()
    setattr(trainer.args, name, value)
    with pytest.raises(ValueError, match=f"^{name}={value!r} "):
        trainer.train()


def test_the_first_units_may_change(make_sound_trainer):
    losses = []
    for given, then in (("mfcc", "mfcc"), ("mfcc", "layer"), ("layer", "layer")):
        trainer = make_sound_trainer(num_train_epochs=1, first_units=given, save_strategy="no")
        trainer.args.first_units = then
        losses.append(trainer.train().training_loss)
    assert losses[1] == losses[2] != losses[0]
