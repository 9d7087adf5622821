"""Streams are read once, as far as they are wanted, and go on behind what a killed process has read."""

from __future__ import annotations

import itertools
import logging
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Image, IterableDataset, Value, load_dataset
from helpers import tiny
from helpers.launching import call, load_script
from helpers.media_folders import draw, record
from helpers.paths import VIT_PLR
from helpers.runs import assert_same_weights

from hf_plr.data import streaming
from hf_plr.data.loading import load_splits
from hf_plr.data.streaming import load_stream, materialise


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    monkeypatch.setattr(streaming, "SHARD_ROWS", 20)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tables(tmp_path, some_digits):
    folder = tmp_path / "tables"
    folder.mkdir()
    for number in range(3):
        some_digits.select(range(50 * number, 50 * number + 50)).to_parquet(folder / f"train-{number}.parquet")
    return folder


def open_tables(tables):
    files = sorted(map(str, tables.glob("*.parquet")))
    return load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)


def assert_same_samples(taken, expected):
    assert taken.features == expected.features
    assert taken["label"][:] == expected["label"][:]
    assert all(
        np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in zip(taken["image"][:], expected["image"][:], strict=True)
    )


class Counted:
    """A generator of digits that counts what is read of it."""

    def __init__(self, rows, stop_at=None):
        self.rows, self.stop_at, self.n_read = rows, stop_at, 0

    def stream(self):
        return IterableDataset.from_generator(self.generate, features=self.rows.features)

    def generate(self):
        for number, row in enumerate(self.rows):
            if number == self.stop_at:
                raise KeyboardInterrupt
            self.n_read += 1
            yield row


def test_tables_are_read_as_far_as_wanted(tables, some_digits):
    (tables / "train-2.parquet").write_bytes(b"not read")
    assert_same_samples(materialise(open_tables(tables), 97), some_digits.select(range(97)))


@pytest.mark.parametrize("n_shards", range(5))
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_finished_shards_are_kept(tables, n_shards, is_shuffled):
    def stream():
        return open_tables(tables).shuffle(seed=3, buffer_size=30) if is_shuffled else open_tables(tables)

    whole = materialise(stream(), 90, tables.parent / "whole")
    part = tables.parent / "part"
    materialise(stream(), 90, part)
    (part / "whole.json").unlink()
    for number in range(n_shards, 5):  # as a process leaves them that is killed
        for path in part.glob(f"shard-{number:06d}.*"):
            path.unlink()
    (part / f"shard-{n_shards:06d}.0123.tmp").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in part.glob("shard-*.arrow")}
    assert len(kept) == n_shards
    assert_same_samples(materialise(stream(), 90, part), whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_generator_that_is_interrupted_goes_on(some_digits):
    first = Counted(some_digits, stop_at=70)
    folder = datasets.config.HF_DATASETS_CACHE / "mine"
    with pytest.raises(KeyboardInterrupt):
        materialise(first.stream(), 110, folder)
    assert len(list(folder.glob("shard-*.arrow"))) == 3
    assert not list(folder.glob("*.tmp"))
    second = Counted(some_digits)
    assert_same_samples(materialise(second.stream(), 110, folder), some_digits.select(range(110)))
    third = Counted(some_digits)
    assert_same_samples(materialise(third.stream(), 110, folder), some_digits.select(range(110)))
    assert (second.n_read > 0, third.n_read) == (True, 0)


@pytest.mark.parametrize("has_tables", [False, True])
def test_a_folder_goes_on_for_more_samples_and_gives_fewer(tables, some_digits, has_tables):
    counted = Counted(some_digits.select(range(150)))
    folder = tables.parent / "mine"

    def take(n):
        return materialise(open_tables(tables) if has_tables else counted.stream(), n, folder)

    for n in (10, 50, 25, 50):
        assert_same_samples(take(n), some_digits.select(range(n)))
        assert len(take(n)) == n
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.arrow")}
    for n in (None, 150, 200, None):
        assert_same_samples(take(n), some_digits.select(range(150)))
    n_read = counted.n_read
    assert_same_samples(take(70), some_digits.select(range(70)))
    assert_same_samples(take(None), some_digits.select(range(150)))
    assert counted.n_read == n_read
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_next_start_finds_the_stream_and_no_other(tables):
    first = materialise(open_tables(tables), 60)
    half_read = open_tables(tables)
    assert len(list(itertools.islice(half_read, 25))) == 25
    assert materialise(half_read, 60)._fingerprint == first._fingerprint
    place = datasets.config.HF_DATASETS_CACHE / streaming.CACHE_FOLDER
    assert len(list(place.iterdir())) == 1
    others = [
        (open_tables(tables), 61),
        (open_tables(tables), None),
        (open_tables(tables).shuffle(seed=1), 60),
        (open_tables(tables).filter(lambda row: row["label"] > 2), 60),
        (open_tables(tables).filter(lambda row: row["label"] > 3), 60),
    ]
    assert len({materialise(stream, n)._fingerprint for stream, n in others} | {first._fingerprint}) == 6
    Dataset.from_parquet(str(tables / "train-1.parquet")).to_parquet(tables / "train-0.parquet")
    changed = materialise(open_tables(tables), 60)
    assert changed._fingerprint != first._fingerprint
    assert changed["label"][:50] == Dataset.from_parquet(str(tables / "train-1.parquet"))["label"][:]


def read_folder(folder):
    for path in sorted(Path(folder).rglob("*.png")):
        yield {"image": str(path)}


@pytest.mark.parametrize("as_given", [str, Path, lambda folder: {"places": [str(folder)]}])
def test_a_folder_that_has_changed_is_read_again(tmp_path, as_given):
    folder = draw(tmp_path / "photos", *(f"a/{i}.png" for i in range(3)))

    def read():
        given = as_given(folder)
        arguments = {"folder": folder, "places": given} if isinstance(given, dict) else {"folder": given}
        features = Features({"image": Image()})
        generate = (lambda folder, places: read_folder(folder)) if isinstance(given, dict) else read_folder
        return materialise(IterableDataset.from_generator(generate, features=features, gen_kwargs=arguments))

    first = read()
    assert read()._fingerprint == first._fingerprint
    draw(folder, "a/b/3.png")
    os.symlink(folder, folder / "a" / "loop")
    grown = read()
    assert (len(first), len(grown)) == (3, 4)
    before = (folder / "a" / "b" / "3.png").stat()
    os.utime(folder / "a" / "b" / "3.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert len({first._fingerprint, grown._fingerprint, read()._fingerprint}) == 3


def test_a_folder_that_holds_the_cache_or_too_much_is_known_again(tmp_path, monkeypatch):
    draw(tmp_path, "0.png")

    def read():
        features = Features({"image": Image()})
        return materialise(
            IterableDataset.from_generator(read_folder, features=features, gen_kwargs={"folder": str(tmp_path)})
        )

    assert read()._fingerprint == read()._fingerprint
    draw(tmp_path, "1.png")
    monkeypatch.setattr(streaming, "LARGEST_FOLDER", 1)
    large = read()
    assert streaming._stamp_folder("/") == streaming._stamp_folder(str(tmp_path)) == ""
    draw(tmp_path, "2.png")
    assert read()._fingerprint == large._fingerprint


def test_a_line_says_when_samples_were_read(tables, some_digits, caplog):
    caplog.set_level(logging.INFO, logger=streaming.__name__)
    for stream, level in ((lambda: open_tables(tables), "INFO"), (Counted(some_digits).stream, "WARNING")):
        caplog.clear()
        materialise(stream(), 30, tables.parent / level)
        assert "as read on" not in caplog.text
        materialise(stream(), 25, tables.parent / level)
        (record,) = caplog.records
        assert record.levelname == level
        assert re.fullmatch(r"stream: 25 samples as read on 20\d\d-\d\d-\d\d .*to read them again", record.getMessage())


def test_a_generator_without_features(some_digits):
    def rows():
        for i in range(45):
            yield {"image": some_digits[i]["image"], "name": f"n{i}"}

    taken = materialise(IterableDataset.from_generator(rows))
    assert taken.features == Features({"image": Image(), "name": Value("string")})
    assert taken["name"][:] == [f"n{i}" for i in range(45)]
    assert np.array_equal(np.asarray(taken[44]["image"]), np.asarray(some_digits[44]["image"]))


def test_what_is_refused(tmp_path, monkeypatch):
    def nothing():
        yield from ()

    def mixed():
        for i in range(30):
            yield {"a": i if i < 25 else "text"}

    def numbers():
        for i in range(3):
            yield {"a": str(i)}

    features = Features({"a": Value("string")})
    with pytest.raises(ValueError, match="the stream is empty"):
        materialise(IterableDataset.from_generator(nothing, features=features))
    with pytest.raises(ValueError, match="max_samples=0 must be at least 1"):
        materialise(IterableDataset.from_generator(nothing, features=features), 0)
    with pytest.raises(ValueError, match="differs from those before"):
        materialise(IterableDataset.from_generator(mixed))
    drawn = (letter for letter in "xyz")  # cannot be pickled, and so not told from another
    unknown = IterableDataset.from_generator(numbers, features=features).map(lambda row: {"a": row["a"] + next(drawn)})
    with pytest.raises(ValueError, match=r"name a folder for its samples by hf_plr\.data\.streaming\.materialise"):
        materialise(unknown)
    assert materialise(unknown, folder=tmp_path / "mine")["a"][:] == ["0x", "1y", "2z"]
    with pytest.raises(ValueError, match="dataset_name='nobody/nothing' is neither a folder or file here"):
        load_stream("nobody/nothing", None, "train", 3)
    monkeypatch.setattr(streaming, "LEAST_FREE", 2**60)
    with pytest.raises(OSError, match="the disk is full"):
        materialise(IterableDataset.from_generator(mixed))


@pytest.mark.parametrize("name", ["site A", "[site A]", "w*at?"])
@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_of_paths_are_streamed_as_they_are_loaded(tmp_path, name, is_folder, suffix):
    draw(tmp_path / "pics", *(f"{i}.png" for i in range(4)))
    folder = tmp_path / name
    folder.mkdir()
    separator = ";" if suffix == "csv" else "\t"
    for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        lines = [f"photo{separator}place", *(f"../pics/{i}.png{separator}Zoé" for i in numbers)]
        (folder / f"{split}.{suffix}").write_text("\n".join(lines), encoding="utf-8-sig")
    path = str(folder if is_folder else folder / f"train.{suffix}")
    loaded, streamed = load_splits(path)["train"], load_stream(path, None, "train", 2)
    assert len(streamed) == 2
    assert isinstance(streamed.features["photo"], Image)
    assert streamed[1]["photo"].size == (4, 4)
    assert streamed["place"][:] == loaded["place"][:2] == ["Zoé", "Zoé"]


def test_folders_of_files_and_saved_ones_are_streamed_as_they_are_loaded(tmp_path, some_digits):
    folder = draw(tmp_path / "[site A] photos", *(f"train/{i}.png" for i in range(3)), "test/3.png")
    record(folder / "train", *(f"{i}.wav" for i in range(5)))
    images = load_stream(str(folder), None, "train", 2, "image")
    assert [images.column_names, len(images), images[1]["image"].size] == [["image"], 2, (4, 4)]
    assert len(load_stream(str(folder), None, "test", 9, "image")) == 1
    assert len(load_stream(str(folder), None, "train", None)) == 5
    with pytest.raises(ValueError, match="max_samples=0 must be at least 1"):
        load_stream(str(folder), None, "train", 0)
    with pytest.raises(ValueError, match="has no split 'query'; its splits are: train, test"):
        load_stream(str(folder), None, "query", 2, "image")
    some_digits.select(range(30)).save_to_disk(tmp_path / "saved")
    assert_same_samples(load_stream(str(tmp_path / "saved"), None, "train", 20), some_digits.select(range(20)))
    some_digits.select(range(30)).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="cannot be streamed: Bad split: test"):
        load_stream(str(tmp_path / "train.parquet"), None, "test", 20)


def test_a_trainer_takes_a_stream(tables, some_digits, tmp_path):
    stream = open_tables(tables).take(120)
    trainers = [
        tiny.image_trainer(tmp_path / name, data, num_train_epochs=1)
        for name, data in (("stream", stream), ("rows", some_digits.select(range(120))))
    ]
    for trainer in trainers:
        trainer.train()
    streamed, stored = (trainer.model.state_dict() for trainer in trainers)
    assert_same_weights(streamed, stored)


def test_streams_score_too(some_digits, tmp_path):
    part = some_digits.select(range(40))
    settings = {"num_train_epochs": 1, "eval_strategy": "epoch", "label_column": "label"}
    for streams in (part.to_iterable_dataset(), {"first": part.to_iterable_dataset(), "second": part}):
        trainer = tiny.image_trainer(tmp_path / "out", part, {"eval_dataset": streams}, **settings)
        trainer.train()
        assert any("knn_accuracy" in name for entry in trainer.state.log_history for name in entry)


def test_the_recipe_streams_the_first_samples(tables, tmp_path):
    recipe = load_script(VIT_PLR)
    arguments = ["--dataset_name", str(tables), "--streaming", "true", "--max_samples", "60"]
    parsed = recipe.parse([*arguments, "--output_dir", str(tmp_path / "out"), "--use_cpu"])
    trainer, rows = recipe.build_trainer(*parsed)
    assert rows.tolist() == list(range(60))
    assert len(trainer.train_dataset) == 60
    assert trainer.eval_dataset is None
    refused = call("--streaming", "true", "--output_dir", tmp_path / "other")
    assert "error: streaming=True needs a dataset_name" in refused.stderr
