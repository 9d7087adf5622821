"""Finding the columns of images, recordings and labels."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value
from helpers import tiny

from hf_plr import PLRTrainer
from hf_plr.data.columns import (
    AmbiguousLabelColumns,
    check_dataset,
    find_audio_column,
    find_image_column,
    find_label_column,
    find_modality_column,
)
from hf_plr.data.true_labels import encode_labels


def empty(**features):
    return Dataset.from_dict({name: [] for name in features}, features=Features(features))


def test_the_only_image_column_is_found():
    assert find_image_column(empty(picture=Image(), number=Value("int64"))) == "picture"


def test_no_or_two_image_columns_are_named():
    with pytest.raises(ValueError, match=r"no column holds images .* text \(string\)"):
        find_image_column(empty(text=Value("string")))
    with pytest.raises(ValueError, match=r"2 columns hold images \(left, right\): choose one with image_column"):
        find_image_column(empty(left=Image(), right=Image()))
    assert find_image_column(empty(left=Image(), right=Image()), "right") == "right"
    with pytest.raises(ValueError, match="image_column='top' is not in the data set; the columns are: left, right"):
        find_image_column(empty(left=Image(), right=Image()), "top")


def test_the_only_column_of_recordings_is_found():
    assert find_audio_column(empty(speech=Audio(), picture=Image())) == "speech"
    assert find_audio_column(empty(left=Audio(), right=Audio(decode=False)), "right") == "right"
    with pytest.raises(
        ValueError, match=r"no column holds recordings \(of type datasets.Audio\); .* picture \(Image\)"
    ):
        find_audio_column(empty(picture=Image()))
    with pytest.raises(ValueError, match=r"2 columns hold recordings \(left, right\): choose one with audio_column"):
        find_audio_column(empty(left=Audio(), right=Audio()))
    with pytest.raises(ValueError, match="audio_column='top' is not in the data set; the columns are: left"):
        find_audio_column(empty(left=Audio()), "top")


def test_images_or_recordings():
    both = empty(picture=Image(), speech=Audio(), wave=Value("binary"))
    assert find_modality_column(empty(picture=Image(), number=Value("int64")), None, None) == ("image", "picture")
    assert find_modality_column(empty(speech=Audio(), number=Value("int64")), None, None) == ("audio", "speech")
    assert find_modality_column(both, "picture", None) == ("image", "picture")
    assert find_modality_column(both, None, "wave") == ("audio", "wave")
    with pytest.raises(
        ValueError, match=r"both images \(picture\) and recordings \(speech\) .* with image_column or audio"
    ):
        find_modality_column(both, None, None)
    with pytest.raises(ValueError, match="image_column='picture' and audio_column='speech' are both given: choose one"):
        find_modality_column(both, "picture", "speech")
    with pytest.raises(ValueError, match="audio_column='top' is not in the data set"):
        find_modality_column(both, None, "top")
    with pytest.raises(
        ValueError, match=r"no column holds images or recordings .* text \(string\)\. .* or audio_column"
    ):
        find_modality_column(empty(text=Value("string")), None, None)
    with pytest.raises(ValueError, match=r"2 columns hold recordings .* choose one with audio_column"):
        find_modality_column(empty(left=Audio(), right=Audio()), None, None)


def test_labels_are_found_where_it_is_clear_which():
    names = ClassLabel(names=["a", "b"])
    assert find_label_column(empty(image=Image(), species=names)) == "species"
    assert find_label_column(empty(image=Image(), label=Value("int64"))) == "label"
    assert find_label_column(empty(image=Image(), width=Value("int64"))) is None
    assert find_label_column(empty(image=Image(), a=names, b=names), "b") == "b"
    with pytest.raises(AmbiguousLabelColumns, match=r"2 columns could hold the labels \(a, b\)"):
        find_label_column(empty(image=Image(), a=names, b=names))


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1.0, None, 0.0, float("nan")], "float64", [1, -1, 0, -1]),  # gaps have made floats of whole numbers
        ([True, False, None], "bool", [1, 0, -1]),
        ([10**12, -1], "int64", [10**12, -1]),
        (["b", None, "a"], "large_string", [1, -1, 0]),
    ],
)
def test_columns_that_hold_classes(values, dtype, expected):
    dataset = Dataset.from_dict({"label": values}, features=Features({"label": Value(dtype)}))
    assert find_label_column(dataset) == "label"
    assert encode_labels(dataset, "label").tolist() == expected


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0.5, 1.0], Value("float32")), ([float("inf")], Value("float64")), ([[1], [2]], List(Value("int64")))],
)
def test_columns_that_hold_none_are_passed_over_and_refused_by_name(values, kind):
    dataset = Dataset.from_dict({"label": values}, features=Features({"label": kind}))
    assert find_label_column(dataset) is None
    with pytest.raises(ValueError, match="classes are whole numbers or text, one a sample"):
        encode_labels(dataset, "label")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1] + [None] * 38, "label_column='label' holds as many classes as labelled samples, 2: scores by it say"),
        ([float(i) for i in range(40)], "holds as many classes as labelled samples, 40: scores by it say nothing"),
        ([0.5 + i for i in range(40)], "Column 'label' holds fractions, which are no classes: nothing is scored by it"),
        ([3] * 40, "label_column='label' holds one class only: no features are scored by it"),
        ([None] * 40, "Column 'label' holds nothing: nothing is scored by it"),
        ([float("nan")] * 40, "label_column='label' is empty in all 40 rows: no features are scored by it"),
        ([0, 0, 1] + [None] * 37, "has a single class with 2 labelled samples or more: scores by it say little"),
        ([0, 0, 1, 1] + [None] * 36, None),
    ],
)
def test_labels_by_which_scores_say_nothing_are_warned_of_once(tmp_path, some_digits, caplog, values, message):
    images = some_digits.select(range(40)).select_columns(["image"])
    labelled = images.add_column("label", values)
    trainer = tiny.image_trainer(tmp_path, labelled, num_clusters=4)
    trainer.open_samples(images)
    warned = [record.message for record in caplog.records if "label" in record.message]
    assert len(warned) == (message is not None)
    assert message is None or message in warned[0]


def test_nested_columns_are_named_with_a_dot(tmp_path, some_digits):
    rows = [{"sample": {"image": row["image"], "label": row["label"]}} for row in some_digits.select(range(40))]
    features = Features({"sample": {"image": Image(), "label": some_digits.features["label"]}})
    nested = Dataset.from_list(rows, features=features)
    trainer = tiny.image_trainer(tmp_path, nested, num_clusters=4)
    assert trainer.modality.column == "sample.image"
    assert trainer.label_column == "sample.label"
    assert len(trainer.open_samples(nested)) == 40


def make_waveforms(n, **others):
    rng = np.random.default_rng(0)
    sounds = [{"array": rng.normal(0, 0.1, 4000 + 100 * i).tolist(), "sampling_rate": 8000} for i in range(n)]
    return Dataset.from_dict({"audio": [sound | others for sound in sounds], "label": [i % 2 for i in range(n)]})


def test_waveforms_with_their_rates_are_recordings(tmp_path):
    dataset = make_waveforms(30)
    assert check_dataset(dataset) is dataset
    assert find_modality_column(dataset, None, None) == ("audio", "audio")
    trainer = tiny.sound_trainer(tmp_path / "out", dataset, PLRTrainer, num_clusters=4, num_train_epochs=1)
    trainer.train()
    assert len(trainer.open_samples(dataset)) == 30


@pytest.mark.parametrize("has_chosen", [False, True])
def test_files_and_waveforms_stay_whole_beside_nested_columns(has_chosen):
    rows = make_waveforms(6, path="0.wav")
    rows = rows.add_column("file", [{"bytes": b"%d" % i, "path": None} for i in range(6)])
    rows = rows.add_column("deep", [{"sound": value, "note": {"id": i}} for i, value in enumerate(rows["audio"][:])])
    chosen = rows.select([4, 1, 3]).with_format("numpy") if has_chosen else rows
    flat = check_dataset(chosen)
    assert set(flat.column_names) == {"label", "deep.note.id", "deep.sound", "audio", "file"}
    order = [4, 1, 3] if has_chosen else list(range(6))
    assert flat["deep.note.id"][:] == order
    assert flat["label"][:] == [i % 2 for i in order]
    assert [value["bytes"] for value in flat["file"]] == [b"%d" % i for i in order]
    for name in ("audio", "deep.sound"):
        assert [len(value["array"]) for value in flat[name]] == [4000 + 100 * i for i in order]
    assert check_dataset(chosen)._fingerprint == flat._fingerprint
    assert check_dataset(rows.select([]))["deep.note.id"][:] == []


@pytest.mark.parametrize("rows", [None, [3, 1], []])
@pytest.mark.parametrize("feature", [Audio(8000), Audio(decode=False), Image("L"), Image(decode=False)])
def test_recordings_and_images_stay_whole_beside_nested_columns(feature, rows):
    notes = [{"who": "a", "mic": {"id": i}} for i in range(4)]
    columns = {"text": list("abcd"), "note": notes, "media": ["0", "1", "2", "3"], "label": [0, 1, 0, 1]}
    dataset = Dataset.from_dict(columns).cast_column("media", feature)
    chosen = dataset if rows is None else dataset.select(rows)
    flat = check_dataset(chosen)
    assert flat.column_names == ["text", "note.who", "note.mic.id", "media", "label"]
    assert flat.features["media"] == feature
    order = list(range(4)) if rows is None else rows
    assert flat["note.mic.id"][:] == order
    undecoded = flat.cast_column("media", type(feature)(decode=False))
    assert [value["path"] for value in undecoded["media"]] == [str(i) for i in order]
    assert check_dataset(chosen)._fingerprint == flat._fingerprint


def test_recordings_in_nested_columns_are_found():
    features = Features({"take": {"sound": Audio(), "id": Value("int64")}, "clip": Audio(decode=False)})
    nested = Dataset.from_list([{"take": {"sound": None, "id": i}, "clip": None} for i in (4, 5)], features)
    flat = check_dataset(nested)
    assert flat.features == Features({"take.sound": Audio(), "take.id": Value("int64"), "clip": Audio(decode=False)})
    assert find_audio_column(flat, "take.sound") == "take.sound"
    assert flat["take.id"][:] == [4, 5]
