"""Trainers on segments of long recordings: every table and the report say which segment is meant."""

from __future__ import annotations

import io
import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import soundfile
from datasets import Audio, Dataset
from helpers.runs import StopAt, assert_same_weights, weights

from hf_plr import PLRTrainer, UnitTrainer, read_levels
from hf_plr.cli import main
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.evaluation.evaluators import score_against_gallery
from hf_plr.hub.label_dataset import make_labels_card
from hf_plr.pseudo_labels.assembly import count_sought
from hf_plr.report.html.report_file import read_report
from hf_plr.units.space import number_recordings

SEGMENTS = {"segment_seconds": 0.5, "segment_overlap": 0.1}
PARTS = [1, 5, 3, 1, 4, 2, 1, 6]  # sounds of a class in each of its recordings


@pytest.fixture(scope="module")
def meetings():
    """24 recordings of three classes at 8 kHz, of one to six sounds each: 0.3 to 5 seconds."""
    sounds = make_synthetic_recordings(sum(PARTS)).cast_column("audio", Audio(decode=False))
    decoded = [soundfile.read(io.BytesIO(each["bytes"]), dtype="float32")[0] for each in sounds["audio"]]
    files, labels = [], []
    for label in range(3):
        of_class = [sound for sound, other in zip(decoded, sounds["label"], strict=True) if other == label]
        for part in np.split(np.arange(sum(PARTS)), np.cumsum(PARTS)[:-1]):
            file = io.BytesIO()
            soundfile.write(file, np.concatenate([of_class[i] for i in part]), 8_000, format="WAV")
            files.append({"bytes": file.getvalue(), "path": f"meeting {len(files)}.wav"})
            labels.append(label)
    features = {"audio": Audio(decode=False), "label": sounds.features["label"]}
    plain = Dataset.from_dict({"audio": files, "label": labels})
    return plain.cast_column("audio", features["audio"]).cast_column("label", features["label"])


@pytest.fixture
def make(make_sound_trainer, meetings):
    def make_trainer(kind=PLRTrainer, trainer=None, **arguments):
        settings = {"num_train_epochs": 1, "num_clusters": 6, **SEGMENTS, **arguments}
        return make_sound_trainer(kind, {"train_dataset": meetings, **(trainer or {})}, **settings)

    return make_trainer


@pytest.fixture
def folder(meetings, tmp_path):
    (tmp_path / "data").mkdir()
    meetings.to_parquet(tmp_path / "data" / "train.parquet")
    return str(tmp_path / "data")


def names_of(frame):
    return list(zip(frame["index"], frame["start"], frame["end"], strict=True))


def assert_in_order(frame, store, rows=None):
    """Index, file, start and end are those of the store, ordered by them."""
    rows = store.rows if rows is None else rows[store.rows]
    expected = sorted(zip(rows.tolist(), *store.segments.T.tolist(), strict=True))
    assert names_of(frame) == expected
    assert frame["file"].tolist() == [f"meeting {store.rows[rows == row][0]}.wav" for row in frame["index"]]


def test_labels_name_the_segment(make, tmp_path):
    trainer = make(num_clusters=None, refinement="none")
    store = trainer.train_dataset
    assert len(store) > 3 * 24
    assert count_sought(trainer.labelings, len(store)) == round(
        1.5 * np.sqrt(len(store))
    )  # of segments, not of recordings
    trainer.train()
    rows = np.arange(24) * 10  # drawn from other data
    trainer.save_labels(tmp_path, rows)
    frame = pd.read_parquet(tmp_path / "pseudo_labels.parquet")
    assert frame.columns.tolist() == [
        *("index", "file", "start", "end", "label", "previous_label", "confidence", "digest"),
        *(f"level_{n}" for n in read_levels(tmp_path)),
    ]
    assert_in_order(frame, store, rows)
    by_name = dict(zip(names_of(frame), frame["label"], strict=True))
    for position in range(len(store)):
        name = (int(rows[store.rows[position]]), *store.segments[position].tolist())
        assert by_name[name] == trainer.pseudo_labels.labels[position]


def test_the_plan_counts_segments_and_recordings(make, capsys):
    trainer = make()
    trainer.train()
    n = len(trainer.train_dataset)
    assert f"samples   {n:,} segments of 24 recordings" in capsys.readouterr().out
    assert "segments in none" in trainer.summary().last_labels


def test_without_segments_much_longer_recordings_are_warned_of(make, caplog):
    with caplog.at_level(logging.WARNING):
        make()
        assert "times the median" not in caplog.text
        make(segment_seconds=None, segment_overlap=0.0)
        assert "times the median" not in caplog.text  # not ten times
    caplog.clear()
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(80_000), 8_000, format="WAV")
    sounds = make_synthetic_recordings(2).cast_column("audio", Audio(decode=False)).remove_columns("label")
    longer = Dataset.from_dict({"audio": [*sounds["audio"], {"bytes": silence.getvalue(), "path": None}]})
    longer = longer.cast_column("audio", Audio(decode=False))
    with caplog.at_level(logging.WARNING):
        make(trainer={"train_dataset": longer}, segment_seconds=None, segment_overlap=0.0)
    assert "1 of 17 recordings is longer than 10 times the median" in caplog.text
    assert "the longest 10 s: --segment_seconds S cuts them into samples" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segment_seconds": 0.0}, "segment_seconds=0.0 must be above 0"),
        ({"segment_overlap": -0.1}, "segment_overlap=-0.1 must be at least 0"),
        ({"segment_overlap": 0.5}, "segment_overlap=0.5 must be less than segment_seconds=0.5"),
        ({"segment_seconds": None}, "segment_overlap=0.1 has no effect without segment_seconds"),
        ({"segment_seconds": 0.02, "segment_overlap": 0.0}, "segment_seconds=0.02 is too short: the model needs"),
        ({"max_seconds": 0.5}, "segment_seconds=0.5 has no effect: max_seconds=0.5"),
    ],
)
def test_what_does_not_fit_is_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
def test_resume_is_bit_exact_and_needs_the_same_segments(make, tmp_path, kind):
    more = {"num_train_epochs": 2, "frame_scaling": "recording"} if kind is UnitTrainer else {"num_train_epochs": 2}
    whole = make(kind, output_dir=str(tmp_path / "whole"), sound_cache_gib=0.0, **more)
    whole.train()
    make(kind, {"callbacks": [StopAt(3)]}, **more).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-3")
    with pytest.raises(ValueError, match=r"data was .* and is .*; segment_overlap was 0\.1 and is 0\.2"):
        make(kind, segment_overlap=0.2, **more).train(resume_from_checkpoint=checkpoint)
    resumed = make(kind, **more)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_weights(weights(whole), weights(resumed))


# ---- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_of_recordings(make, meetings):
    trainer = make(trainer={"eval_dataset": meetings.select(range(0, 24, 3))})
    trainer.train()
    scores = trainer.score("after")
    assert trainer.evaluator.scored_on_test
    assert trainer.evaluator.scored_by_recording
    assert scores["knn_accuracy"] * 8 == pytest.approx(round(scores["knn_accuracy"] * 8))  # eighths: of recordings
    evaluated = trainer.evaluate()
    assert evaluated["eval_knn_accuracy"] == pytest.approx(scores["knn_accuracy"])
    assert "by recording" in trainer.summary().scored_on


def test_metrics_of_whole_recordings_have_no_groups(make, monkeypatch, meetings):
    trainer = make(trainer={"eval_dataset": meetings}, segment_seconds=None, segment_overlap=0.0)
    assert trainer.evaluate()["eval_knn_accuracy"] <= 1.0
    assert trainer.compute_metrics.func is score_against_gallery


# ---- report, marks and audit -------------------------------------------------------------------------------------


def test_the_report_plays_the_segment_and_the_audit_reads_its_marks(make, tmp_path, capsys):
    trainer = make()
    store = trainer.train_dataset
    trainer.train()
    out = tmp_path / "out"
    trainer.save_labels(out)
    trainer.write_report(np.arange(24))
    data = read_report(out / "report.json")
    assert (data["run"]["noun"], data["run"]["plural"]) == ("segment", "segments")
    for key, (row, label, _, _, file, start, end) in data["samples"].items():
        position = int(key)
        assert (row, file) == (store.rows[position], f"meeting {row}.wav")
        assert [start, end] == store.segments[position].tolist()
        assert label == trainer.pseudo_labels.labels[position]
    drawn = [data["samples"][key] for key in data["sheets"]["random"]]
    verdicts = ["wrong", *["right"] * (len(drawn) - 1)]
    lines = [
        f"{row},{label},random,{verdict},{start},{end}"
        for verdict, (row, label, _, _, _, start, end) in zip(verdicts, drawn, strict=True)
    ]
    marks = out / "marks.csv"
    marks.write_text("\n".join(["index,label,sheet,mark,start,end", *lines]))
    assert main(["audit", str(out), "--marks", str(marks)]) == 0
    said = capsys.readouterr().out
    assert f"{len(drawn)} samples are marked, 1 of them wrong." in said
    assert f"(1 of {len(drawn)} random samples are wrong)" in said

    long = next(row for row in drawn if (store.rows == row[0]).sum() > 1)
    marks.write_text(f"index,mark,start\n{long[0]},wrong,{long[5]:.3f}\n")  # rounded by hand
    assert main(["audit", str(out), "--marks", str(marks)]) == 0
    n_segments = int((store.rows == long[0]).sum())
    for text, message in (
        (f"index,mark\n{long[0]},wrong\n", f"row {long[0]} has {n_segments} segments in .*: add the column 'start'"),
        (f"index,mark,start\n{long[0]},wrong,0.123\n", f"sample {long[0]} with a segment at 0.123 s is not in"),
        (f"index,mark,start\n{long[0]},wrong,soon\n", "start 'soon' is not a number of seconds"),
    ):
        marks.write_text(text)
        assert main(["audit", str(out), "--marks", str(marks)]) == 2
        assert re.search(message, capsys.readouterr().err)


def test_media_of_segments_are_not_pushed(make, folder, tmp_path, capsys):
    trainer = make()
    trainer.train()
    trainer.save_labels(tmp_path / "out")
    labels = Dataset.from_parquet(str(tmp_path / "out" / "pseudo_labels.parquet"))
    card = str(make_labels_card(labels, "me/labels", tmp_path / "out"))
    assert "start" in card
    assert "second of the recording at which the segment begins" in card
    with pytest.raises(ValueError, match="labels of segments, and each would bring its whole recording along"):
        trainer.push_labels_to_hub("me/labels", with_media=True)
    assert main(["push-labels", str(tmp_path / "out"), "--repo", "me/labels", "--with_media", folder]) == 2
    assert "segments, and each would bring its whole recording along" in capsys.readouterr().err


# ---- commands ----------------------------------------------------------------------------------------------------


def test_features_of_segments_are_those_of_the_run(make, folder, tmp_path):
    trainer = make()
    trainer.save_model()
    store = trainer.train_dataset
    settings = {name: str(value) for name, value in SEGMENTS.items()}
    (tmp_path / "out" / "metrics.json").write_text(json.dumps({"settings": settings}))
    command = ["embed", "--model", trainer.args.output_dir, "--dataset", folder, "--batch_size", "8"]
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "features.parquet")
    assert_in_order(found, store)
    order = np.lexsort((store.segments[:, 0], store.rows))
    np.testing.assert_allclose(np.stack(found["feature"]), trainer.extract_features().numpy()[order], atol=1e-6)
    assert main([*command, "--segment_seconds", "1", "--output", str(tmp_path / "others.parquet")]) == 0
    others = pd.read_parquet(tmp_path / "others.parquet")
    assert len(others) < len(found)
    assert others["start"].max() % 0.9 == pytest.approx(0, abs=1e-9)  # with the overlap of the run


@pytest.mark.parametrize("scaling", ["global", "recording"])
def test_units_of_segments_are_those_of_the_run(make, folder, tmp_path, scaling):
    trainer = make(UnitTrainer, frame_scaling=scaling)
    trainer.train()
    trainer.save_model()
    trainer.save_labels(tmp_path / "out")
    published = pd.read_parquet(tmp_path / "out" / "units.parquet")
    assert published.columns.tolist() == ["index", "file", "start", "end", "units"]
    assert_in_order(published, trainer.train_dataset)
    command = ["units", "--model", trainer.args.output_dir, "--dataset", folder, "--batch_size", "8", "--output"]
    settings = {name: str(value) for name, value in SEGMENTS.items()}
    (tmp_path / "out" / "metrics.json").write_text(json.dumps({"settings": settings}))
    assert main([*command, str(tmp_path / "units.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "units.parquet")
    assert names_of(found) == names_of(published)
    assert all(np.array_equal(one, other) for one, other in zip(found["units"], published["units"], strict=True))
    assert main([*command, str(tmp_path / "others.parquet"), "--segment_seconds", "1"]) == 0
    others = pd.read_parquet(tmp_path / "others.parquet")
    assert len(others) < len(found)
    assert others["start"].max() % 0.9 == pytest.approx(0, abs=1e-9)  # with the overlap of the run


def test_units_are_of_the_seconds_of_the_run(make, folder, tmp_path):
    trainer = make(UnitTrainer)
    trainer.train()
    trainer.save_model()
    trainer.save_labels(tmp_path / "out")
    counts = {}
    for seconds in (None, 0.3):
        settings = {} if seconds is None else {"max_seconds": str(seconds)}
        (tmp_path / "out" / "metrics.json").write_text(json.dumps({"settings": settings}))
        output = str(tmp_path / f"{seconds}.parquet")
        assert main(["units", "--model", trainer.args.output_dir, "--dataset", folder, "--output", output]) == 0
        counts[seconds] = pd.read_parquet(output)["units"].map(len).tolist()
    assert all(short < whole for short, whole in zip(counts[0.3], counts[None], strict=True))
    assert len(set(counts[0.3])) == 1


def test_frames_of_segments_are_standardised_by_their_recording(make):
    trainer = make(UnitTrainer, frame_scaling="recording")
    rows = trainer.train_dataset.rows
    assert trainer._speakers.tolist() == rows.tolist()
    speakers = np.array([1, -1, 0, -1, -1])
    assert number_recordings(np.array([0, 3, 1, 3, 7]), speakers).tolist() == [1, 2, 0, 2, 3]
    assert number_recordings(np.array([4, 4, 9]), None).tolist() == [0, 0, 1]


def test_refined_files_keep_the_segments(make, tmp_path, capsys):
    trainer = make()
    trainer.train()
    trainer.save_labels(tmp_path)
    file = str(tmp_path / "pseudo_labels.parquet")
    for ending in ("parquet", "csv"):
        output = tmp_path / f"refined.{ending}"
        assert main(["refine", "--previous", file, "--current", file, "--output", str(output)]) == 0
        refined = pd.read_parquet(output) if ending == "parquet" else pd.read_csv(output)
        assert names_of(refined) == names_of(pd.read_parquet(file))
    others = pd.read_parquet(file)
    others.loc[3, "end"] += 0.25
    others.to_parquet(tmp_path / "others.parquet")
    command = ["refine", "--previous", str(tmp_path / "others.parquet"), "--current", file]
    assert main([*command, "--output", str(tmp_path / "none.npy")]) == 2
    assert "label other segments: in row 3 they start at" in capsys.readouterr().err
