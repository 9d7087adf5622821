"""Labelled samples to fine-tune a classifier on: classes, few labels, splits, what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_plr.data.loading import load_train_and_test
from hf_plr.data.unreadable import UnreadableSample
from hf_plr.recipe_tools.finetune_arguments import FinetuneArguments
from hf_plr.recipe_tools.finetuning import choose_length
from hf_plr.recipe_tools.labelled_data import LabelledData, draw_per_class, hold_out, load_labelled, number_classes


def write(train, test, folder):
    folder.mkdir()
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")
    return folder


@pytest.mark.parametrize("labels_per_class", [None, 2])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("classes", [[0, 1], ["a", "b"]])
def test_a_split_without_any_class_is_named(tmp_path, some_digits, labels_per_class, split, classes):
    images = some_digits.select(range(20)).select_columns(["image"])
    feature = Value("int64" if classes == [0, 1] else "string")
    none = images.add_column("kind", [None] * 20, feature=feature)
    some = images.add_column("kind", classes * 10, feature=feature)
    folder = write(*((none, some) if split == "train" else (some, none)), tmp_path / "data")
    args = FinetuneArguments("model", str(folder), label_column="kind", labels_per_class=labels_per_class)
    with pytest.raises(ValueError, match=f"no sample of the {split} split has a class in column 'kind'"):
        load_labelled(args, 0, "image")


def labelled(tmp_path, digits, train, test, feature=None):
    """Arguments for a data set with these classes in a column "kind"."""
    splits = [
        digits.select(range(len(classes))).select_columns(["image"]).add_column("kind", classes, feature=feature)
        for classes in (train, test)
    ]
    return FinetuneArguments("model", str(write(*splits, tmp_path / "data")), label_column="kind")


@pytest.mark.parametrize(("classes", "only"), [([-1, 1], "1"), ([3, 3], "3"), (["a", "a"], "a")])
def test_one_class_alone_is_refused(tmp_path, some_digits, classes, only):
    args = labelled(tmp_path, some_digits, classes * 5, classes * 5)
    with pytest.raises(ValueError, match=rf"column 'kind' holds one class only, '{only}' .-1 means no label"):
        load_labelled(args, 0, "image")


def test_rows_without_a_class_are_counted(tmp_path, some_digits, caplog):
    data = load_labelled(labelled(tmp_path, some_digits, [-1, -2, 1, None], [-2, 1, -1, -1, -1]), 0, "image")
    assert data.names == ["-2", "1"]
    assert data.train_labels.tolist() == [0, 1]
    assert data.test_labels.tolist() == [0, 1]
    assert "2 of 4 rows to train on have no class in column 'kind' (missing, or -1)" in caplog.text
    assert "3 of 5 rows to score on have no class in column 'kind' (missing, or -1)" in caplog.text


def test_the_length_of_recordings_is_that_of_the_longest_up_to_ten_seconds(caplog):
    assert choose_length([16_000, 24_000], 8_000, None) == 24_000
    assert choose_length([16_000, 24_000], 8_000, 0.5) == 4_000
    assert not caplog.text
    assert choose_length([16_000, 200_000, 90_000], 8_000, None) == 80_000
    assert "2 of 3 recordings are cut to their first 10 seconds: --max_seconds takes more of them" in caplog.text


def test_the_length_of_recordings_is_at_most_what_the_model_sees(caplog):
    assert choose_length([16_000, 24_000], 8_000, None, 24_000) == 24_000
    assert choose_length([16_000, 24_000], 8_000, 2.0, 20_000) == 16_000
    assert not caplog.text
    assert choose_length([16_000, 24_000, 28_000], 8_000, None, 20_001) == 20_001
    assert "2 of 3 recordings are longer than the 2.5 s that the model sees, and only their beginnings" in caplog.text
    caplog.clear()
    assert choose_length([16_000, 200_000, 90_000], 8_000, None, 90_000) == 80_000
    assert "cut to their first 10 seconds: --max_seconds takes more of them, up to 11.25 s" in caplog.text


def test_a_fraction_of_each_class_is_held_out_by_the_seed():
    labels = np.array([0] * 20 + [1] * 10 + [2, 2, 3] + [-1] * 5)
    kept, held = hold_out(labels, 0.2, seed=0)
    assert np.bincount(labels[held]).tolist() == [4, 2, 1]  # the only sample of class 3 is to train on
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert np.array_equal(held, hold_out(labels, 0.2, seed=0)[1])
    assert not np.array_equal(held, hold_out(labels, 0.2, seed=1)[1])
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"must lie between 0 and 1"):
            hold_out(labels, fraction, seed=0)
    with pytest.raises(ValueError, match="no class has two samples"):
        hold_out(np.array([0, 1, -1, -1]), 0.2, seed=0)


def test_without_a_test_split_samples_are_held_out(tmp_path, some_digits, caplog):
    for row, sample in enumerate(some_digits.select(range(60))):
        folder = tmp_path / "data" / f"digit_{sample['label']}"
        folder.mkdir(parents=True, exist_ok=True)
        sample["image"].save(folder / f"{row}.png")
    data = load_labelled(FinetuneArguments("model", str(tmp_path / "data"), test_fraction=0.3), 0, "image")
    assert f"There is no test split: {len(data.test)} samples, a fraction of 0.3 of each class" in caplog.text
    assert len(data.train) + len(data.test) == 60
    assert not set(data.train_rows) & set(data.test_rows)
    names = [f"digit_{number}" for number in range(10)]
    assert data.names == names
    whole = load_train_and_test(str(tmp_path / "data"), None, "train", "image")[0]
    for rows, labels in ((data.train_rows, data.train_labels), (data.test_rows, data.test_labels)):
        assert [names[label] for label in labels] == [names[label] for label in whole.select(rows)["label"]]


def test_few_labels_are_drawn_by_class_and_seed():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, -1, 2, 2])
    rows = draw_per_class(labels, 2, seed=0)
    assert np.bincount(labels[rows]).tolist() == [2, 2, 2]
    assert (np.diff(rows) > 0).all()
    assert any((draw_per_class(labels, 2, seed=seed) != rows).any() for seed in range(1, 9))
    assert draw_per_class(labels, None, seed=0).tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    with pytest.raises(ValueError, match="labels_per_class=3, but class 2 has 2 samples"):
        draw_per_class(labels, 3, seed=0)


@pytest.mark.parametrize(
    ("feature", "train", "test", "names"),
    [
        (Value("string"), ["b", "a", None], ["a", "c", "c", "b"], ["a", "b"]),
        (Value("int64"), [1, 0, -1], [0, 2, 2, 1], ["0", "1"]),
        (ClassLabel(names=["unused", "a", "c", "b"]), [3, 1, -1], [1, 2, 2, 3], ["a", "b"]),
    ],
)
def test_classes_are_those_of_training_samples(caplog, feature, train, test, names):
    features = Features({"kind": feature})
    splits = (Dataset.from_dict({"kind": values}, features=features) for values in (train, test))
    train_labels, test_labels, found = number_classes(*splits, "kind")
    assert found == names
    assert train_labels.tolist() == [1, 0, -1]
    assert test_labels.tolist() == [0, -1, -1, 1]
    absent = "2" if names == ["0", "1"] else "c"
    assert f"2 of 4 rows to score on are left out: no sample to train on has their classes in 'kind' ({absent})" in (
        caplog.text
    )


def test_numbers_of_classes_may_have_gaps_and_be_large():
    train, test = (Dataset.from_dict({"label": values}) for values in ([10**12, 7, -1, 7], [7, 8, 10**12]))
    train_labels, test_labels, names = number_classes(train, test, "label")
    assert train_labels.tolist() == [1, 0, -1, 0]
    assert test_labels.tolist() == [0, -1, 1]
    assert names == ["7", "1000000000000"]


def test_samples_that_cannot_be_read_are_named_or_left_out(caplog):
    def read(value, row):
        if "bad" in value:
            raise UnreadableSample(f"image {row} ({value}) cannot be read")

    def split(*values):
        return Dataset.from_dict({"image": values})

    train, test = split("a", "bad b", "c"), split("d")
    data = LabelledData(train, test, np.array([0, 1, 1]), np.array([0]), np.array([2, 5, 7]), np.array([4]), ["x", "y"])
    with pytest.raises(UnreadableSample, match=r"image 5 \(bad b\) cannot be read. --skip_unreadable"):
        data.keep_readable("image", lambda samples: read, skip_unreadable=False)
    kept = data.keep_readable("image", lambda samples: read, skip_unreadable=True)
    assert kept.train["image"] == ["a", "c"]
    assert kept.train_rows.tolist() == [2, 7]
    assert kept.train_labels.tolist() == [0, 1]
    assert "1 of 3 samples are left out: image 5 (bad b) cannot be read" in caplog.text
    data.test_rows, data.test = np.array([4]), split("bad")
    with pytest.raises(ValueError, match="none of 1 samples can be read"):
        data.keep_readable("image", lambda samples: read, skip_unreadable=True)
