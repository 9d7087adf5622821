"""`PLRTrainer` on sounds: one refined label a recording."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.runs import StopAt, assert_same_weights, weights
from transformers import AutoFeatureExtractor, AutoModel

from hf_plr import PLRTrainer
from hf_plr.clustering import KMeans
from hf_plr.data.audio_decoding import UnreadableRecording


def test_it_trains_on_recordings_and_every_parameter_changes(make_sound_trainer):
    # Hard targets: soft ones have an entropy of their own, which no training takes away.
    trainer = make_sound_trainer(PLRTrainer, refinement="slr", num_train_epochs=5)
    before = weights(trainer)
    trainer.train()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    # The mask embedding is in the graph, for several processes, but no frame is masked.
    unchanged = {name for name, value in weights(trainer).items() if torch.equal(value, before[name])} & trained
    assert unchanged <= {"masked_spec_embed"}
    labels = trainer.pseudo_labels
    assert labels.labels.shape == (83,)
    assert labels.n_clusters > 1
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_features_do_not_depend_on_the_batch_that_a_recording_is_in(make_sound_trainer):
    trainer = make_sound_trainer(PLRTrainer)
    together = trainer.extract_features()
    store = trainer.train_dataset
    model = trainer.model.eval()
    with torch.no_grad():
        alone = torch.cat([trainer.modality.features(model, store.batch(torch.tensor([i]))) for i in range(len(store))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("stop_at", "workers"), [(3, 0), (4, 2)])
def test_resume_is_bit_exact(make_sound_trainer, tmp_path, stop_at, workers):
    arguments = {"dataloader_num_workers": workers, "sound_cache_gib": 0.0 if workers else 2.0}
    whole = make_sound_trainer(PLRTrainer, output_dir=str(tmp_path / "whole"), **arguments)
    whole.train()
    stopped = {"callbacks": [StopAt(stop_at)]}
    make_sound_trainer(PLRTrainer, stopped, output_dir=str(tmp_path / "part"), **arguments).train()
    resumed = make_sound_trainer(PLRTrainer, output_dir=str(tmp_path / "part"), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop_at}"))
    assert_same_weights(weights(whole), weights(resumed))
    np.testing.assert_array_equal(whole.pseudo_labels.labels, resumed.pseudo_labels.labels)


def test_the_trials_layer_and_density_clustering_work_on_sounds(make_sound_trainer):
    trainer = make_sound_trainer(
        PLRTrainer, num_train_epochs=2, layer=1, clusterer="dbscan", clusterer_kwargs={"k1": 8, "k2": 3}, bf16=True
    )
    upper = {name: value for name, value in weights(trainer).items() if name.startswith("encoder.layers.1.")}
    trainer.train()
    assert all(torch.equal(weights(trainer)[name], value) for name, value in upper.items())  # above the layer
    assert "hidden_states[1]" in trainer.modality.usage_snippet("name")


def test_labels_are_written_in_the_order_of_the_data(make_sound_trainer, some_sounds, tmp_path):
    class ByTruth:
        def __init__(self):
            self.labels = None

        def fit_predict(self, features):
            return self.labels

    clusterer = ByTruth()
    trainer = make_sound_trainer(PLRTrainer, {"clusterer": clusterer}, num_train_epochs=1, refinement="none")
    clusterer.labels = trainer.train_dataset.true_labels()
    trainer.train()
    trainer.save_labels(tmp_path)
    frame = pd.read_parquet(tmp_path / "pseudo_labels.parquet")
    assert frame["index"].tolist() == list(range(83))
    truth = np.asarray(some_sounds["label"])
    # One number for each class, whichever it is.
    assert len(set(zip(frame["label"], truth, strict=True))) == len(set(truth)) == len(set(frame["label"]))


def test_unreadable_recordings_are_named_or_left_out(make_sound_trainer, some_sounds, tmp_path):
    def damage(row, index):
        return {"audio": {"bytes": b"no sound", "path": None}} if index == 7 else row

    damaged = some_sounds.cast_column("audio", some_sounds.features["audio"].__class__(decode=False))
    damaged = damaged.map(damage, with_indices=True)
    with pytest.raises(UnreadableRecording, match=r"recording 7 .*--skip_unreadable"):
        make_sound_trainer(PLRTrainer, {"train_dataset": damaged})  # its header
    trainer = make_sound_trainer(PLRTrainer, {"train_dataset": damaged}, skip_unreadable=True, num_train_epochs=1)
    trainer.train()
    trainer.save_labels(tmp_path)
    assert pd.read_parquet(tmp_path / "pseudo_labels.parquet")["index"].tolist() == [*range(7), *range(8, 83)]
    assert trainer.summary().unreadable_rows == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "cls"}, "pooling='cls' does not fit recordings"),
        ({"augmentation": "photo"}, "augmentation='photo' does not fit recordings: use waveform or none"),
        ({"layer": 9}, "layer=9 but the model has 2 layers: use 0 to 2"),
        ({"max_seconds": 0.0}, "max_seconds=0.0 must be above 0"),
        ({"max_seconds": 0.01}, "max_seconds=0.01 is too short"),
        ({"image_column": "audio", "audio_column": "audio"}, "both given: choose one"),
        ({"audio_column": "sound"}, "audio_column='sound' is not in the data set"),
        ({"num_clusters": 84}, "num_clusters=84 but the data set has 83 samples"),
    ],
)
def test_what_does_not_fit_is_named(make_sound_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sound_trainer(PLRTrainer, **arguments)


def test_an_image_model_for_sounds_is_refused(make_sound_trainer, tiny_vit):
    with pytest.raises(ValueError, match=r"model_type='vit'\) takes pixel_values, .* that takes input_values"):
        make_sound_trainer(PLRTrainer, {"model": tiny_vit()})


def test_batches_are_filled_by_seconds_and_alike_for_every_part(make_sound_trainer):
    trainer = make_sound_trainer(PLRTrainer)
    modality, store = trainer.modality, trainer.train_dataset
    batches = modality.batches(store, torch.arange(len(store)), 8)
    assert torch.equal(torch.cat(list(batches)), torch.arange(len(store)))
    padded = [len(batch) * store.lengths[batch].max() for batch in batches]
    assert max(padded) <= 8 * 8_000
    assert min(padded[:-1]) > 6 * 8_000
    rest = modality.batches(store, torch.arange(len(store))[len(batches[0]) :], 8)
    assert all(torch.equal(one, other) for one, other in zip(rest, batches[1:], strict=True))
    one_by_one = modality.batches(store, torch.arange(len(store)), 1)
    assert all(len(batch) == 1 or len(batch) * store.lengths[batch].max() <= 8_000 for batch in one_by_one)


def test_output_loads_without_the_package_and_the_card_runs(make_sound_trainer, some_sounds, tmp_path):
    trainer = make_sound_trainer(PLRTrainer, num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset="synthetic sounds")
    out = trainer.args.output_dir
    model, report = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.layerdrop == 0.0
    assert AutoFeatureExtractor.from_pretrained(out).sampling_rate == 8_000
    for name, value in weights(trainer).items():
        assert torch.equal(model.state_dict()[name], value)

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: feature-extraction" in card
    snippet = card.split("```python\n")[1].split("```")[0]
    position = 40
    row = int(trainer.train_dataset.rows[position])
    undecoded = some_sounds.cast_column("audio", some_sounds.features["audio"].__class__(decode=False))
    (tmp_path / "sound.wav").write_bytes(undecoded[row]["audio"]["bytes"])
    code = f"import sys; sys.modules['hf_plr'] = None\n{snippet}\nprint(feature[0].tolist())"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    feature = torch.tensor(eval(run.stdout.strip().splitlines()[-1]))
    torch.testing.assert_close(feature, trainer.extract_features()[position], atol=1e-6, rtol=1e-6)  # a file of 16 bits


def test_clusterers_by_object_see_the_sounds_in_order_of_length(make_sound_trainer):
    trainer = make_sound_trainer(PLRTrainer, {"clusterer": KMeans(5)}, num_train_epochs=1)
    trainer.train()
    assert (np.diff(trainer.train_dataset.lengths) >= 0).all()
    assert len(trainer.pseudo_labels.raw_labels) == 83
