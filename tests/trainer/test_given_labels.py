"""Training on labels that were made beforehand: `--labels`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from helpers.runs import StopAt, assert_same_run, weights
from safetensors.numpy import load_file, save_file

from hf_plr import PLRTrainer
from hf_plr.cli import main
from hf_plr.pseudo_labels.data_record import DataRecord
from hf_plr.pseudo_labels.given_labels import GivenLabels
from hf_plr.refinement import PseudoLabelRefiner, cooccurrence


def write_shards(folder, bounds=(0, 70, 203), record=None, **columns):
    """Write labels as jobs do, with columns (203,)."""
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame({"index": np.arange(bounds[-1]), **columns})
    for number, start in enumerate(bounds[:-1]):
        part = pa.Table.from_pandas(frame[start : bounds[number + 1]], preserve_index=False)
        part = part.replace_schema_metadata(None if record is None else record.metadata())
        pq.write_table(part, folder / f"shard-{number:05d}-of-{len(bounds) - 1:05d}.parquet")
    return str(folder)


@pytest.fixture
def labels():
    """Labels with gaps in their numbers, and noise."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(203) < 0.1, -1, 3 * rng.integers(0, 9, 203) + 5)


def test_a_run_trains_on_the_labels_as_they_are(make_trainer, labels, tmp_path, monkeypatch):
    confidence = np.linspace(0.2, 1.0, 203).astype(np.float32)
    folder = write_shards(tmp_path / "labels", label=labels, confidence=confidence)
    trainer = make_trainer(labels=folder, num_train_epochs=3)
    passes = []
    extract = trainer.extract_shard
    monkeypatch.setattr(trainer, "extract_shard", lambda: passes.append(1) or extract())
    before = weights(trainer)
    trainer.train()
    assert len(passes) == 1  # prototypes need the features once; there is no stage after it
    found = trainer.pseudo_labels
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.confidence, confidence)
    ids = np.unique(labels[labels >= 0])
    assert found.n_clusters == len(ids) == 9
    np.testing.assert_array_equal(found.targets[labels >= 0], np.searchsorted(ids, labels[labels >= 0]))
    assert (found.targets[labels < 0] == -1).all()
    assert any((before[name] != value).any() for name, value in weights(trainer).items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.describe_clusters() == f"9 as given by {folder}"
    trainer.save_labels(tmp_path / "out")
    written = pd.read_parquet(tmp_path / "out" / "pseudo_labels.parquet")
    np.testing.assert_array_equal(written["label"], labels)


def test_labels_of_a_run_train_another_one_alike(make_trainer, some_digits, tmp_path):
    """The labels of a run, given to a second one, are its labels: pseudo_labels.parquet is such a file."""
    first = make_trainer(num_train_epochs=1)
    first.train()
    path = tmp_path / "given.parquet"
    first.save_pseudo_labels(path)
    second = make_trainer(labels=str(path), num_train_epochs=1)
    second.train()
    np.testing.assert_array_equal(second.pseudo_labels.labels, first.pseudo_labels.labels)
    np.testing.assert_array_equal(second.pseudo_labels.targets, first.pseudo_labels.targets)


def test_files_without_an_index_count_the_rows_one_after_another(make_trainer, labels, tmp_path, caplog):
    folder = tmp_path / "labels"
    folder.mkdir()
    np.save(folder / "0.npy", labels[:100].astype(np.int32))
    np.save(folder / "1.npy", labels[100:].astype(np.int32))
    trainer = make_trainer(labels=str(folder))
    np.testing.assert_array_equal(trainer.labelings[0].stage.given.labels, labels)
    assert "has no label" not in caplog.text
    np.save(folder / "1.npy", labels[101:].astype(np.int32))
    with pytest.raises(ValueError, match="has 202 labels, but the data set has 203 rows"):
        make_trainer(labels=str(folder))


def test_rows_without_a_label_are_noise_and_doubtful_ones_have_no_loss(make_trainer, labels, tmp_path, caplog):
    confidence = np.linspace(0, 1, 203)
    path = tmp_path / "labels.parquet"
    frame = pd.DataFrame({"index": np.arange(203), "label": labels, "confidence": confidence})
    frame[40:].sample(frac=1, random_state=0).to_parquet(path)
    trainer = make_trainer(labels=str(path), num_train_epochs=1, min_confidence=0.5)
    assert caplog.text.count(f"{path} has no label of 40 of the 203 samples, which have no loss.") == 1
    trainer.train()
    found = trainer.pseudo_labels
    np.testing.assert_array_equal(found.labels, np.where(np.arange(203) < 40, -1, labels))
    has_loss = (np.arange(203) >= 40) & (confidence.astype(np.float32) >= 0.5) & (labels >= 0)
    np.testing.assert_array_equal(found.targets >= 0, has_loss)
    assert found.n_clusters == len(np.unique(labels[has_loss]))


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_csv_trains_as_the_same_parquet_does(make_trainer, labels, tmp_path, ending):
    """Confidences are read of both kinds."""
    confidence = np.where(np.arange(203) % 2, 0.9, 0.1).astype(np.float32)
    frame = pd.DataFrame({"index": np.arange(203), "label": labels, "confidence": confidence})
    path = tmp_path / f"labels{ending}"
    (frame.to_csv if ending == ".csv" else frame.to_parquet)(path, index=False)
    stage = make_trainer(labels=str(path), min_confidence=0.5).labelings[0].stage
    np.testing.assert_array_equal(stage.given.confidence, confidence)
    np.testing.assert_array_equal(stage.targets >= 0, (confidence >= 0.5) & (labels >= 0))
    for bad, message in (("sure", "column 'confidence' has to hold numbers"), (90, "confidences must be in")):
        changed = frame.assign(confidence=bad)
        (changed.to_csv if ending == ".csv" else changed.to_parquet)(path, index=False)
        with pytest.raises(ValueError, match=message):
            make_trainer(labels=str(path))


def test_labels_that_files_cannot_hold_are_refused(make_trainer, labels, tmp_path):
    path = write_shards(tmp_path / "labels", label=labels + 5_000_000_000)
    with pytest.raises(ValueError, match=r"has a label 50000000\d\d: number clusters from 0 to at most 2,147,483,647"):
        make_trainer(labels=path).train()


def test_soft_targets_of_the_refinement_are_trained_on(make_trainer, labels, tmp_path):
    rng = np.random.default_rng(1)
    current = np.where(rng.random(203) < 0.3, rng.integers(-1, 9, 203), labels)
    folders = [write_shards(tmp_path / name, label=each) for name, each in (("previous", labels), ("current", current))]
    out = str(tmp_path / "refined")
    command = ["refine", "--previous", folders[0], "--current", folders[1], "--preset", "soft", "--output", out]
    assert main(command) == 0
    last = tmp_path / "refined" / "shard-00001-of-00002.parquet"
    pd.read_parquet(last)[:-3].to_parquet(last)  # three samples without a label
    trainer = make_trainer(labels=out, num_train_epochs=1)
    trainer.train()
    cells = PseudoLabelRefiner.from_preset("soft").refine_cells(cooccurrence(labels, current))
    expected = cells.soft.rows(cells.table.locate(labels, current)).toarray()
    found = trainer.pseudo_labels.soft_targets.rows(np.arange(203))
    np.testing.assert_allclose(found[:200], expected[:200], atol=1e-6)
    assert (found[200:] == 0).all()
    own = trainer.pseudo_labels.targets[:200]
    is_labelled = current[:200] >= 0
    columns = np.searchsorted(np.unique(current[current >= 0]), current[:200][is_labelled])
    np.testing.assert_array_equal(own[is_labelled], columns)

    of_csv = tmp_path / "of_csv"
    shutil.copytree(out, of_csv)
    for file in of_csv.glob("*.parquet"):
        pd.read_parquet(file).to_csv(file.with_suffix(".csv"), index=False)
        file.unlink()
    given = [make_trainer(labels=each).labelings[0].stage.given for each in (out, str(of_csv))]
    assert given[0].digest() == given[1].digest()

    doubtful = make_trainer(labels=out, min_confidence=0.9)
    stage = doubtful.labelings[0].stage
    is_doubtful = stage.given.confidence < 0.9
    assert 0 < is_doubtful.sum() < 203
    assert (stage.soft_targets.rows(np.flatnonzero(is_doubtful)) == 0).all()
    assert (stage.targets[is_doubtful] == -1).all()


def test_damaged_soft_targets_are_named(make_trainer, labels, tmp_path):
    folder = write_shards(tmp_path / "labels", label=labels)
    out = tmp_path / "refined"
    command = ["refine", "--previous", folder, "--current", folder, "--preset", "soft", "--output", str(out)]
    assert main(command) == 0
    path = out / "cell_targets.safetensors"
    whole = load_file(path)
    for changes, message in (
        ({"target": whole["target"][:3]}, "it has 3 cells, but a label is of cell"),
        ({"target": whole["target"] + 100}, "'target' holds values from"),
        ({"codes": whole["codes"][:-1]}, "'codes' holds"),
        ({"shares_of_case": -whole["shares_of_case"]}, "'shares_of_case' holds values"),
    ):
        save_file({**whole, **changes}, path, {"format": "hf-plr-cell-targets-1"})
        with pytest.raises(ValueError, match=message) as raised:
            make_trainer(labels=str(out))
        assert str(path) in str(raised.value)
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        make_trainer(labels=str(out))


def test_a_resumed_run_equals_the_uninterrupted_one(make_trainer, labels, tmp_path):
    folder = write_shards(tmp_path / "labels", label=labels)
    moved = write_shards(tmp_path / "moved", bounds=(0, 203), label=labels)
    other = write_shards(tmp_path / "other", label=np.roll(labels, 1))
    whole = make_trainer(labels=folder, output_dir=str(tmp_path / "whole"))
    whole.train()
    make_trainer({"callbacks": [StopAt(9)]}, labels=folder).train()
    with pytest.raises(ValueError, match="was written with other settings: clusterer's parameters"):
        make_trainer(labels=other).train(resume_from_checkpoint=True)
    resumed = make_trainer(labels=moved)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_segments_are_matched_by_their_starts(make_sound_trainer, some_sounds, tmp_path):
    settings = {"segment_seconds": 0.4, "num_train_epochs": 1}
    first = make_sound_trainer(PLRTrainer, **settings)
    first.train()
    path = tmp_path / "given.parquet"
    first.save_pseudo_labels(path)
    assert len(pd.read_parquet(path)) > 83
    second = make_sound_trainer(PLRTrainer, labels=str(path), **settings)
    np.testing.assert_array_equal(second.labelings[0].stage.given.labels, first.pseudo_labels.labels)
    with pytest.raises(ValueError, match="has labels of segments, but this run trains on whole samples"):
        make_sound_trainer(PLRTrainer, labels=str(path))


def test_the_card_and_the_summary_say_where_the_labels_came_from(make_trainer, labels, tmp_path):
    folder = write_shards(tmp_path / "labels", label=labels)
    trainer = make_trainer(labels=folder, num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset="digits")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "learned clusters that were given, the same in all epochs, from" in " ".join(card.split())
    assert "were clustered before every epoch" not in card
    assert "given by" in trainer.summary().last_labels
    assert ("labels", folder) in [(name, str(value)) for name, value in trainer.summary().changed_settings()]
    trainer.write_report()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert folder in json.dumps(report)


@pytest.mark.parametrize(
    ("columns", "record", "message"),
    [
        ({"label": np.zeros(204, int)}, None, "has a label of row 203, but the data set has 203 rows"),
        ({"label": np.zeros(203, int), "index": 7}, None, "has more than one label of row 7"),
        ({"label": np.full(203, -1)}, None, "no sample has a label"),
        ({"label": np.zeros(203, int), "confidence": 1.5}, None, "confidences must be in"),
        ({"label": np.full(203, 0.5)}, None, "but labels are integers"),
        ({"label": np.zeros(203, int), "start": 0.0, "end": 1.0}, None, "has labels of segments"),
        ({"label": np.zeros(203, int)}, DataRecord(203, "other"), "are of different data sets"),
        ({"label": np.zeros(203, int)}, DataRecord(900, "x"), "are of different data sets: 203 rows"),
        ({"label": np.zeros(203, int), "index": "a"}, None, "not rows of the data"),
    ],
)
def test_labels_of_other_data_are_refused_by_name(make_trainer, tmp_path, columns, record, message):
    folder = write_shards(tmp_path / "labels", (0, 70, len(columns["label"])), record, **columns)
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        make_trainer(labels=folder)
    assert folder in str(raised.value)


@pytest.mark.parametrize("table", ["pseudo_labels.parquet", "cut.parquet", "cut.csv"])
def test_tables_of_a_run_are_refused_on_changed_data(make_trainer, some_digits, tmp_path, table):
    first = make_trainer(num_train_epochs=1)
    first.train()
    first.save_labels(tmp_path / "out", np.arange(203))
    path = str(tmp_path / "out" / table)
    if table.startswith("cut"):
        assert main(["cut", str(tmp_path / "out"), "--clusters", "3", "--output", path]) == 0
    make_trainer(labels=path)
    for rows, of_csv in (
        ([202, *range(202)], "has labels of other data: 203 of 203 compared samples have other contents"),
        ([*range(203), 5], None),
    ):
        changed = {"train_dataset": some_digits.select(rows)}
        if table == "cut.csv" and of_csv is None:  # it has no number of rows, and the labels fit
            make_trainer(changed, labels=path)
            continue
        message = of_csv if table == "cut.csv" else "are of different data sets: "
        with pytest.raises(ValueError, match=message) as raised:
            make_trainer(changed, labels=path)
        assert path in str(raised.value)
        assert "continue that run with continue_from" in str(raised.value)


def test_labels_of_a_part_of_the_rows_are_checked_by_content(make_trainer, some_digits, tmp_path):
    """They have no record of the whole data, and are labels of it."""
    rows = np.arange(3, 203, 2)
    first = make_trainer({"train_dataset": some_digits.select(rows)}, num_train_epochs=1)
    first.train()
    path = tmp_path / "part.parquet"
    first.save_pseudo_labels(path, rows)
    given = make_trainer(labels=str(path)).labelings[0].stage.given
    np.testing.assert_array_equal(given.labels[rows], first.pseudo_labels.labels)
    table = pd.read_parquet(path)
    table["index"] -= 1
    table.to_parquet(path)
    with pytest.raises(ValueError, match="100 of 100 compared samples have other contents, the first in row 2,"):
        make_trainer(labels=str(path))
    table["digest"] = None
    table.to_csv(tmp_path / "without.csv", index=False)
    make_trainer(labels=str(tmp_path / "without.csv"))


def test_labels_without_digests_are_checked_by_the_names_of_files(make_trainer, some_digits, tmp_path):
    """As those of version 0.1, and tables that people write."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, row in enumerate(some_digits.select(range(60))):
        row["image"].save(folder / f"d{number:03d}.png")
    data = load_dataset("imagefolder", data_dir=str(folder), split="train")
    table = pd.DataFrame({"file": [f"elsewhere/d{number:03d}.jpg" for number in range(60)], "label": np.arange(60) % 4})
    path = tmp_path / "labels.csv"
    table.to_csv(path, index=False)
    make_trainer({"train_dataset": data}, labels=str(path))
    (folder / "d000.png").unlink()
    some_digits[60]["image"].save(folder / "d060.png")
    shifted = load_dataset("imagefolder", data_dir=str(folder), split="train")
    with pytest.raises(
        ValueError, match=r"60 of 60 samples have another file, the first in row 0, 'd001.png' and not 'els"
    ):
        make_trainer({"train_dataset": shifted}, labels=str(path))
    table.loc[::2, "file"] = None
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match="30 of 30 samples have another file"):
        make_trainer({"train_dataset": shifted}, labels=str(path))
    table.drop(columns="file").to_csv(path, index=False)
    make_trainer({"train_dataset": shifted}, labels=str(path))


@pytest.mark.parametrize("header", ["cluster,fold", "3,4"])
def test_no_option_is_named_that_training_does_not_have(tmp_path, header):
    (tmp_path / "labels.csv").write_text(f"{header}\n0,1\n1,1\n")
    with pytest.raises(ValueError, match="'label'") as raised:
        GivenLabels.read(str(tmp_path / "labels.csv"), np.arange(2), None, 2)
    assert "--" not in str(raised.value)


def test_what_has_no_effect_is_refused(make_trainer, labels, tmp_path):
    folder = write_shards(tmp_path / "labels", label=labels)
    for ignored in (
        {"num_labelings": 3},
        {"num_clusters": 9},
        {"clusterer_kwargs": {"eps": 0.4}},
        {"cluster_space": "white"},
        {"refinement": "slr"},
        {"refine_start_epoch": 2},
        {"feature_source": "epoch"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(ignored))}=.* has no effect on given labels: leave"):
            make_trainer(labels=folder, **ignored)
    with pytest.raises(ValueError, match="pass no clusterer or refiner"):
        make_trainer({"refiner": PseudoLabelRefiner()}, labels=folder)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        GivenLabels.read("nowhere", np.arange(3), None, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no labels"):
        make_trainer(labels=str(tmp_path / "empty"))
    (tmp_path / "labels" / "shard-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 2 shards: 0"):
        make_trainer(labels=folder)
    np.save(tmp_path / "short.npy", labels[:50])
    with pytest.raises(ValueError, match="has 50 labels, but the data set has 203 rows"):
        make_trainer(labels=str(tmp_path / "short.npy"))
