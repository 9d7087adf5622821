"""Re-identification data as they are downloaded, and what is said when something is wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_plr.data.image_geometry import ImageGeometry
from hf_plr.data.image_store import ImageStore
from hf_plr.models.vision import small_vit_processor
from hf_plr.reid.reid_data import ReidData, ReidSplit, load_reid_data, load_reid_folder
from hf_plr.reid.retrieval_evaluator import RetrievalEvaluator, can_score

MARKET = {
    "bounding_box_train": ["0007_c2s3_000002_01.jpg", "0002_c1s1_000451_03.jpg", "-1_c3s1_000009_00.jpg"],
    "query": ["0003_c1s1_000001_00.jpg"],
    "bounding_box_test": ["0003_c2s1_000001_00.jpg", "0000_c6s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"],
}
VERI = {
    "image_train": ["0002_c002_00030600_0.jpg", "0001_c011_00030600_0.jpg"],
    "image_query": ["0005_c003_00030600_1.jpg"],
    "image_test": ["0005_c012_00030600_1.jpg"],
}
MSMT17 = {  # list: (path, identity)
    "list_train.txt": [("0001/0001_003_02_0303morning_0020_2.jpg", 1), ("0000/0000_000_01_0303morning_0008_0.jpg", 0)],
    "list_val.txt": [("0002/0002_000_15_0303noon_0008_0.jpg", 2)],
    "list_query.txt": [("0000/0000_000_05_0303morning_0008_0.jpg", 0)],
    "list_gallery.txt": [("0000/0000_001_06_0303morning_0008_0.jpg", 0)],
}


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (4, 8), (len(path.name), 0, 0)).save(path)


@pytest.fixture
def market(tmp_path):
    for folder, names in MARKET.items():
        for name in names:
            draw(tmp_path / "Market-1501-v15.09.15" / folder / name)
    (tmp_path / "Market-1501-v15.09.15" / "bounding_box_test" / "Thumbs.db").write_bytes(b"")
    draw(tmp_path / "Market-1501-v15.09.15" / "gt_bbox" / "0001_c1s1_001051_00.jpg")
    return tmp_path / "Market-1501-v15.09.15"


@pytest.fixture
def veri(tmp_path):
    for folder, names in VERI.items():
        for name in names:
            draw(tmp_path / "VeRi" / folder / name)
    (tmp_path / "VeRi" / "name_train.txt").write_text("0001_c011_00030600_0.jpg\n")
    return tmp_path / "VeRi"


@pytest.fixture(params=[("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")])
def msmt17(tmp_path, request):
    name, train, test = request.param
    for listed, lines in MSMT17.items():
        for path, _ in lines:
            draw(tmp_path / name / (train if listed in ("list_train.txt", "list_val.txt") else test) / path)
        text = "".join(f"{path} {identity}\n" for path, identity in lines)
        (tmp_path / name / listed).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_an_archive_is_what_the_folder_in_it_is(market, monkeypatch, tmp_path, ending):
    archive = shutil.make_archive(str(tmp_path / "market"), ending[1:], market.parent, market.name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (archive, f"~/market{ending}", "~/Market-1501-v15.09.15"):
        data = load_reid_data(name)
        assert data.train.identities.tolist() == [2, 7]
        assert data.train.cameras.tolist() == [1, 2]
        assert len(data.query.images) == 1


def test_a_relative_name_gives_the_files_of_an_absolute_one(monkeypatch, tmp_path, msmt17):
    check_relative_names(msmt17, monkeypatch, tmp_path)


@pytest.mark.parametrize("layout", ["market", "veri"])
def test_relative_names_of_named_images_too(request, monkeypatch, tmp_path, layout):
    check_relative_names(request.getfixturevalue(layout), monkeypatch, tmp_path)


def check_relative_names(folder, monkeypatch, tmp_path):
    geometry = ImageGeometry(small_vit_processor(16), 3)
    expected = ImageStore(load_reid_data(str(folder)).train.images, "image", geometry).files()
    monkeypatch.chdir(tmp_path)
    for name in (folder.name, Path("..", tmp_path.name, folder.name), "."):
        data = load_reid_data(str(name))
        assert ImageStore(data.train.images, "image", geometry).files() == expected
        monkeypatch.chdir(tmp_path.parent)  # the files are read from anywhere
        assert data.train.images[0]["image"].size == (4, 8)
        monkeypatch.chdir(tmp_path)


def rows(split):
    return list(zip(split["identity"], split["camera"], strict=True))


def test_market1501(market):
    for path in (market, market.parent):
        splits = load_reid_folder(path)
        assert list(splits) == ["train", "query", "gallery"]
        assert rows(splits["train"]) == [(2, 1), (7, 2)]  # sorted, and no junk
        assert rows(splits["query"]) == [(3, 1)]
        assert rows(splits["gallery"]) == [(-1, 1), (0, 6), (3, 2)]
    features = splits["train"].features
    assert isinstance(features["image"], Image)
    assert features["identity"].dtype == features["camera"].dtype == "int64"
    stored = splits["train"].cast_column("image", Image(decode=False))[0]["image"]
    assert stored == {"bytes": None, "path": str(market / "bounding_box_train" / "0002_c1s1_000451_03.jpg")}
    assert splits["train"][0]["image"].size == (4, 8)


def test_veri776(veri):
    splits = load_reid_folder(veri.parent)
    assert rows(splits["train"]) == [(1, 11), (2, 2)]
    assert rows(splits["query"]) == [(5, 3)]
    assert rows(splits["gallery"]) == [(5, 12)]


def test_msmt17(msmt17):
    splits = load_reid_folder(msmt17)
    assert rows(splits["train"]) == [(0, 1), (1, 2), (2, 15)]  # with the validation list
    assert rows(splits["query"]) == [(0, 5)]
    assert rows(splits["gallery"]) == [(0, 6)]
    assert splits["gallery"][0]["image"].size == (4, 8)


def test_folders_that_are_not_there_or_not_known(tmp_path, market):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_reid_folder(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"no known layout.*Market-1501 \(bounding_box_train\), MSMT17.*VeRi-776"):
        load_reid_folder(tmp_path / "other")
    draw(tmp_path / "second" / "image_train" / "0001_c001_0.jpg")
    with pytest.raises(ValueError, match=r"several data sets \(Market-1501-v15.09.15, second\): give the path of one"):
        load_reid_folder(tmp_path)
    assert list(load_reid_folder(tmp_path / "second")) == ["train"]  # no queries: nothing to ask


def test_images_without_identity_in_their_names_are_trained_on(market, caplog):
    draw(market / "bounding_box_train" / "person.jpg")
    draw(market / "query" / "person.jpg")
    splits = load_reid_folder(market)
    assert rows(splits["train"]) == [(2, 1), (7, 2), (-1, -1)]
    assert rows(splits["query"]) == [(3, 1)]
    assert "1 images of" in caplog.text
    assert "trained on, but not scored, such as person.jpg" in caplog.text
    for file in (market / "query").iterdir():
        file.unlink()
    data = load_reid_data(str(market))
    assert data.query is data.gallery is None
    assert "only one of the splits query and gallery, so neither is scored" in caplog.text
    for file in (market / "bounding_box_train").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="the split 'train' is empty"):
        load_reid_folder(market)


def test_what_other_programs_leave_and_other_formats(market):
    (market / "bounding_box_train" / "._0002_c1s1_000451_03.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    draw(market / "bounding_box_train" / "0009_C4S1_000002_01.BMP")
    assert rows(load_reid_folder(market)["train"]) == [(2, 1), (7, 2), (9, 4)]


def test_lists_that_are_wrong(msmt17):
    listed = msmt17 / "list_val.txt"
    listed.write_text("0002/0002_000_15_0303noon_0008_9.jpg 2\n")
    with pytest.raises(ValueError, match=r"_9\.jpg is missing: add it, or remove it from list_val.txt, line 1"):
        load_reid_folder(msmt17)
    for line in ("0002/0002.jpg 2", "0002/0002_000_15_0303noon_0008_0.jpg"):
        listed.write_text(line + "\n")
        with pytest.raises(ValueError, match=r"list_val.txt, line 1: .* is not like '0000/0000_000_01"):
            load_reid_folder(msmt17)
    listed.unlink()
    with pytest.raises(ValueError, match=r"has no list 'list_val\.txt' for the split 'train'"):
        load_reid_folder(msmt17)
    for folder in ("train", "mask_train_v2"):
        if (msmt17 / folder).exists():
            (msmt17 / folder).rename(msmt17 / "elsewhere")
    with pytest.raises(ValueError, match="not the folders 'train' and 'test' or 'mask_train_v2' and 'mask_test_v2'"):
        load_reid_folder(msmt17)


def table(n=6, **columns):
    images = [PILImage.new("RGB", (4, 8), (i, 0, 0)) for i in range(n)]
    types = {"photo": Image(), **{name: kind for name, (kind, _) in columns.items()}}
    return Dataset.from_dict(
        {"photo": images, **{name: values for name, (_, values) in columns.items()}}, features=Features(types)
    )


PERSON = (Value("string"), ["b", "a", None, "a", "b", "b"])
PLACE = (ClassLabel(names=["north", "south"]), [0, 1, 0, 1, 0, 1])


def test_a_folder_of_parquet_files_with_columns_of_its_own(tmp_path):
    table(person=PERSON, place=PLACE).to_parquet(tmp_path / "train.parquet")
    data = load_reid_data(str(tmp_path), identity_column="person", camera_column="place")
    assert data.query is data.gallery is None
    assert data.train.images.column_names == ["image"]
    assert data.train.identities.tolist() == [1, 0, -1, 0, 1, 1]
    assert data.train.cameras.tolist() == [0, 1, 0, 1, 0, 1]
    some = data.select_train(np.array([1, 4])).train
    assert (len(some.images), some.identities.tolist(), some.cameras.tolist()) == (2, [0, 1], [1, 0])
    assert some.images[1]["image"].getpixel((0, 0)) == (4, 0, 0)


def test_query_and_gallery_share_their_numbers(tmp_path):
    table(person=PERSON, place=PLACE).to_parquet(tmp_path / "train.parquet")
    table(2, person=(Value("string"), ["d", "c"]), place=(PLACE[0], [0, 1])).to_parquet(tmp_path / "query.parquet")
    columns = {"identity_column": "person", "camera_column": "place"}
    assert load_reid_data(str(tmp_path), **columns).query is None  # without a gallery
    table(2, person=(Value("string"), ["c", "e"]), place=(PLACE[0], [0, 1])).to_parquet(tmp_path / "gallery.parquet")
    data = load_reid_data(str(tmp_path), **columns)
    assert data.query.identities.tolist() == [3, 2]
    assert data.gallery.identities.tolist() == [2, 4]


def test_columns_and_splits_that_are_not_there(tmp_path):
    table(person=PERSON, place=PLACE).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"identity_column='people' is not in .*: photo, person, place"):
        load_reid_data(str(tmp_path), identity_column="people")
    with pytest.raises(ValueError, match=r"camera_column='camera' is not in .*: photo, person, place"):
        load_reid_data(str(tmp_path), identity_column="person", camera_column="camera")
    unknown = load_reid_data(str(tmp_path)).train
    assert unknown.cameras is None
    assert (unknown.identities == -1).all()
    with pytest.raises(ValueError, match="has no split 'learn'; its splits are: train"):
        load_reid_data(str(tmp_path), train_split="learn")


def test_a_known_layout_needs_no_columns(market):
    data = load_reid_data(str(market.parent), identity_column="person", camera_column="place")
    assert data.train.images.column_names == ["image"]
    assert data.gallery.identities.tolist() == [-1, 0, 3]


def split_of(identities, cameras=None):
    images = Dataset.from_dict({"image": [None] * len(identities)})
    return ReidSplit(images, np.array(identities), None if cameras is None else np.array(cameras))


def describe(train, query=None, gallery=None):
    return RetrievalEvaluator(ReidData(train, query, gallery)).describe("images")


def test_what_is_scored_depends_on_what_is_known():
    assert describe(split_of([0, 0, 1], [0, 1, 0])) == "every training image among those of other cameras"
    assert describe(split_of([0, 0, 1])) == "every training image among all others"
    assert describe(split_of([0, 0, 1], [0, 0, 0])) == "every training image among all others"  # one camera
    one, two = split_of([5], [0]), split_of([5, 6], [1, 0])
    assert describe(split_of([-1]), one, two) == "queries in the gallery under other cameras"
    assert describe(split_of([-1]), split_of([5]), two) == "queries in the gallery"
    for cameras in ([-1, -1, 0], [-1, 2, 0]):  # no two are known
        assert describe(split_of([0, 0, 1], cameras)) == "every training image among all others"
    for unknown in (split_of([-1, -1]), split_of([0, 1])):  # crops without a name; one image of each
        assert not can_score(ReidData(unknown, None, None))
        with pytest.raises(ValueError, match="no query has a match"):
            describe(unknown)


def test_folders_of_persons_are_identities(tmp_path):
    for person in ("ann", "bob"):
        for i in range(2):
            draw(tmp_path / person / f"{i}.png")
    data = load_reid_data(str(tmp_path))
    assert data.train.identities.tolist() == [0, 0, 1, 1]
    assert data.train.cameras is None


def test_folders_of_images_may_be_queries_and_gallery(tmp_path):
    for name in ("train/ann", "train/bob", "query/cid", "gallery/cid", "gallery/dan"):
        draw(tmp_path / name / "0.png")
    data = load_reid_data(str(tmp_path))
    assert len(data.query.images) == 1
    assert data.query.identities[0] in data.gallery.identities


def test_missing_cameras_are_counted(tmp_path, caplog):
    draw(tmp_path / "0.png")
    columns = {
        "image": [str(tmp_path / "0.png")] * 4,
        "identity": ["x", "x", "y", None],
        "camera": ["a", None, "b", None],
    }
    features = Features({"image": Image(), "identity": Value("string"), "camera": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    load_reid_data(str(tmp_path))
    assert "1 of 3 images of train that have an identity have no camera in column 'camera'" in caplog.text


def test_copies_of_the_query_alone_are_no_match(tmp_path):
    for name in ("train/ann", "query/bob", "gallery/bob"):
        draw(tmp_path / name / "0.png")
    assert not can_score(load_reid_data(str(tmp_path)))
    draw(tmp_path / "gallery" / "bob" / "another.png")
    assert can_score(load_reid_data(str(tmp_path)))


def test_parquet_files_without_types(tmp_path):
    draw(tmp_path / "0.png")
    value = {"bytes": (tmp_path / "0.png").read_bytes(), "path": None}
    (tmp_path / "[x]").mkdir()
    for split in ("train", "query", "gallery"):
        pd.DataFrame({"image": [value] * 2, "identity": [1, 2]}).to_parquet(tmp_path / "[x]" / f"{split}.parquet")
    assert load_reid_data(str(tmp_path / "[x]")).query.identities.tolist() == [1, 2]
