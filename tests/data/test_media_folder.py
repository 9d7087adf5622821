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
import torch
from datasets import Dataset, Features, Image
from helpers.media_folders import draw, labels, record
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_plr.data import audio_containers, media_kinds
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_store import ImageStore, collate_images
from hf_plr.data.loading import choose_split, load_train_and_test
from hf_plr.data.true_labels import encode_labels
from hf_plr.models.vision import small_vit_processor

HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


@pytest.fixture
def without_extras(monkeypatch):
    """As if neither pillow-heif nor PyAV were installed."""
    monkeypatch.setattr(media_kinds, "has_heic", lambda: False)
    monkeypatch.setattr(audio_containers, "has_decoder", lambda: False)
    media_kinds.identify_name.cache_clear()
    yield
    media_kinds.identify_name.cache_clear()


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


def test_names_that_no_table_can_hold_and_packed_files_are_counted(tmp_path, load):
    draw(tmp_path, "1.png")
    for name in (b"photo\xe9", b"\xff.png"):
        shutil.copy(tmp_path / "1.png", os.fsencode(tmp_path) + b"/" + name)
    with open(os.fsencode(tmp_path) + b"/photo\xe9.csv", "w") as file:
        file.write("file_name,label\n1.png,a\n")
    shutil.copy(tmp_path / "1.png", tmp_path / "2.png.gz")
    (tmp_path / "more.rar").write_bytes(b"Rar!")
    splits, said = load(tmp_path)
    assert len(splits["train"]) == 1
    assert "4 images: 1 train, 1 left out: .gz files are not read: unpack them" in said
    assert "2 left out: names that are not UTF-8" in said
    assert "photo\\xe9 is a name that is not UTF-8" in said
    assert "1 tables whose names are not UTF-8" in said
    assert "1 archives (.rar, .7z, .zst, .lz4) that are not unpacked" in said


def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path, load):
    draw(tmp_path, "1.png")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.write(tmp_path / "1.png", "../../../evil.png")
        file.write(tmp_path / "1.png", "inside.png")
    assert len(load(tmp_path)[0]["train"]) == 2


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


def test_folders_that_save_to_disk_wrote(tmp_path, load):
    dataset = Dataset.from_dict({"image": [PILImage.new("L", (4, 4))]}, features=Features({"image": Image()}))
    dataset.save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved")[0]["train"].column_names == ["image"]


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    draw(tmp_path, "1.png", "2.png")
    train, test = load_train_and_test(str(tmp_path))
    assert test is None
    again, _ = load_train_and_test(str(tmp_path))
    assert again._fingerprint == train._fingerprint
    draw(tmp_path, "2.png")
    os.utime(tmp_path / "2.png", ns=(0, 0))
    assert load_train_and_test(str(tmp_path))[0]._fingerprint != train._fingerprint


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
    store = ImageStore(dataset.cast_column("image", Image()), "image", geometry, skip_unreadable=True).check()
    assert store.rows.tolist() == [1]


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
