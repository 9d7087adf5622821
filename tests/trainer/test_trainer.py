"""The trainer on a tiny ViT and 203 digits: order of events, training, resuming, saving, bad input."""

from __future__ import annotations

import logging
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, Image, concatenate_datasets
from helpers.runs import StopAt, assert_same_weights, weights
from sklearn.cluster import HDBSCAN, AgglomerativeClustering
from transformers import AutoModel, TrainerCallback, ViTForImageClassification

from hf_plr import PLRTrainer, PLRTrainingArguments, PseudoLabelRefiner
from hf_plr.hub import publisher
from hf_plr.models.vision import small_vit_processor
from hf_plr.pseudo_labels.stage import default_num_clusters


class Recorder(TrainerCallback):
    """Writes down in which order things happen."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("train begins")

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.events.append("epoch begins")

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append("step")

    def on_epoch_end(self, args, state, control, **kwargs):
        self.events.append("epoch ends")

    def on_save(self, args, state, control, **kwargs):
        self.events.append("save")


def test_labels_come_before_the_loader_is_opened_and_then_the_steps(make_trainer, monkeypatch):
    recorder = Recorder()
    trainer = make_trainer({"callbacks": [recorder]}, num_train_epochs=2)
    refine, targets, opened = trainer.labelings[0].refine, [], trainer._sampler.__class__.__iter__

    def recorded(*arguments):
        recorder.events.append("labels")
        return refine(*arguments)

    def sampler_iter(sampler):
        recorder.events.append("loader opens")
        targets.append(sampler._targets)
        return opened(sampler)

    monkeypatch.setattr(trainer.labelings[0], "refine", recorded)
    monkeypatch.setattr(trainer._sampler.__class__, "__iter__", sampler_iter)
    trainer.train()
    one_epoch = ["epoch begins", "labels", "loader opens", *["step"] * 7, "epoch ends", "save"]
    assert recorder.events == ["train begins", *one_epoch, *one_epoch]
    assert not np.array_equal(targets[0], targets[1])


class Truth:
    """A clusterer that knows the classes."""

    def __init__(self, labels):
        self.labels = np.array(labels)

    def fit_predict(self, features):
        return self.labels


def test_every_weight_that_has_a_part_in_the_features_changes_and_the_loss_falls(make_trainer, some_digits):
    clusterer = Truth(some_digits["label"])
    trainer = make_trainer({"clusterer": clusterer}, num_train_epochs=8, learning_rate=3e-3, augmentation="none")
    before = weights(trainer)
    trainer.train()
    still = [name for name, value in weights(trainer).items() if torch.equal(value, before[name])]
    assert still == ["pooler.dense.weight", "pooler.dense.bias"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


def test_true_labels_from_the_clusterer_are_learned(make_trainer, some_digits):
    clusterer = Truth(some_digits["label"])
    trainer = make_trainer({"clusterer": clusterer}, num_train_epochs=25, learning_rate=3e-3, augmentation="none")
    before = trainer.score("before")
    trainer.train()
    after = trainer.score("after")
    assert after["nmi"] > before["nmi"] + 0.2
    assert after["knn_accuracy"] > before["knn_accuracy"]
    assert trainer.pseudo_labels.n_clusters == 10


def test_what_is_logged_of_the_stage(make_trainer):
    trainer = make_trainer()
    trainer.train()
    stages = [entry for entry in trainer.state.log_history if "plr/clusters" in entry]
    assert [entry["epoch"] for entry in stages] == [0, 1, 2]
    assert "plr/agreement_ari" not in stages[0]
    assert {
        "plr/clusters",
        "plr/noise_share",
        "plr/agreement_ari",
        "plr/changed_share",
        "plr/seconds_extract",
        "plr/seconds_cluster",
        "plr/seconds_refine",
    } <= stages[1].keys()


def test_the_stage_leaves_random_generators_and_mode_alone(make_trainer):
    trainer = make_trainer()
    trainer.model.train()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    trainer.prepare_epoch(0)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002
    assert trainer.model.training


def test_accumulated_small_batches_train_as_one_large_batch(make_trainer, tmp_path):
    # SGD moves weights in proportion to their gradients, so that rounding stays rounding; Adam divides by them.
    # The pair term is of the batch that goes through the model at once: its statistics are those of small batches.
    shared = {"num_train_epochs": 1, "max_steps": 6, "optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0}
    shared["pair_weight"] = 0.0
    large = make_trainer(output_dir=str(tmp_path / "a"), **shared)
    small = make_trainer(
        output_dir=str(tmp_path / "b"), per_device_train_batch_size=8, gradient_accumulation_steps=4, **shared
    )
    start = weights(large)
    large.train()
    small.train()
    for name, value in weights(large).items():
        moved = (value - start[name]).norm()
        assert (weights(small)[name] - value).norm() <= 1e-3 * moved + 1e-7, name
    prototypes = [trainer.cluster_objective.memory.prototypes[0] for trainer in (large, small)]
    torch.testing.assert_close(*prototypes, atol=1e-4, rtol=0)


def test_labels_of_an_earlier_training_are_not_published(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer(num_train_epochs=1, save_strategy="no")
    trainer.train()
    trainer.save_labels(str(tmp_path / "out"))
    trainer.train()
    monkeypatch.setattr(publisher, "push_labels", lambda *_, **__: None)
    trainer.push_labels_to_hub("someone/labels")
    labels = pd.read_parquet(tmp_path / "out" / "pseudo_labels.parquet")["label"]
    np.testing.assert_array_equal(labels, trainer.pseudo_labels.labels)


def test_checkpoints_are_limited_and_each_loads_by_itself(make_trainer, tmp_path):
    trainer = make_trainer(save_total_limit=1)
    trainer.train()
    trainer.save_model()
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert kept == ["checkpoint-21"]
    assert (tmp_path / "out" / "checkpoint-21" / "plr_state.safetensors").exists()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1, "who may read one, may read all"


def test_output_loads_in_plain_auto_classes_without_the_package(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    expected = trainer.extract_features()[:3].tolist()
    code = f"""
import json, sys
sys.modules["hf_plr"] = None
import numpy as np, torch
from sklearn.datasets import load_digits
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
model, report = AutoModel.from_pretrained({trainer.args.output_dir!r}, output_loading_info=True)
processor = AutoImageProcessor.from_pretrained({trainer.args.output_dir!r})
rows = {trainer.train_dataset.rows[:3].tolist()}
chosen = np.sort(np.random.default_rng(0).permutation(1797)[:203])
images = [Image.fromarray((load_digits().images[chosen[r]] * 255 / 16).astype(np.uint8)) for r in rows]
with torch.inference_mode():
    output = model.eval()(**processor(images, return_tensors="pt"))
assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
lists = {{name: sorted(value) for name, value in report.items() if not isinstance(value, dict)}}
print(json.dumps([lists, output.last_hidden_state[:, 0].tolist()]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report, features = __import__("json").loads(run.stdout.strip().splitlines()[-1])
    assert all(value == [] for value in report.values()), report
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("clusterer", [AgglomerativeClustering(8), HDBSCAN(min_cluster_size=2, copy=True)])
def test_any_clusterer_with_fit_predict_works(make_trainer, clusterer):
    trainer = make_trainer({"clusterer": clusterer}, num_train_epochs=2, refinement="slr")
    trainer.train()
    assert trainer.pseudo_labels.n_clusters >= 2
    noise_share = (trainer.pseudo_labels.raw_labels == -1).mean()
    assert (noise_share > 0) == isinstance(clusterer, HDBSCAN)


def test_a_model_with_a_head_trains_resumes_and_loads_with_a_pooler(make_trainer, tmp_path, tiny_vit):
    def classifier():
        torch.manual_seed(0)
        return ViTForImageClassification(tiny_vit().config)

    whole = make_trainer({"model": classifier()}, output_dir=str(tmp_path / "whole"))
    whole.train()
    make_trainer({"model": classifier(), "callbacks": [StopAt(10)]}, output_dir=str(tmp_path / "part")).train()
    resumed = make_trainer({"model": classifier()}, output_dir=str(tmp_path / "part"))
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole), weights(resumed))
    whole.save_model()
    _, report = AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_training_again_makes_new_labels(make_trainer):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    first = len([entry for entry in trainer.state.log_history if "plr/clusters" in entry])
    center = trainer.cluster_objective.memory.center.clone()
    trainer.train()
    again = len([entry for entry in trainer.state.log_history if "plr/clusters" in entry])
    assert (first, again) == (1, 1)
    assert not torch.equal(trainer.cluster_objective.memory.center, center)


def test_an_epoch_that_is_stopped_early_is_an_epoch(make_trainer):
    class StopEpoch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 3

    trainer = make_trainer({"callbacks": [StopEpoch()]})
    epochs = []
    prepare = trainer.prepare_epoch
    trainer.prepare_epoch = lambda epoch: (epochs.append(epoch), prepare(epoch))
    trainer.train()
    assert epochs == [0, 1, 2]
    assert len([entry for entry in trainer.state.log_history if "plr/clusters" in entry]) == 3


def test_text_labels_mean_the_same_in_both_splits(make_trainer, some_digits):
    names = np.array(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"])

    def named(rows):
        part = some_digits.select(rows)
        return part.remove_columns("label").add_column("label", names[part["label"]].tolist())

    train = named(range(203))
    test = named([i for i in range(203) if some_digits[i]["label"] in (3, 7, 8)])
    trainer = make_trainer({"train_dataset": train, "eval_dataset": test})
    trainer.score("before")
    store = trainer.open_samples(test)
    assert names[store.true_labels()].tolist() == test["label"][:]


def test_own_refiner_and_bf16(make_trainer):
    trainer = make_trainer({"refiner": PseudoLabelRefiner(linkage="ward", weight=0.4)}, bf16=True, num_train_epochs=2)
    trainer.train()
    assert trainer.extract_features().dtype is torch.float32
    assert trainer.pseudo_labels.n_clusters == 12


def test_pseudo_labels_file(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_pseudo_labels(tmp_path / "labels.parquet")
    table = pd.read_parquet(tmp_path / "labels.parquet")
    assert table.columns.tolist() == ["index", "label", "previous_label", "confidence", "digest"]
    assert table["index"].tolist() == list(range(203))
    assert table["confidence"].between(0, 1).all()
    members = table[(table["label"] >= 0) & (table["previous_label"] >= 0)]
    assert (members["label"] == members["previous_label"]).mean() > 0.2  # chance would be under one tenth


def test_refinement_starts_when_it_is_told_to(make_trainer):
    trainer = make_trainer(refine_start_epoch=2, refinement="joint")
    trainer.train()
    changed = [entry["plr/changed_share"] for entry in trainer.state.log_history if "plr/changed_share" in entry]
    assert changed[0] == changed[1] == 0.0
    assert changed[2] > 0.0


def test_default_number_of_clusters():
    assert [default_num_clusters(n) for n in (1, 2, 3, 10, 1797, 60_000, 1_000_000)] == [1, 2, 2, 5, 64, 367, 1500]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 5000}, "num_clusters=5000 but the data set has 203 samples"),
        ({"refinement_weight": 1.5}, r"refinement_weight=1.5 is outside \[0, 1\]"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"prototype_momentum": -1.0}, "prototype_momentum=-1.0"),
        ({"refinement": "magic"}, "refinement='magic' is unknown: use one of"),
        ({"pooling": "max"}, "pooling='max' is unknown: use one of cls, mean"),
        ({"image_column": "photo"}, "image_column='photo' is not in the data set; the columns are: image, label"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True is not supported"),
    ],
)
def test_bad_arguments_are_named_before_any_work(make_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**arguments)


def test_bad_data_is_named_before_any_work(make_trainer, some_digits):
    with pytest.raises(TypeError, match=r"datasets.Dataset .* not list"):
        make_trainer({"train_dataset": [1, 2]})
    with pytest.raises(ValueError, match="empty"):
        make_trainer({"train_dataset": some_digits.select([])})
    with pytest.raises(ValueError, match="no column holds images"):
        make_trainer({"train_dataset": some_digits.remove_columns("image")})
    more = some_digits.select_columns(["image"]).rename_column("image", "other")
    with pytest.raises(ValueError, match="2 columns hold images"):
        make_trainer({"train_dataset": concatenate_datasets([some_digits, more], axis=1)})


def test_unreadable_images_are_named_or_left_out(make_trainer, some_digits, tmp_path):
    raw = some_digits.cast_column("image", Image(decode=False)).to_list()
    raw[5]["image"]["bytes"] = b"not an image"
    features = Features({**some_digits.features, "image": Image(decode=False)})
    damaged = Dataset.from_list(raw, features=features).cast_column("image", Image())
    with pytest.raises(ValueError, match="image 5 cannot be read"):
        make_trainer({"train_dataset": damaged}).train()
    trainer = make_trainer({"train_dataset": damaged}, skip_unreadable=True, num_train_epochs=1)
    trainer.train()
    trainer.save_pseudo_labels(tmp_path / "labels.parquet")
    assert trainer.train_dataset.unreadable == [5]
    assert pd.read_parquet(tmp_path / "labels.parquet")["index"].tolist() == [i for i in range(203) if i != 5]


def test_one_cluster_left_warns_and_all_noise_stops(make_trainer, caplog):
    class Constant:
        def __init__(self, label):
            self.label = label

        def fit_predict(self, features):
            return np.full(len(features), self.label)

    with caplog.at_level(logging.WARNING, logger="hf_plr"):
        make_trainer({"clusterer": Constant(0)}, num_train_epochs=1).train()
    assert "only one cluster is left" in caplog.text
    assert "Use more clusters, a lower learning rate" in caplog.text
    with pytest.raises(ValueError, match=r"all 203 samples are noise, .* Use fewer, larger clusters\."):
        make_trainer({"clusterer": Constant(-1)}).train()
    with pytest.raises(ValueError, match=r"all 203 samples are noise, .* Use a larger eps\."):
        make_trainer(clusterer="dbscan", clusterer_kwargs={"eps": 1e-6}, num_clusters=None).train()
    with pytest.raises(ValueError, match=r"are noise, .* Use fewer, larger clusters, by a num_clusters below 203\."):
        make_trainer(num_clusters=203, refinement="consensus").train()


def test_a_clusterer_with_a_wrong_answer_is_named(make_trainer):
    class Short:
        def fit_predict(self, features):
            return np.zeros(3)

    with pytest.raises(ValueError, match=r"fit_predict gave float64 of shape \(3,\); expected integers"):
        make_trainer({"clusterer": Short()}).train()


def test_a_model_without_processor_says_what_to_pass(tmp_path, some_digits, tiny_vit):
    arguments = PLRTrainingArguments(str(tmp_path), num_clusters=5, use_cpu=True, disable_tqdm=True)
    with pytest.raises(ValueError, match="pass processing_class="):
        PLRTrainer(tiny_vit(), arguments, some_digits)


def test_two_label_candidates_score_nothing(make_trainer, some_digits, caplog):
    twice = some_digits.add_column("other", some_digits["label"]).cast_column("other", some_digits.features["label"])
    with caplog.at_level(logging.WARNING, logger="hf_plr"):
        trainer = make_trainer({"train_dataset": twice})
    assert "2 columns could hold the labels (label, other)" in caplog.text
    assert trainer.score("before") == {}


def test_a_model_that_is_not_there_is_named(tmp_path, some_digits):
    arguments = PLRTrainingArguments(str(tmp_path), num_clusters=5, use_cpu=True, disable_tqdm=True)
    with pytest.raises(ValueError, match="the model '/no/such/model' is neither a folder here nor the name of a model"):
        PLRTrainer("/no/such/model", arguments, some_digits)


def test_model_by_path(tmp_path, some_digits, tiny_vit):
    tiny_vit().save_pretrained(tmp_path / "start")
    small_vit_processor(16).save_pretrained(tmp_path / "start")
    arguments = PLRTrainingArguments(str(tmp_path / "out"), num_train_epochs=1, use_cpu=True, disable_tqdm=True)
    trainer = PLRTrainer(str(tmp_path / "start"), arguments, some_digits)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("settings", [{}, {"feature_source": "epoch"}])
def test_a_loss_of_ones_own_trains_and_prototypes_stay(make_trainer, monkeypatch, settings):
    trainer = make_trainer(num_train_epochs=2, save_strategy="no", **settings)
    prototypes, begin_epoch = [], trainer.begin_epoch

    def noted(epoch):
        begin_epoch(epoch)
        prototypes.append(trainer.cluster_objective.memory.prototypes[0].clone())

    monkeypatch.setattr(trainer, "begin_epoch", noted)
    features = trainer.modality.features
    monkeypatch.setattr(trainer, "compute_loss", lambda model, inputs, **_: features(model, inputs).square().mean())
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert torch.equal(trainer.cluster_objective.memory.prototypes[0], prototypes[-1])


def test_the_pair_term_is_computed_in_float32_beside_bfloat16(make_trainer, monkeypatch):
    trainer = make_trainer(bf16=True, num_train_epochs=1, save_strategy="no")
    dtypes = set()
    trainer.pair_term.head.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    trainer.train()
    assert dtypes == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.pair_term.head.parameters())
