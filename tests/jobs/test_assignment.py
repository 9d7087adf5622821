"""`hf-plr assign`: new data by the clusters of a finished run."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, Dataset, Image, concatenate_datasets
from helpers.finished_runs import publish
from helpers.hub_cache import cache_repo
from helpers.tiny import image_trainer, sound_trainer
from PIL import Image as PILImage

import hf_plr
from hf_plr import PLRTrainer
from hf_plr.cli import main
from hf_plr.data.audio_decoding import UnreadableRecording
from hf_plr.data.audio_store import AudioStore
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.jobs import assignment, sample_assigner
from hf_plr.pseudo_labels.data_record import read_record
from hf_plr.refinement.cluster_tree import make_tree
from hf_plr.report.html.previews import image_preview
from hf_plr.report.names import write_cluster_names
from hf_plr.report.tree_file import write_tree

COLUMNS = ["index", "label", "nearest", "similarity", "second", "second_similarity", "novelty", "p_value", "group"]
FALSE_ALARMS = 0.02


@pytest.fixture(scope="module")
def run(tmp_path_factory, some_digits):
    """A run on digits, and its known clusters."""
    trainer = image_trainer(tmp_path_factory.mktemp("run") / "out", some_digits, num_train_epochs=1)
    out, known = publish(trainer)
    return trainer, out, known


@pytest.fixture(scope="module")
def new_digits(all_digits):
    """150 digits, and 20 pictures of another kind behind them."""
    rng = np.random.default_rng(0)
    board = 200 * (np.indices((8, 8)).sum(axis=0) % 2)
    boards = [PILImage.fromarray((board + rng.integers(0, 40, (8, 8))).astype(np.uint8)) for _ in range(20)]
    digits = all_digits.select(range(1_000, 1_150)).select_columns("image")
    return concatenate_datasets([digits, Dataset.from_dict({"image": boards}, features=digits.features)])


@pytest.fixture
def folder(new_digits, tmp_path):
    days = [str(np.datetime64("2026-08-01") + i) for i in range(len(new_digits))]
    (tmp_path / "new").mkdir()
    new_digits.add_column("taken", days).to_parquet(tmp_path / "new" / "train.parquet")
    return str(tmp_path / "new")


def features_of(trainer, dataset):
    store = trainer.open_samples(dataset)
    return trainer.extract_features(store).cpu(), store


def with_levels(columns, out):
    """These columns with those of the levels after the label and the name."""
    place = columns.index("nearest")
    levels = hf_plr.read_levels(out)
    assert levels
    kinds = ("level", "name") if "name" in columns else ("level",)
    return [*columns[:place], *(f"{kind}_{n}" for kind in kinds for n in levels), *columns[place:]]


def test_folders_without_a_tree_have_no_levels_and_the_tree_of_another_run_is_refused(run, new_digits, tmp_path):
    _, out, _ = run
    folder = shutil.copytree(out, tmp_path / "out")
    write_tree(folder, make_tree(np.array([900, 901, 902]), np.array([3, 2, 1]), np.ones((3, 3)) - np.eye(3)))
    assert hf_plr.assign(folder, new_digits).table.column_names == COLUMNS  # of an older release: no levels
    tree = hf_plr.read_tree(folder)
    write_tree(folder, tree, {2: tree.cut(2)})
    with pytest.raises(ValueError, match=r"tree\.json and known_clusters\.safetensors are not of one run"):
        hf_plr.assign(folder, new_digits)
    (folder / "tree.json").unlink()
    assert hf_plr.assign(folder, new_digits).table.column_names == COLUMNS


def test_samples_get_the_clusters_that_their_features_have(run, new_digits):
    trainer, out, known = run
    assigned = hf_plr.assign(out, new_digits, false_alarms=FALSE_ALARMS)
    features, _ = features_of(trainer, new_digits)
    expected = known.assign(features)
    frame = assigned.table.to_pandas()
    levels = hf_plr.read_levels(out)
    assert frame.columns.tolist() == with_levels(COLUMNS, out)
    for n, level in levels.items():
        np.testing.assert_array_equal(frame[f"level_{n}"], level.apply(frame["label"]))
        assert frame[f"level_{n}"].nunique() <= n + 1
    assert frame["index"].tolist() == list(range(170))
    # Sums over a batch differ in the last bits, and of two prototypes that are equally near either may be the nearest.
    assert (frame["nearest"] == expected.label).mean() > 0.97
    assert (frame["second"] == expected.second_label).mean() > 0.97
    np.testing.assert_allclose(frame["similarity"], expected.similarity, atol=1e-5)
    np.testing.assert_allclose(frame["p_value"], expected.p_value, atol=0.01)
    is_new = frame["p_value"] <= FALSE_ALARMS
    assert (frame["label"] == np.where(is_new, -1, frame["nearest"])).all()
    assert assigned.n_new == is_new.sum()
    assert is_new[150:].mean() > 0.8  # the other kind
    assert is_new[:150].mean() < 0.2
    assert (frame["group"][~is_new] == -1).all()
    assert frame["group"].max() == 0  # one pattern, of that kind
    assert (np.flatnonzero(frame["group"] == 0) >= 150).mean() > 0.8


def test_blocks_and_batches_change_nothing(run, new_digits, monkeypatch):
    _, out, _ = run
    whole = hf_plr.assign(out, new_digits, false_alarms=FALSE_ALARMS).table.to_pandas()
    monkeypatch.setattr(sample_assigner, "BLOCK_ROWS", 40)
    parts = hf_plr.assign(out, new_digits, false_alarms=FALSE_ALARMS, batch_size=32).table.to_pandas()
    assert (whole["label"] == parts["label"]).mean() > 0.97
    assert (whole["group"] == parts["group"]).mean() > 0.97
    np.testing.assert_allclose(whole["novelty"], parts["novelty"], atol=1e-2, rtol=1e-3)


def test_the_command_writes_a_table_a_page_and_raises_an_alarm(run, folder, tmp_path, capsys):
    _, out, _ = run
    table = tmp_path / "assigned.parquet"
    command = ["assign", "--model", out, "--dataset", folder, "--output", str(table), "--false_alarms", "0.02"]
    assert main([*command, "--time_column", "taken", "--fail_on_new", "5"]) == 3
    output = capsys.readouterr()
    n_new = int(re.search(r"(\d+) are new", output.out)[1])
    assert f"alarm: {n_new} new images, and --fail_on_new 5" in output.err
    assert "2.00% of them would be taken for new: about 3" in output.out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "assigned.html",
        "assigned.json",
        "assigned.parquet",
        "new",
    ]
    frame = pd.read_parquet(table)
    assert (frame["label"] == -1).sum() == n_new
    assert read_record(pq.read_schema(table)).rows == 170
    report = json.loads((tmp_path / "assigned.json").read_bytes())
    assert report["format"] == "hf-plr-assigned-1"
    assert report["new"]["count"] == n_new
    assert sum(report["drift"]["totals"]) == 170
    assert sum(report["drift"]["new"]["counts"]) == n_new
    assert sum(cluster["count"] for cluster in report["clusters"]) == 170 - n_new
    assert main([*command, "--fail_on_new", "1000"]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err
    table.unlink()
    assert main(command) == 2  # the page is still there
    assert "assigned.html exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--fail_on_new", "1000"]) == 0
    assert json.loads((tmp_path / "assigned.json").read_bytes())["drift"] is None


def test_a_csv_has_what_the_parquet_has(run, new_digits, tmp_path):
    assigned = hf_plr.assign(run[1], new_digits)
    assigned.write(tmp_path / "assigned.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["assigned.csv", "assigned.html", "assigned.json"]
    expected = assigned.table.to_pandas()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "assigned.csv"), expected, check_dtype=False)


def test_names_of_clusters_are_in_table_page_and_lines(run, new_digits, tmp_path, capsys):
    trainer, first, known = run
    out = str(tmp_path / "named")
    trainer.save_model(out)
    shutil.copy(f"{first}/tree.json", out)
    known.save(f"{out}/known_clusters.safetensors")
    label = int(known.labels[np.argmax(known.sizes)])
    write_cluster_names(out, {label: "seven", 999: "gone"})
    assigned = hf_plr.assign(out, new_digits)
    frame = assigned.table.to_pandas()
    assert (frame["name"].eq("seven") == frame["label"].eq(label)).all()
    assert frame["name"].isna().sum() == (frame["label"] != label).sum()
    assert assigned.report["names"] == {str(label): "seven", "999": "gone"}
    (n, level), *_ = hf_plr.read_levels(out).items()
    of_cluster = int(level.apply([label])[0])
    named = level.names({label: "seven"})[of_cluster]
    assert named.startswith("seven and ")  # and others without a name
    assert (frame[f"name_{n}"].eq(named) == frame[f"level_{n}"].eq(of_cluster)).all()
    write_cluster_names(out, {}, {n: {of_cluster: "odd"}})
    frame = hf_plr.assign(out, new_digits).table.to_pandas()
    assert "name" not in frame
    assert (frame[f"name_{n}"].eq("odd") == frame[f"level_{n}"].eq(of_cluster)).all()


def test_the_page_shows_the_samples_that_it_names(run, new_digits):
    trainer, out, _ = run
    report = hf_plr.assign(out, new_digits, false_alarms=FALSE_ALARMS).report
    _, store = features_of(trainer, new_digits)
    shown = [key for cluster in report["clusters"] for key in cluster["members"]]
    shown += [key for pattern in report["patterns"] for key in pattern["members"]] + report["lone"]["members"]
    assert set(report["media"]) == set(report["samples"]) == set(shown)
    for key, preview in report["media"].items():
        assert report["samples"][key][0] == int(key)
        assert preview == image_preview(store[int(key)]["pixel_values"].numpy())
    assert len(report["patterns"][0]["members"]) == 8


@pytest.mark.parametrize("skip", [False, True])
def test_unreadable_images_are_named_or_left_out(run, new_digits, skip):
    _, out, _ = run
    stored = new_digits.cast_column("image", Image(decode=False))["image"][:]
    stored[3] = {"bytes": b"no image", "path": None}
    damaged = Dataset.from_dict({"image": stored}).cast_column("image", Image())
    if not skip:
        with pytest.raises(ValueError, match="image 3"):
            hf_plr.assign(out, damaged)
        return
    assigned = hf_plr.assign(out, damaged, skip_unreadable=True)
    assert assigned.table["index"].to_pylist() == [row for row in range(170) if row != 3]
    assert assigned.report["run"]["unreadable"] == 1
    whole = hf_plr.assign(out, new_digits).table.to_pandas().drop(index=3)
    assert whole["label"].tolist() == assigned.table["label"].to_pylist()


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    """A run on segments of 0.25 seconds of 83 sounds."""
    sounds = make_synthetic_recordings(n_per_class=11).select(range(83))
    folder = tmp_path_factory.mktemp("sounds") / "out"
    trainer = sound_trainer(folder, sounds, PLRTrainer, num_train_epochs=1, segment_seconds=0.25)
    return trainer, *publish(trainer)


def test_segments_of_recordings_are_samples_of_their_own(sound_run, tmp_path):
    trainer, out, known = sound_run
    sounds = make_synthetic_recordings(n_per_class=4, seed=5)
    assigned = hf_plr.assign(out, sounds, batch_size=16)
    frame = assigned.table.to_pandas()
    assert frame.columns.tolist() == with_levels([*COLUMNS[:1], "start", "end", *COLUMNS[1:]], out)
    features, store = features_of(trainer, sounds)
    expected = known.assign(features).label
    by_segment = {
        (int(row), float(start)): int(label)
        for row, start, label in zip(store.rows, store.segments[:, 0], expected, strict=True)
    }
    found = list(zip(frame["index"], frame["start"], strict=True))
    assert found == sorted(by_segment)
    assert np.mean([by_segment[key] == label for key, label in zip(found, frame["nearest"], strict=True)]) > 0.98
    assert assigned.plural == "segments"
    report = assigned.report
    key = next(iter(report["media"]))
    assert set(report["media"][key]) == {"image", "audio"}
    assert report["samples"][key][5] == frame["start"][int(key)]
    assigned.write(tmp_path / "assigned.parquet")
    assert base64.b64decode(report["media"][key]["audio"])[:4] == b"fLaC"


def test_a_damaged_recording_is_left_out_as_a_whole(sound_run, monkeypatch):
    _, out, _ = sound_run
    sounds = make_synthetic_recordings(n_per_class=2, seed=6).cast_column("audio", Audio(decode=False))
    stored = sounds["audio"][:]
    noise = io.BytesIO()
    soundfile.write(noise, np.random.default_rng(0).normal(0, 0.1, 16_000), 8_000, format="FLAC")
    damaged = bytearray(noise.getvalue())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)  # its first segments can be read
    stored[5] = {"bytes": bytes(damaged), "path": None}
    data = Dataset.from_dict({"audio": stored}).cast_column("audio", Audio())
    monkeypatch.setattr(sample_assigner, "BLOCK_ROWS", 4)
    with pytest.raises(ValueError, match="recording 5"):
        hf_plr.assign(out, data)
    assigned = hf_plr.assign(out, data, skip_unreadable=True, batch_size=1)
    rows = assigned.table["index"].to_numpy()
    assert 5 not in rows
    assert set(rows.tolist()) == set(range(16)) - {5}


def test_a_fault_that_does_not_come_again_gives_no_segment_twice(sound_run, monkeypatch):
    _, out, _ = sound_run
    data = make_synthetic_recordings(n_per_class=2, seed=6)
    expected = hf_plr.assign(out, data).table
    damaged = expected.to_pandas().query("index == 5")["start"].sort_values().iloc[-2]  # shorter ones come before it
    decode, examine, found_faults = AudioStore._decode_row, AudioStore.examine, {}

    def fail_once(store, row, value, positions):
        if row == 5 and damaged in store.segments[positions, 0] and not store.is_checked:
            raise UnreadableRecording("a fault of the disk")
        return decode(store, row, value, positions)

    def note(store):
        found = examine(store)
        found_faults.update(found)
        return found

    monkeypatch.setattr(AudioStore, "_decode_row", fail_once)
    monkeypatch.setattr(AudioStore, "examine", note)
    monkeypatch.setattr(sample_assigner, "BLOCK_ROWS", 4)
    found = hf_plr.assign(out, data, batch_size=1).table
    assert found_faults == {5: None}
    assert found.select(["index", "start"]).equals(expected.select(["index", "start"]))


SCRIPT = """
import os, signal, sys
import pyarrow.parquet as pq
from hf_plr.cli import main

write = pq.ParquetWriter.write_table

def die(writer, table, **options):
    write(writer, table, **options)
    os.kill(os.getpid(), signal.SIGKILL)

pq.ParquetWriter.write_table = die
main(sys.argv[1:])
"""


def test_a_killed_command_leaves_nothing_that_seems_whole(run, folder, tmp_path):
    _, out, _ = run
    command = ["assign", "--model", out, "--dataset", folder, "--output", str(tmp_path / "assigned.parquet")]
    killed = subprocess.run([sys.executable, "-c", SCRIPT, *command], capture_output=True, text=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    unfinished = {path for path in tmp_path.iterdir() if path.is_file()}
    assert {path.suffix for path in unfinished} == {".tmp"}
    assert main(command) == 0
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path not in unfinished)
    assert names == ["assigned.html", "assigned.json", "assigned.parquet"]
    assert len(pd.read_parquet(tmp_path / "assigned.parquet")) == 170


def test_a_full_disk_leaves_the_old_files(run, new_digits, tmp_path, monkeypatch):
    _, out, _ = run
    assigned = hf_plr.assign(out, new_digits)
    path = tmp_path / "assigned.parquet"
    assigned.write(path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_plr.utils.tables.pq.ParquetWriter.write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        assigned.write(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_run_of_few_samples_assigns_by_default(run, new_digits, monkeypatch):
    _, out, known = run
    assert hf_plr.assign(out, new_digits).report["false_alarms"] == 0.01
    few = dataclasses.replace(known, known_scores=known.known_scores[:10])
    monkeypatch.setattr(assignment, "read_known_clusters", lambda _: (few, {}, {}))
    assigned = hf_plr.assign(out, new_digits)
    assert assigned.report["false_alarms"] == pytest.approx(1 / 11, abs=1e-5)
    frame = assigned.table.to_pandas()
    np.testing.assert_array_equal(frame["label"] == -1, frame["p_value"] == np.float32(1 / 11))
    assert assigned.n_new > 0


def test_what_does_not_fit_is_refused_in_one_line(run, folder, tmp_path, capsys):
    trainer, out, _ = run
    bare = str(tmp_path / "bare")
    trainer.save_model(bare)
    path = str(tmp_path / "assigned.parquet")

    def error_of(*arguments, model=out, output=path):
        assert main(["assign", "--model", model, "--dataset", folder, "--output", output, *arguments]) == 2
        return capsys.readouterr().err.strip()

    assert "holds no known_clusters.safetensors: give the output folder" in error_of(model=bare)
    assert "false_alarms=1.5 must be above 0 and below 1" in error_of("--false_alarms", "1.5")
    assert "is finer than the 203 known samples can tell: use at least 0.00491" in error_of("--false_alarms", "0.001")
    assert "time_column='day' is not in the data set; the columns are:" in error_of("--time_column", "day")
    assert "--fail_on_new 0 must be at least 1" in error_of("--fail_on_new", "0")
    assert "written as .csv or .parquet" in error_of(output=str(tmp_path / "assigned.xlsx"))
    (tmp_path / "bare" / "known_clusters.safetensors").write_bytes(b"no tensors")
    error = error_of(model=bare)
    assert "known_clusters.safetensors" in error
    assert "\n" not in error
    assert not os.path.exists(path)


def test_data_without_rows_are_refused(run, new_digits, tmp_path, capsys):
    _, out, _ = run
    empty = new_digits.select([])
    with pytest.raises(ValueError, match="the data set is empty: give one with at least one row"):
        hf_plr.assign(out, empty)
    empty.to_parquet(tmp_path / "empty.parquet")
    new_digits.filter(lambda _: False).save_to_disk(tmp_path / "saved")
    for command in ("assign", "embed"):
        asked = [command, "--model", out, "--output", str(tmp_path / "o.parquet"), "--dataset"]
        assert main([*asked, str(tmp_path / "empty.parquet")]) == 2
        assert "empty.parquet': the data set has no rows in its split 'train'" in capsys.readouterr().err
        assert main([*asked, str(tmp_path / "saved")]) == 2
        assert "the data set is empty: give one with at least one row" in capsys.readouterr().err


def test_without_the_hub_the_clusters_in_the_cache_are_read_and_others_are_not_said_to_be_missing(
    run, tmp_path, monkeypatch, caplog
):
    _, out, known = run
    snapshot = cache_repo(tmp_path, monkeypatch, "alice/run", missing=["cluster_names.json"])
    with pytest.raises(ValueError, match=r"cannot be reached, and known_clusters\.safetensors of alice/run is not in"):
        assignment.read_known_clusters("alice/run")
    shutil.copy(os.path.join(out, "known_clusters.safetensors"), snapshot)
    found, names, levels = assignment.read_known_clusters("alice/run")
    np.testing.assert_array_equal(found.labels, known.labels)
    assert (names, levels) == ({}, {})
    assert "tree.json of alice/run is not in the cache" in caplog.text
    assert "cluster_names.json" not in caplog.text


def test_a_model_that_gives_no_numbers_is_named(run, new_digits, monkeypatch):
    _, out, known = run
    made = assignment.make_extractor

    def damaged(*arguments, **options):
        extractor = made(*arguments, **options)
        for parameter in extractor.model.parameters():
            parameter.data.fill_(float("nan"))
        return extractor

    monkeypatch.setattr(assignment, "make_extractor", damaged)
    with pytest.raises(ValueError, match="the feature of row 0 is NaN or infinite"):
        hf_plr.assign(out, new_digits)
    assert known.sizes.sum() == 203
