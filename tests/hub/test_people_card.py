"""What people found, and earlier runs, in the model card."""

from __future__ import annotations

import dataclasses
import logging

import pandas as pd
import pytest
from helpers.run_lines import make_history, write_run
from huggingface_hub import ModelCard

from hf_plr.hub.people_card import describe_folder, describe_lineage, describe_people, write_people_into_card
from hf_plr.hub.push import list_published_files
from hf_plr.report.names import write_cluster_names


@pytest.fixture
def out(tmp_path):
    return write_run(tmp_path / "out", make_history(3, 6))


def test_the_card_of_a_run_has_its_lineage_names_and_audit(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    folder = tmp_path / "out"
    trainer.save_labels(str(folder))
    make_history(3, 6).write(folder)
    labels = pd.read_parquet(folder / "pseudo_labels.parquet")["label"]
    largest = int(labels[labels >= 0].value_counts().index[0])
    write_cluster_names(folder, {largest: "`seven`"})
    trainer.create_model_card()
    text = ModelCard.load(folder / "README.md").text
    first, second, own = make_history(3, 6).runs
    assert f"* Continues line-3-january ({first.samples:,} images), february ({second.samples:,} images): a nu" in text
    data = own.data
    assert f"* Since the run before: {data.known:,} images known, {data.new:,} new, {data.removed:,} gone; " in text
    assert own.events.counts()["split"] == own.events.counts()["died"] == 1
    assert ", 1 cluster split, " in text
    assert ", 1 cluster died" in text
    assert "An audit found 5.0% of the labels wrong, 95% interval 1.9% to 10.6% (6 of 120 samples" in text
    assert f"| \\`seven\\` | {largest} | {(labels == largest).sum()} |" in text
    write_cluster_names(folder, {largest: "eight"})
    assert write_people_into_card(folder) == folder / "README.md"
    renamed = ModelCard.load(folder / "README.md").text
    assert renamed == text.replace("\\`seven\\`", "eight")


def test_names_and_history_are_published(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    trainer.save_model(_internal_call=True)
    make_history(2, 6).write(tmp_path / "out")
    write_cluster_names(tmp_path / "out", {1: "crack"})
    for picture in ("clusters.png", "patient_0231.png"):
        (tmp_path / "out" / picture).write_bytes(b"")
    published = {path.name for path in list_published_files(tmp_path / "out")}
    assert {"cluster_names.json", "run_history.json", "config.json", "clusters.png"} <= published
    assert "patient_0231.png" not in published  # a picture of somebody else's


def test_a_first_run_without_names_has_neither(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    trainer.create_model_card()
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    assert "Continues" not in text
    assert "People have named" not in text
    assert "An audit found" not in text
    make_history(1, 6).write(tmp_path / "out")
    assert describe_lineage(tmp_path / "out", "images") == []


def test_long_lineages_and_many_names_are_cut_and_say_so(out):
    history = make_history(8, 6)
    history.write(out)
    (line, _) = describe_lineage(out, "images")
    assert line.startswith("Continues 2 older runs, march (")
    labels = pd.DataFrame({"label": list(range(70)) * 2})
    labels.to_parquet(out / "pseudo_labels.parquet")
    write_cluster_names(out, {label: f"name {label}" for label in range(70)})
    people = describe_people(out)
    assert "People have named 70 of the 70 clusters" in people
    assert people.count("| name ") == 51  # with the heading
    assert "20 more are in `cluster_names.json`." in people


def test_a_damaged_file_is_a_warning_in_a_run_and_an_error_of_the_command(out, caplog):
    (out / "run_history.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        lineage, people = describe_folder(out, "images")
    assert (lineage, people.count("\n")) == ([], 1)
    assert "run_history.json cannot be read" in caplog.text
    with pytest.raises(ValueError, match=r"run_history.json cannot be read"):
        write_people_into_card(out)


def test_audits_of_earlier_runs_alone_are_not_this_runs(out):
    *earlier, own = make_history(3, 6).runs
    history = dataclasses.replace(make_history(3, 6), runs=(*earlier, dataclasses.replace(own, audit=None)))
    history.write(out)
    assert "An audit found" not in describe_people(out)
