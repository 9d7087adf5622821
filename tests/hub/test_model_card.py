"""The model card: its metadata, what it says of the clusters, its plot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import tiny
from huggingface_hub import ModelCard
from PIL import Image

import hf_plr
from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.hub.training_log import MAX_ROWS, tabulate_log
from hf_plr.modality import Modality
from hf_plr.models.vision import small_vit_processor
from hf_plr.report import summary
from hf_plr.report.terminal_summary import format_summary


def test_the_card_comes_with_the_metrics_that_it_lists(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    metrics = tmp_path / "out" / "metrics.json"
    trainer.create_model_card()
    assert not metrics.exists()  # of what was trained
    trainer.train()
    trainer.create_model_card()
    written = json.loads(metrics.read_bytes())
    assert written["steps"] == trainer.state.global_step
    assert written["settings"]["refinement"] == "slr"
    assert written["seconds"] == round(trainer.state.log_history[-1]["train_runtime"], 1)
    after = trainer.score("after")
    trainer.create_model_card()
    assert json.loads(metrics.read_bytes())["scores"] == {"after": after}
    trainer.publisher.write_metrics(12.0)
    trainer.create_model_card()
    trainer.score("later")
    trainer.create_model_card()
    assert json.loads(metrics.read_bytes())["seconds"] == 12.0


def settings_of(trainer):
    return dict(trainer.summary().changed_settings())


def test_settings_that_nobody_gave_are_not_told(some_digits, tmp_path, monkeypatch):
    def make(**arguments):
        args = PLRTrainingArguments(str(tmp_path / "out"), **{"use_cpu": True, **arguments})
        return PLRTrainer(tiny.tiny_vit(), args, some_digits, processing_class=small_vit_processor(16))

    assert settings_of(make()) == {}
    given = {"learning_rate": 1e-3, "num_train_epochs": 3, "bf16": True, "dataloader_num_workers": 0}
    assert settings_of(make(**given)) == given
    assert settings_of(make(bf16=False)) == {}
    monkeypatch.setattr(summary, "suits_bf16", lambda fp16, use_cpu: True)  # as on a GPU
    assert settings_of(make(bf16=True)) == {}
    assert settings_of(make(bf16=False)) == {"bf16": False}


def test_an_optimizer_of_ones_own_is_told_in_place_of_its_arguments(make_trainer, tmp_path):
    given = {"learning_rate": 0.3, "weight_decay": 0.2, "optim": "sgd"}
    model = tiny.tiny_vit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = make_trainer({"model": model, "optimizers": (optimizer, None)}, num_train_epochs=1, **given)
    trainer.train()
    trainer.create_model_card()
    told = json.loads((tmp_path / "out" / "metrics.json").read_bytes())["settings"]
    assert told["optimizer"] == "SGD(lr=0.1, momentum=0.9, dampening=0, weight_decay=0)"
    assert not told.keys() & given.keys()
    assert "* `optimizer`: SGD(lr=0.1, momentum=0.9" in (tmp_path / "out" / "README.md").read_text()
    kind = torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.7}  # `Trainer` takes that of the arguments
    settings = settings_of(make_trainer({"optimizer_cls_and_kwargs": kind}, **given))
    assert (settings["optimizer"], settings["weight_decay"]) == ("SGD(lr=0.1)", 0.2)
    assert not settings.keys() & {"learning_rate", "optim"}


def test_arguments_are_those_of_trainer(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.create_model_card(language="de", dataset_tags="user/digits", tags=None, license=None, tasks=None)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.language == ["de"]
    assert card.data.datasets == ["user/digits"]
    trainer.create_model_card(language=["de", "en"], dataset_tags=["user/digits"], dataset="user/others")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.language == ["de", "en"]
    assert card.data.datasets == ["user/others"]
    known = "model_name, tags, dataset, license, finetuned_from, language"
    for write in (trainer.create_model_card, trainer.push_to_hub):
        with pytest.raises(TypeError, match=rf"^the model card does not take tasks, dataset_args: it takes {known}$"):
            write(tasks="image-classification", dataset_args="all")
        with pytest.raises(TypeError, match="does not take dataset_tags"):
            write(dataset_tags=["user/digits", "user/others"])
        with pytest.raises(TypeError, match="names a single data set, as a text"):
            write(dataset=["user/digits", "user/others"])


def test_scores_clusters_and_plot(make_trainer, all_digits, tmp_path):
    trainer = make_trainer({"eval_dataset": all_digits.select(range(60))})
    trainer.score("before")
    trainer.train()
    after = trainer.score("after")
    trainer.create_model_card(dataset="user/digits", license="mit", tags=["vit"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license == "mit"
    assert card.data.datasets == ["user/digits"]
    assert {"vit", "hf-plr", "pseudo-label-refinement"} <= set(card.data.tags)
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results.keys() == after.keys()
    assert results["knn_accuracy"].metric_value == round(after["knn_accuracy"], 4)
    assert results["knn_accuracy"].dataset_type == "user/digits"
    assert results["knn_accuracy"].dataset_split == "test"

    sizes = trainer.summary().cluster_sizes
    assert sizes.sum() == (trainer.pseudo_labels.labels >= 0).sum()
    assert f"{len(sizes)} clusters: the smallest has {sizes.min()} images" in card.text
    agreement = [entry["plr/agreement_ari"] for entry in trainer.state.log_history if "plr/agreement_ari" in entry]
    assert f"{agreement[0]:.2f} at the second stage, {agreement[-1]:.2f} at the last" in card.text
    assert f"* hf-plr {hf_plr.__version__}\n" in card.text
    assert "The scores are of test images." in card.text
    assert "does_it_help.md" in card.text
    assert "@article{plr2024" in card.text
    assert "](clusters.png)" in card.text
    with Image.open(tmp_path / "out" / "clusters.png") as plot:
        assert plot.size[0] > 2 * plot.size[1]
        assert len(np.unique(np.asarray(plot.convert("L")))) > 20  # something is drawn


@pytest.mark.parametrize("output_dir", [".", "../photos", "sub/.."])
def test_a_run_in_the_working_folder_has_the_name_of_that_folder(make_trainer, tmp_path, monkeypatch, output_dir):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    trainer = make_trainer(output_dir=output_dir)
    trainer.create_model_card()
    trainer.write_report()
    card = (folder / "README.md").read_text()
    assert "\n# photos\n" in card
    assert 'AutoModel.from_pretrained("photos")' in card
    assert '"title":"photos"' in (folder / "report.json").read_text()


def test_the_log_of_the_epochs_is_a_table(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=3, score_every=2, label_column="label")
    trainer.train()
    trainer.create_model_card()
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    header, *rows = tabulate_log(trainer.state.log_history)
    assert header[:3] == ("epoch", "loss", "clusters")
    assert "kNN accuracy" in header
    assert [row[0] for row in rows] == ["0", "1", "2"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert rows[-1][1] == f"{losses[-1]:.4g}"
    agreement = header.index("agreement")
    assert rows[0][agreement] == ""  # there is no stage before
    for row in (header, *rows):
        assert f"| {' | '.join(row)} |\n" in text


def test_a_long_log_is_shown_in_part():
    assert tabulate_log([{"loss": 1.0, "epoch": 1.0}]) == []
    log = [{"epoch": epoch, "plr/seconds": 1.0, "plr/clusters": 1000 + epoch} for epoch in range(100)]
    header, *rows = tabulate_log(log)
    assert header == ("epoch", "clusters")
    assert len(rows) == MAX_ROWS
    assert (rows[0], rows[-1]) == (("0", "1,000"), ("99", "1,099"))


def test_without_labels_there_are_no_scores(make_trainer, some_digits, tmp_path):
    trainer = make_trainer({"train_dataset": some_digits.remove_columns("label")}, num_train_epochs=1)
    trainer.train()
    trainer.create_model_card(dataset=str(tmp_path))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.eval_results is None
    assert card.data.datasets is None
    assert "No label column was chosen" in card.text
    assert "There are no scores." in card.text
    assert "clusters: the smallest has" in card.text


@pytest.mark.parametrize(("has_classifier", "advice"), [(True, "with `AutoModelFor"), (False, "no classifier of this")])
def test_only_backbones_with_a_classifier_promise_one(make_trainer, tmp_path, monkeypatch, has_classifier, advice):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    classifier = "AutoModelForImageClassification" if has_classifier else None
    monkeypatch.setattr(Modality, "classifier", classifier)
    trainer.create_model_card()
    assert advice in (tmp_path / "out" / "README.md").read_text()
    text = format_summary(trainer.summary(), 1.0, ("", ""))
    assert ("hf-plr finetune image --model_name_or_path" in text) == has_classifier
    assert ("hf-plr embed" in text) != has_classifier


def test_what_refinement_did_where_targets_are_soft(make_trainer, tmp_path):
    trainer = make_trainer(refinement="soft")
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    soft = [entry["plr/soft_share"] for entry in trainer.state.log_history if "plr/soft_share" in entry][-1]
    assert 0.0 < soft < 0.3
    assert f"Refinement put {soft:.1%} of the targets on other clusters at the last stage." in text
    assert "Refinement changed" not in text  # k-means: no noise to be taken back in


def test_frames_are_the_members_of_units(make_sound_trainer, tmp_path):
    trainer = make_sound_trainer(num_train_epochs=2)
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "frames, the median one" in text
    assert (tmp_path / "out" / "clusters.png").exists()


@pytest.mark.parametrize(
    ("refinement", "told"),
    [
        ("none", "by pseudo-labels (hf-plr"),
        ("none", "learned the clusters as they were found, without refinement."),
        ("slr", "by pseudo-label refinement (hf-plr"),
        ("slr", "the clusters were refined by those of the epoch before"),
    ],
)
def test_clusters_that_were_not_refined_are_not_called_so(make_trainer, tmp_path, refinement, told):
    trainer = make_trainer(refinement=refinement)
    trainer.create_model_card()
    assert told in (tmp_path / "out" / "README.md").read_text()
