"""Tables that name images and recordings, or hold them."""

from __future__ import annotations

import io
import os
import unicodedata
import zipfile

import pandas as pd
import pytest
from datasets import Audio, Dataset, DatasetDict, Features, Image, Value
from helpers.media_folders import draw, labels, record
from PIL import Image as PILImage

from hf_plr.data.image_decoding import UnreadableImage
from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_store import ImageStore
from hf_plr.models.vision import small_vit_processor


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


@pytest.mark.parametrize("table", ["metadata.csv", "list.csv"])
def test_accents_may_be_composed_otherwise_than_on_the_disk(tmp_path, load, table):
    names = ["Äpfel/é.png", "Äpfel/ü.png"]
    draw(tmp_path, *(unicodedata.normalize("NFD", name) for name in names))
    rows = "".join(f"{unicodedata.normalize('NFC', name)},{i}\n" for i, name in enumerate(names))
    (tmp_path / table).write_text(f"file_name,tree\n{rows}", encoding="utf-8")
    splits, said = load(tmp_path)
    assert sorted(splits["train"]["tree"]) == [0, 1]
    assert "tells of 2 of them" in said


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


@pytest.mark.parametrize("has_structs", [False, True])
def test_files_that_are_missing_make_no_other_column(tmp_path, load, has_structs):
    draw(tmp_path / "imgs", "1.png", "2.png")
    paths = ["imgs/1.png", "imgs/gone.png", "", None, "imgs/2.png"]
    structs = [{"bytes": None, "path": path or None} for path in paths]
    pd.DataFrame({"photo": structs if has_structs else paths}).to_parquet(tmp_path / "list.parquet")
    split = load(tmp_path / "list.parquet")[0]["train"]
    assert isinstance(split.features["photo"], Image)
    geometry = ImageGeometry(small_vit_processor(32), num_channels=3)
    store = ImageStore(split, "photo", geometry, skip_unreadable=True).check()
    assert store.rows.tolist() == [0, 4]
    with pytest.raises(UnreadableImage, match=r"image 1 cannot be read \(.*imgs/gone\.png"):
        ImageStore(split, "photo", geometry).check()
    os.remove(tmp_path / "imgs" / "1.png")
    os.remove(tmp_path / "imgs" / "2.png")
    assert not isinstance(load(tmp_path / "list.parquet")[0]["train"].features["photo"], Image)


def test_nested_columns_have_names_with_a_dot(tmp_path, load):
    draw(tmp_path, "1.png")
    value = {"image": {"bytes": (tmp_path / "1.png").read_bytes(), "path": "1.png"}, "id": 7}
    (tmp_path / "t").mkdir()
    pd.DataFrame({"sample": [value]}).to_parquet(tmp_path / "t" / "train.parquet")
    split = load(tmp_path / "t")[0]["train"]
    assert isinstance(split.features["sample.image"], Image)
    assert split["sample.id"] == [7]
    draw(tmp_path / "t", "pics/2.png")
    (tmp_path / "t" / "list.jsonl").write_text('{"sample": {"image": "pics/2.png", "id": 8}}\n')
    split = load(tmp_path / "t" / "list.jsonl")[0]["train"]
    assert split[0]["sample.image"].size == (4, 4)
    nested = Dataset.from_list([{"sample": value}], Features({"sample": {"image": Image(), "id": Value("int64")}}))
    nested.save_to_disk(tmp_path / "saved")
    assert set(load(tmp_path / "saved")[0]["train"].column_names) == {"sample.image", "sample.id"}


def test_media_in_parquet_beside_a_picture(tmp_path, load):
    draw(tmp_path, "logo.png")
    data = (tmp_path / "logo.png").read_bytes()
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [{"bytes": data, "path": None}] * 3, "label": [0, 1, 2]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    splits, said = load(tmp_path)
    assert len(splits["train"]) == 3
    assert "tables with 3 rows are taken, 1 files and 0 other tables beside them are left out" in said


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


def count_rows(splits):
    return {name: len(split) for name, split in splits.items()}


@pytest.mark.parametrize("root", ["hub", "[hub]"])
@pytest.mark.parametrize("beside", [None, "classes.csv", "preview.png"])
@pytest.mark.parametrize(
    "names",
    [
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("config/partial-train/0000.parquet", "config/partial-test/0000.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("birds_train.parquet", "birds_test.parquet"),
    ],
)
def test_splits_of_tables_are_words_of_folders_or_names(tmp_path, load, root, beside, names):
    folder = tmp_path / "test" / root  # what lies above the folder says nothing
    for name, n in zip(names, (4, 2), strict=True):
        write_parquet(folder / name, n)
    if beside == "classes.csv":
        (folder / beside).write_text("class\na\n")
    elif beside is not None:
        draw(folder, beside)
    assert count_rows(load(folder)[0]) == {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("train", "test"),
    [("a/0.parquet", "test/train/0.parquet"), ("test_config/train/0.parquet", "test_config/test/0.parquet")],
)
def test_a_folder_called_like_a_split_comes_before_other_words(tmp_path, load, train, test):
    write_parquet(tmp_path / train, 4)
    write_parquet(tmp_path / test, 2)
    draw(tmp_path, "logo.png")
    assert count_rows(load(tmp_path)[0]) == {"train": 4, "test": 2}


def test_other_tables_beside_those_of_images_are_not_taken_for_them(tmp_path, load):
    folder = tmp_path / "[hub]"
    write_parquet(folder / "train-00000-of-00001.parquet", 3)
    (folder / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    splits, _ = load(folder)
    assert splits["train"].column_names == ["photo"]
    assert len(splits["train"]) == 3


def test_paths_of_each_split_begin_beside_its_table(tmp_path, load):
    for split in ("train", "test"):
        draw(tmp_path / "elsewhere" / split, "1.png")
        (tmp_path / "lists" / split).mkdir(parents=True)
        (tmp_path / "lists" / split / "list.csv").write_text(f"photo\n../../elsewhere/{split}/1.png\n")
    (tmp_path / "lists" / "notes.csv").write_text("a\n1\n")
    splits, _ = load(tmp_path / "lists")
    for split in ("train", "test"):
        path = splits[split].cast_column("photo", Image(decode=False))[0]["photo"]["path"]
        assert os.path.samefile(path, tmp_path / "elsewhere" / split / "1.png")


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


@pytest.mark.parametrize("top", ["", "data/", "down/load/pets/"])
def test_tables_of_splits_name_files_alike(tmp_path, load, top):
    for split, classes in (("train", "ab"), ("test", "ba")):
        draw(tmp_path, *(f"{top}{split}/imgs/{i}.png" for i in range(2)))
        lines = "".join(f"{i}.png,{name}\n" for i, name in enumerate(classes))
        (tmp_path / top / split / "labels.csv").write_text(f"name,label\n{lines}")
    splits, _ = load(tmp_path)
    assert {name: split["label"][:] for name, split in splits.items()} == {"train": ["a", "b"], "test": ["b", "a"]}


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


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ";"), ("csv", ","), ("tsv", "\t"), ("csv", "\t")])
def test_separators_of_a_table_in_a_folder(tmp_path, load, suffix, separator):
    draw(tmp_path / "pics", "0.png", "1.png")
    (tmp_path / "lists" / "of site").mkdir(parents=True)
    for split, number in (("train", 0), ("test", 1)):
        lines = ["photo", "place"], [f"../../pics/{number}.png", "Zoé"]
        text = "".join(f"{separator.join(line)}\n" for line in lines)
        (tmp_path / "lists" / "of site" / f"birds_{split}.{suffix}").write_text(text, encoding="utf-8-sig")
    splits, _ = load(tmp_path / "lists")
    assert count_rows(splits) == {"train": 1, "test": 1}
    assert splits["test"].column_names == ["place", "photo"]
    assert (splits["test"][0]["photo"].size, splits["test"]["place"][0]) == ((4, 4), "Zoé")


def test_many_tables_take_time_by_their_number(tmp_path, load):
    for i in range(60):
        draw(tmp_path, f"{i:02d}/0.png")
        (tmp_path / f"{i:02d}" / "metadata.csv").write_text(f"file_name,site\n0.png,s{i}\n")
    assert load(tmp_path)[0]["train"]["site"] == [f"s{i}" for i in range(60)]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.jsonl", "saved", "splits"])
def test_data_without_rows_say_so(tmp_path, load, name):
    empty = Dataset.from_dict({"image": []}, features=Features({"image": Image()}))
    path = tmp_path / name
    if name == "rows.parquet":
        empty.to_parquet(path)
    elif name == "rows.csv":
        path.write_text("image,label\n")
    elif name == "rows.jsonl":
        path.write_text("")
    elif name == "saved":
        empty.save_to_disk(path)
    else:
        draw(tmp_path, "a.png")
        path.mkdir()
        Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).to_parquet(path / "train.parquet")
        DatasetDict(train=Dataset.from_parquet(str(path / "train.parquet")), test=empty).save_to_disk(path)
    with pytest.raises(ValueError, match=f"dataset_name=.*{name}'.*: the data set has no rows"):
        load(path)
