"""Folders, archives and tables of images and recordings: what is taken, and what is said of the rest."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_plr.data import audio_containers, media_kinds
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_store import ImageStore, collate_images
from hf_plr.data.loading import choose_split, load_splits, load_train_and_test
from hf_plr.data.sample_store import encode_labels
from hf_plr.models.vision import small_vit_processor

HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


def draw(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (4, 4), (len(str(name)), 0, 0)).save(path, format="PNG")
    return folder


def record(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        soundfile.write(folder / name, np.zeros(800), 8000, format="WAV")
    return folder


@pytest.fixture
def load(caplog):
    """Loads splits; returns the number of rows of each, and what was said."""

    def load_and_listen(path, **arguments):
        caplog.clear()
        with caplog.at_level("INFO", "hf_plr"):
            splits = load_splits(str(path), **arguments)
        return splits, "\n".join(record.getMessage() for record in caplog.records)

    return load_and_listen


@pytest.fixture
def without_extras(monkeypatch):
    """As if neither pillow-heif nor PyAV were installed."""
    monkeypatch.setattr(media_kinds, "has_heic", lambda: False)
    monkeypatch.setattr(audio_containers, "has_decoder", lambda: False)
    media_kinds.identify_name.cache_clear()
    yield
    media_kinds.identify_name.cache_clear()


def labels(dataset):
    names = dataset.features["label"].names
    return [None if label is None else names[label] for label in dataset["label"]]


def test_words_in_names_of_files_and_of_classes_make_no_splits(tmp_path, load):
    draw(tmp_path / "files", "a.png", "b.png", "test shot 1.png", "freight train.png", "val.png")
    splits, said = load(tmp_path / "files")
    assert {name: len(split) for name, split in splits.items()} == {"train": 5}
    assert said.endswith("5 images: 5 train")
    draw(tmp_path / "classes", "bolt/1.png", "nut/1.png", "test piece/1.png")
    splits, _ = load(tmp_path / "classes")
    assert labels(splits["train"]) == ["bolt", "nut", "test piece"]
    draw(tmp_path / "no train", "bolt/1.png", "test/1.png")
    splits, said = load(tmp_path / "no train")
    assert labels(splits["train"]) == ["bolt", "test"]
    assert "the folder test is a class, there is no folder train" in said


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "evaluation")])
def test_top_folders_are_splits(tmp_path, load, names):
    for name in names:
        draw(tmp_path, f"{name}/cat/1.png", f"{name}/dog/1.png")
    splits, _ = load(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "validation": 2, "test": 2}
    assert labels(splits["test"]) == ["cat", "dog"]
    assert choose_split(splits, "it", names[1]) is splits["validation"]


def test_unlabelled_images_are_trained_on_and_other_folders_are_counted(tmp_path, load):
    draw(tmp_path, "train/cat/1.png", "train/dog/1.png", "unlabeled/1.png", "unlabeled/2.png", "masks/1.png", "x.png")
    splits, said = load(tmp_path)
    assert labels(splits["train"]) == ["cat", "dog", None, None]
    assert encode_labels(splits["train"], "label").tolist() == [0, 1, -1, -1]
    assert "6 images: 4 train" in said
    assert "1 left out: in the folder masks, beside train" in said
    assert "1 left out: beside the folder train" in said


def test_classes_are_folders_of_one_depth(tmp_path, load):
    draw(tmp_path, "cat/1.png", "dog/1.png", "stray.png")
    assert labels(load(tmp_path)[0]["train"]) == ["cat", "dog", None]
    draw(tmp_path, "dog/young/1.png")
    splits, said = load(tmp_path)
    assert "label" not in splits["train"].column_names
    assert "folders are no classes, they lie at several depths" in said
    draw(tmp_path / "one class", "cat/1.png", "cat/2.png")
    assert load(tmp_path / "one class")[0]["train"].column_names == ["image"]


def test_a_folder_around_all_others_is_passed_through(tmp_path, load):
    draw(tmp_path, "download/pets/train/cat/1.png", "download/pets/train/dog/1.png", "download/pets/test/cat/1.png")
    splits, _ = load(tmp_path)
    assert {name: labels(split) for name, split in splits.items()} == {"train": ["cat", "dog"], "test": ["cat"]}


def test_what_cannot_be_read_is_counted_with_the_reason(tmp_path, load, without_extras):
    draw(tmp_path, "1.png", "2.JPG")
    for i in range(3):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(HEIC)
    (tmp_path / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "film.mp4").write_bytes(b"\0")
    record(tmp_path, "note.wav")
    os.symlink(tmp_path / "gone.png", tmp_path / "link.png")
    _, said = load(tmp_path)
    assert "6 images: 2 train" in said
    assert "3 left out: HEIC needs pillow-heif" in said
    assert "1 left out: DICOM is not read" in said
    assert "1 videos beside them are not taken" in said
    assert "1 recordings beside them are not taken" in said
    assert "1 links lead nowhere" in said
    splits, said = load(tmp_path, kind="audio")
    assert len(splits["train"]) == 1
    assert "6 images beside them are not taken" in said


def test_nothing_to_train_on_is_refused_with_the_reason(tmp_path, load, without_extras):
    for name in ("a.wma", "b.wma"):
        (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(ValueError, match="holds nothing to train on: 2 recordings: 2 left out: WMA needs"):
        load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images, no recordings and no parquet files"):
        load(tmp_path / "empty")


def test_content_decides_where_names_do_not(tmp_path, load):
    draw(tmp_path, "scan0001", "photo.jpg_large")
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / "movie").write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 100)
    splits, said = load(tmp_path)
    assert len(splits["train"]) == 2
    assert "1 videos beside them" in said


def test_hidden_files_are_passed_over_and_links_followed(tmp_path, load):
    draw(tmp_path / "elsewhere", "1.png", "2.png")
    folder = draw(tmp_path / "folder", "a/3.png")
    (folder / "a" / "._3.png").write_bytes(b"x")
    draw(folder, ".hidden/4.png", "__MACOSX/5.png")
    os.symlink(tmp_path / "elsewhere", folder / "b")
    os.symlink(tmp_path / "elsewhere" / "1.png", folder / "a" / "linked.png")
    os.symlink(folder, folder / "a" / "loop")
    splits, said = load(folder)
    assert labels(splits["train"]) == ["a", "a", "b", "b"]
    assert said.endswith("4 images: 4 train")


@pytest.mark.parametrize("name", ["[site A] photos", "what?", "a*b"])
def test_characters_of_patterns_are_just_characters(tmp_path, load, name):
    draw(tmp_path / name, "cam [1].png", "cam [2].png")
    assert len(load(tmp_path / name)[0]["train"]) == 2
    (tmp_path / "t" / name).mkdir(parents=True)
    pd.DataFrame({"image": [str(tmp_path / name / "cam [1].png")]}).to_csv(tmp_path / "t" / name / "train.csv")
    assert len(load(tmp_path / "t" / name)[0]["train"]) == 1
    assert len(load(tmp_path / "t" / name / "train.csv")[0]["train"]) == 1


def test_annotations_beside_images_change_nothing(tmp_path, load):
    draw(tmp_path, "1.png", "2.png")
    for name in ("1", "2"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"shapes": [], "imagePath": f"{name}.png"}))
        (tmp_path / f"{name}.txt").write_text("0 .5 .5 .1 .1")
    (tmp_path / "embeddings.parquet").write_bytes(b"damaged")
    splits, _ = load(tmp_path)
    assert splits["train"].column_names == ["image"]
    assert len(splits["train"]) == 2


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_add_columns_and_lose_no_file(tmp_path, load, suffix):
    draw(tmp_path, "imgs/1.png", "imgs/2.png", "imgs/3.png")
    table = pd.DataFrame(
        {"file_name": ["imgs/2.png", "imgs/1.png", "imgs/9.png"], "label": [1, 0, 2], "site": list("xyz")}
    )
    if suffix == "csv":
        table.to_csv(tmp_path / "metadata.csv", index=False)
    elif suffix == "jsonl":
        table.to_json(tmp_path / "metadata.jsonl", orient="records", lines=True)
    else:
        table.to_parquet(tmp_path / "metadata.parquet")
    splits, said = load(tmp_path)
    assert splits["train"]["label"] == [0, 1, None]
    assert splits["train"]["site"] == ["y", "x", None]
    assert f"metadata.{suffix} tells of 2 of them, 1 rows of metadata.{suffix} name files that are not there" in said


def test_other_tables_that_name_files_are_read(tmp_path, load):
    record(tmp_path / "audio", "1.wav", "2.wav", "3.wav")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc.csv").write_text("filename,target\n1.wav,7\n3.wav,8\n")
    (tmp_path / "notes.csv").write_text("when,what\nmonday,rain\n")
    splits, said = load(tmp_path)
    assert splits["train"].column_names == ["audio", "target"]
    assert splits["train"]["target"] == [7, None, 8]
    assert "meta/esc.csv tells of 2 of them" in said
    assert isinstance(splits["train"].features["audio"], Audio)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file_name;site\n1.png;Bär\n", "utf-8-sig"),
        ("file_name,site\n1.png,Bär\n", "latin-1"),
        ("site\tfile_name\nBär\t1.png", "utf-8"),
    ],
)
def test_tables_of_other_programs(tmp_path, load, text, encoding):
    draw(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    assert load(tmp_path)[0]["train"]["site"] == ["Bär"]


def test_names_that_no_table_can_hold_and_packed_files_are_counted(tmp_path, load):
    draw(tmp_path, "1.png")
    shutil.copy(tmp_path / "1.png", os.fsencode(tmp_path) + b"/\xff.png")
    shutil.copy(tmp_path / "1.png", tmp_path / "2.png.gz")
    (tmp_path / "more.rar").write_bytes(b"Rar!")
    splits, said = load(tmp_path)
    assert len(splits["train"]) == 1
    assert "3 images: 1 train, 1 left out: .gz files are not read: unpack them" in said
    assert "1 left out: names that are not UTF-8" in said
    assert "1 archives (.rar, .7z, .zst, .lz4) that are not unpacked" in said


def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path, load):
    draw(tmp_path, "1.png")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.write(tmp_path / "1.png", "../../../evil.png")
        file.write(tmp_path / "1.png", "inside.png")
    assert len(load(tmp_path)[0]["train"]) == 2


def test_metadata_of_each_split(tmp_path, load):
    draw(tmp_path, "train/1.png", "test/1.png")
    for split, site in (("train", "north"), ("test", "south")):
        (tmp_path / split / "metadata.csv").write_text(f"file_name,site\n1.png,{site}\n")
    splits, _ = load(tmp_path)
    assert {name: split["site"][0] for name, split in splits.items()} == {"train": "north", "test": "south"}


def test_metadata_that_name_no_files_are_refused(tmp_path, load):
    draw(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_text("image_id,label\n7,1\n")
    with pytest.raises(ValueError, match=r"metadata\.csv has no column file_name: its columns are image_id, label"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["zip", "tar", "gztar"])
def test_archives_are_folders(tmp_path, load, suffix):
    draw(tmp_path / "pets", "train/cat/1.png", "train/dog/1.png", "test/cat/1.png")
    archive = shutil.make_archive(str(tmp_path / "out" / "pets"), suffix, tmp_path, "pets")
    for path in (archive, tmp_path / "out"):
        splits, _ = load(path)
        assert {name: labels(split) for name, split in splits.items()} == {"train": ["cat", "dog"], "test": ["cat"]}
        assert splits["train"][0]["image"].size == (4, 4)


def test_a_folder_in_an_archive_and_an_archive_that_changes(tmp_path, load):
    draw(tmp_path / "pets", "a/1.png", "b/1.png")
    archive = shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "pets")
    assert len(load(f"zip://a::{archive}")[0]["train"]) == 1
    draw(tmp_path / "pets", "a/2.png")
    os.remove(archive)
    shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "pets")
    assert len(load(archive)[0]["train"]) == 3
    (tmp_path / "broken.zip").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.zip is not an archive, or a damaged one"):
        load(tmp_path / "broken.zip")


def test_stored_addresses_in_archives_are_opened(tmp_path):
    draw(tmp_path / "pets", "1.png", "2.png")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as file:
        for name in ("1.png", "2.png"):
            file.write(tmp_path / "pets" / name, f"a/{name}")
    paths = [f"zip://a/{name}::{tmp_path / 'pets.zip'}" for name in ("1.png", "2.png")]
    dataset = Dataset.from_dict({"image": paths}).cast_column("image", Image())
    store = ImageStore(dataset, "image", ImageGeometry(small_vit_processor(32), num_channels=3))
    assert len(store) == 2
    assert store.digest()


def test_tables_whose_columns_are_paths_or_bytes(tmp_path, load):
    draw(tmp_path / "imgs", "1.png", "2.png")
    data = [(tmp_path / "imgs" / name).read_bytes() for name in ("1.png", "2.png")]
    pd.DataFrame({"photo": ["imgs/1.png", "imgs/2.png"], "species": list("ab")}).to_csv(
        tmp_path / "list.csv", index=False
    )
    pd.DataFrame({"photo": data}).to_parquet(tmp_path / "bytes.parquet")
    pd.DataFrame({"photo": [{"bytes": value, "path": None} for value in data]}).to_parquet(tmp_path / "struct.parquet")
    (tmp_path / "lines.jsonl").write_text('{"photo": "imgs/1.png"}\n{"photo": "imgs/2.png"}\n')
    for name in ("list.csv", "bytes.parquet", "struct.parquet", "lines.jsonl"):
        split = load(tmp_path / name)[0]["train"]
        assert isinstance(split.features["photo"], Image)
        assert [image.size for image in split["photo"]] == [(4, 4), (4, 4)]
    with pytest.raises(ValueError, match="is an image or recording: name a folder"):
        load(tmp_path / "imgs" / "1.png")


def test_nested_columns_have_names_with_a_dot(tmp_path, load):
    draw(tmp_path, "1.png")
    value = {"image": {"bytes": (tmp_path / "1.png").read_bytes(), "path": "1.png"}, "id": 7}
    (tmp_path / "t").mkdir()
    pd.DataFrame({"sample": [value]}).to_parquet(tmp_path / "t" / "train.parquet")
    split = load(tmp_path / "t")[0]["train"]
    assert isinstance(split.features["sample.image"], Image)
    assert split["sample.id"] == [7]


def test_folders_that_save_to_disk_wrote(tmp_path, load):
    dataset = Dataset.from_dict({"image": [PILImage.new("L", (4, 4))]}, features=Features({"image": Image()}))
    dataset.save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved")[0]["train"].column_names == ["image"]


def test_media_in_parquet_beside_a_picture(tmp_path, load):
    draw(tmp_path, "logo.png")
    data = (tmp_path / "logo.png").read_bytes()
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [{"bytes": data, "path": None}] * 3, "label": [0, 1, 2]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    splits, said = load(tmp_path)
    assert len(splits["train"]) == 3
    assert "tables with 3 rows are taken, 1 files and 0 other tables beside them are left out" in said


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    draw(tmp_path, "1.png", "2.png")
    train, test = load_train_and_test(str(tmp_path))
    assert test is None
    again, _ = load_train_and_test(str(tmp_path))
    assert again._fingerprint == train._fingerprint
    draw(tmp_path, "2.png")
    os.utime(tmp_path / "2.png", ns=(0, 0))
    assert load_train_and_test(str(tmp_path))[0]._fingerprint != train._fingerprint


def write_parquet(path, n, column="photo", size=(4, 4)):
    buffer = io.BytesIO()
    PILImage.new("RGB", size).save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({column: [buffer.getvalue()] * n}).to_parquet(path)


def test_tables_that_hold_more_than_there_are_files_are_taken_and_said(tmp_path, load):
    write_parquet(tmp_path / "a" / "shard-0.parquet", 9)  # plain bytes, no type of datasets
    draw(tmp_path / "a", *(f"{i}.png" for i in range(5)))
    splits, said = load(tmp_path / "a")
    assert isinstance(splits["train"].features["photo"], Image)
    assert len(splits["train"]) == 9
    assert "tables with 9 rows are taken, 5 files and 0 other tables beside them are left out" in said
    write_parquet(tmp_path / "b" / "train.parquet", 9)
    for i in range(4):
        (tmp_path / "b" / f"{i}.csv").write_text("a,b\n1,2\n")
    assert len(load(tmp_path / "b")[0]["train"]) == 9
    draw(tmp_path / "c", "logo.png")
    elsewhere = [str(draw(tmp_path / "elsewhere", f"{i}.png") / f"{i}.png") for i in range(4)]
    pd.DataFrame({"path": elsewhere}).to_csv(tmp_path / "c" / "train.csv", index=False)
    assert len(load(tmp_path / "c")[0]["train"]) == 4
    write_parquet(tmp_path / "d" / "train.parquet", 3)
    (tmp_path / "d" / "logo.svg").write_text("<svg/>")
    assert len(load(tmp_path / "d")[0]["train"]) == 3


def test_tables_that_are_not_used_are_named(tmp_path, load):
    draw(tmp_path, "ISIC_0.png", "ISIC_1.png", "ISIC_2.png")
    (tmp_path / "ragged.csv").write_text("file,label\nISIC_0.png,1,2\nISIC_1.png,3\n")
    (tmp_path / "prices.csv").write_text("item,price\nmilk,1\n")
    (tmp_path / "truth.csv").write_text("id,kind\nISIC_0,NA\nISIC_0,b\nISIC_1,c\nISIC_7,c\n")  # without endings
    splits, said = load(tmp_path)
    assert splits["train"]["kind"] == ["NA", "c", None]
    assert "ragged.csv is not used" in said
    assert "prices.csv is not used: it names none of the files" in said
    assert "1 rows of truth.csv name files that are not there" in said
    assert "1 rows of truth.csv name a file again" in said


def test_a_table_of_a_split_tells_of_that_split_alone(tmp_path, load):
    draw(tmp_path, "train/0.png", "train/1.png", "test/0.png", "test/2.png")
    (tmp_path / "train" / "metadata.csv").write_text(
        "mask_file_name,file_name,site\n1.png,0.png,a\n0.png,1.png,b\n0.png,2.png,c\n"
    )
    splits, _ = load(tmp_path)
    assert splits["train"]["site"] == ["a", "b"]
    assert splits["test"]["site"] == [None, None]


def test_absolute_paths_in_metadata_and_labels_with_gaps(tmp_path, load):
    draw(tmp_path, "a/0.png", "a/1.png", "b/0.png")
    lines = "".join(f"{tmp_path / name},{label}\n" for name, label in (("a/0.png", "x"), ("b/0.png", "y")))
    (tmp_path / "metadata.csv").write_text("file_name,label,,label2,label2\n" + lines.replace("\n", ",,,\n"))
    splits, said = load(tmp_path)
    assert labels(splits["train"]) == ["a", "a", "b"]
    assert splits["train"]["label_in_table"] == ["x", None, "y"]
    assert "label of the tables is in label_in_table, since it has gaps" in said


def test_tables_of_different_types_become_text(tmp_path, load):
    draw(tmp_path, "train/0.png", "test/0.png")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "0.png", "box": [1, 2]}\n')
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "0.png", "box": {"x": 1}}\n')
    splits, _ = load(tmp_path)
    assert splits["train"]["box"] == ["[1, 2]"]


def test_archives_beside_their_folder_and_damaged_ones(tmp_path, load):
    draw(tmp_path, "train/0.png", "test/0.png")
    shutil.make_archive(str(tmp_path / "train"), "zip", tmp_path, "train")
    (tmp_path / "old.zip").write_bytes(b"PK nothing")
    splits, said = load(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 1, "test": 1}
    assert "1 archives beside a folder of their name, which is taken" in said
    assert "1 archives that cannot be unpacked" in said
    shutil.rmtree(tmp_path / "train")
    os.remove(tmp_path / "old.zip")
    splits, _ = load(tmp_path)  # train.zip with train/ in it
    assert {name: split.column_names for name, split in splits.items()} == {"train": ["image"], "test": ["image"]}


def test_names_with_two_underscores_are_names(tmp_path, load):
    draw(tmp_path, "__background__/0.png", "cat/0.png", "__MACOSX/0.png")
    assert labels(load(tmp_path)[0]["train"]) == ["__background__", "cat"]


def test_paths_of_tables_begin_where_they_lie(tmp_path, load):
    draw(tmp_path / "pics", "0.png", "1.png")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as file:
        file.write(tmp_path / "pics" / "0.png", "0.png")
    for name, values in {
        "zip": ["zip://0.png::w.zip"],
        "windows": ["pics\\0.png", "pics\\1.png"],
        "semicolon": ["pics/0.png;a"],
    }.items():
        header = "image;label" if ";" in values[0] else "image"
        (tmp_path / f"{name}.csv").write_bytes("\r\n".join([header, *values]).encode())
        split = load(tmp_path / f"{name}.csv")[0]["train"]
        store = ImageStore(split, "image", ImageGeometry(small_vit_processor(32), num_channels=3))
        assert len(store) == len(values)
    pd.DataFrame({"image": [{"bytes": None, "path": "pics/0.png"}]}).to_parquet(tmp_path / "t.parquet")
    split = load(tmp_path / "t.parquet")[0]["train"]
    assert split[0]["image"].size == (4, 4)
    os.utime(tmp_path / "pics" / "0.png", ns=(0, 0))
    assert load(tmp_path / "t.parquet")[0]["train"]._fingerprint != split._fingerprint


def test_faults_of_names_are_told_in_one_line(tmp_path, load, monkeypatch):
    with pytest.raises(ValueError, match="dataset_name='' is empty"):
        load("")
    with pytest.raises(ValueError, match=r"gone\.zip cannot be unpacked: No such file"):
        load("zip://a::gone.zip")
    draw(tmp_path / "pets", "0.png")
    (tmp_path / "pets" / "README.md").write_text("---\nconfigs: [\n---\n")
    (tmp_path / "pets" / "state.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/pets")[0]["train"]) == 1
    monkeypatch.chdir(tmp_path)
    path = load("./pets/")[0]["train"].cast_column("image", Image(decode=False))[0]["image"]["path"]
    assert path == str(tmp_path / "pets" / "0.png")


def test_a_damaged_member_of_an_archive_is_left_out(tmp_path):
    draw(tmp_path, "0.png")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as file:
        for name in ("0.png", "1.png"):
            file.write(tmp_path / "0.png", name)
    content = bytearray((tmp_path / "w.zip").read_bytes())
    content[45] ^= 255  # within the first member
    (tmp_path / "w.zip").write_bytes(content)
    dataset = Dataset.from_dict({"image": [f"zip://{name}::{tmp_path / 'w.zip'}" for name in ("0.png", "1.png")]})
    geometry = ImageGeometry(small_vit_processor(32), num_channels=3)
    store = ImageStore(dataset.cast_column("image", Image()), "image", geometry, skip_unreadable=True)
    assert store.rows.tolist() == [1]


def test_many_tables_take_time_by_their_number(tmp_path, load):
    for i in range(60):
        draw(tmp_path, f"{i:02d}/0.png")
        (tmp_path / f"{i:02d}" / "metadata.csv").write_text(f"file_name,site\n0.png,s{i}\n")
    assert load(tmp_path)[0]["train"]["site"] == [f"s{i}" for i in range(60)]


def test_processes_that_were_forked_read_an_archive_each_for_itself(tmp_path):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as file:
        for i in range(40):
            buffer = io.BytesIO()
            PILImage.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, format="PNG")
            file.writestr(f"{i}.png", buffer.getvalue())
    dataset = Dataset.from_dict({"image": [f"zip://{i}.png::{tmp_path / 'w.zip'}" for i in range(40)]})
    geometry = ImageGeometry(small_vit_processor(32), num_channels=3)
    store = ImageStore(dataset.cast_column("image", Image()), "image", geometry, cache_bytes=0)
    alone = torch.stack([store[i]["pixel_values"] for i in range(40)])
    loader = DataLoader(store, batch_size=4, num_workers=2, collate_fn=collate_images)
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), alone)
