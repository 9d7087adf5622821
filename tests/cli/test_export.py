"""`hf-plr export`: a folder per cluster, with links to the files or copies of them."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from hf_plr.cli import main
from hf_plr.data.content_digest import digest_content
from hf_plr.refinement.cluster_tree import make_tree
from hf_plr.report.names import write_cluster_names
from hf_plr.report.tree_file import write_tree

FILES = ["a/1.jpg", "a/2.jpg", "b/1.JPG", "b/3.jpg", "b/c/1.jpg", "4.jpg"]
LABELS = [0, 0, 0, 2, 0, -1]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number, file in enumerate(FILES):
        path = folder / "train" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo %d" % number)
    return folder


def write_run(folder, photos, **columns):
    folder.mkdir(exist_ok=True)
    digests = [f"{digest_content(str(photos / 'train' / file)):016x}" for file in FILES]
    frame = pd.DataFrame({"index": range(len(FILES)), "file": FILES, "label": LABELS, "digest": digests, **columns})
    frame.to_parquet(folder / "pseudo_labels.parquet")
    return frame


@pytest.fixture
def out(tmp_path, photos):
    folder = tmp_path / "out"
    write_run(folder, photos)
    return folder


@pytest.fixture
def export(out, photos, tmp_path, capsys):
    """Runs the command; returns the contents of the files in the folders, and what it said."""

    def call(*options, dataset=photos):
        output = tmp_path / "sorted"
        status = main(["export", str(out), "--dataset", str(dataset), "--output", str(output), *options])
        said = capsys.readouterr()
        assert status == 0, said.err
        return {p.relative_to(output).as_posix(): p.read_text() for p in output.rglob("*") if p.is_file()}, said.out

    return call


EXPECTED = {
    "000/1.jpg": "photo 0",
    "000/2.jpg": "photo 1",
    "000/b_1.JPG": "photo 2",
    "000/b_c_1.jpg": "photo 4",
    "002/3.jpg": "photo 3",
    "none/4.jpg": "photo 5",
}


def test_folders_hold_links_to_the_files(export, photos, tmp_path):
    found, said = export()
    assert found == EXPECTED
    assert f"Wrote {tmp_path / 'sorted'}: 6 links to 6 files, in folders of 2 clusters, and of samples in none" in said
    link = tmp_path / "sorted" / "000" / "b_1.JPG"
    assert os.readlink(link) == str(photos / "train" / "b" / "1.JPG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos", "sorted"]


def test_copies_are_files_of_their_own(export, photos, tmp_path):
    (tmp_path / "sorted").mkdir()  # an empty folder is taken
    found, said = export("--copy", dataset=photos / "train")
    assert found == EXPECTED
    assert "6 copies of 6 files" in said
    assert not any(path.is_symlink() for path in (tmp_path / "sorted").rglob("*"))


def test_names_are_in_those_of_folders_with_characters_that_every_file_system_takes(export, out):
    write_cluster_names(out, {0: 'a/b: "Käfer"?', 2: "..", 9: "gone"})
    assert {name.split("/")[0] for name in export()[0]} == {"000_a_b_Käfer", "002", "none"}


def test_clusters_of_a_level(export, out, photos, capsys):
    write_tree(out, make_tree(np.array([0, 2]), np.array([4, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])))
    write_run(out, photos, level_1=[0, 0, 0, 0, 0, -1])
    assert {name.split("/")[0] for name in export("--level", "1")[0]} == {"000", "none"}
    assert main(["export", str(out), "--dataset", str(photos), "--output", "x", "--level", "7"]) == 2
    assert "has no column level_7, but level_1" in capsys.readouterr().err


def test_segments_are_one_file_in_each_of_their_clusters(export, out, photos):
    frame = write_run(out, photos)
    pd.concat([frame, frame.assign(label=2), frame]).to_parquet(out / "pseudo_labels.parquet")
    found, said = export()
    assert "11 links to 6 files" in said
    assert len(found) == 11


def test_names_that_are_taken_get_numbers(export, out, photos):
    extra = photos / "train" / "b_1.JPG"
    extra.write_text("photo 6")
    frame = write_run(out, photos)
    row = frame.iloc[:1].assign(file="b_1.JPG", digest=f"{digest_content(str(extra)):016x}")
    pd.concat([row, frame]).to_parquet(out / "pseudo_labels.parquet")
    assert export()[0] == {**EXPECTED, "000/b_1.JPG": "photo 6", "000/b_1_2.JPG": "photo 2"}


def test_files_that_are_gone_or_have_other_content_are_counted(export, out, photos):
    (photos / "train" / "a" / "2.jpg").unlink()
    (photos / "train" / "4.jpg").write_text("another photo under a deleted one's name")
    found, said = export()
    assert f"Not where they were in {photos / 'train'}, and left out: 1, such as a/2.jpg" in said
    assert f"Other content in {photos / 'train'} than in the run, and left out: 1, such as 4.jpg" in said
    assert "4 links to 4 files, in folders of 2 clusters" in said
    assert found == {k: v for k, v in EXPECTED.items() if k not in ("000/2.jpg", "none/4.jpg")}


def test_without_digests_what_has_the_name_is_taken(export, out, photos):
    write_run(out, photos).drop(columns="digest").to_parquet(out / "pseudo_labels.parquet")
    (photos / "train" / "4.jpg").write_text("changed")
    assert export()[0] == {**EXPECTED, "none/4.jpg": "changed"}


def test_each_file_is_compared_not_a_few(export, out, photos):
    files = [f"{number:03}.jpg" for number in range(60)]
    for file in files:
        (photos / "train" / file).write_text(f"photo {file}")
    digests = [f"{digest_content(str(photos / 'train' / file)):016x}" for file in files]
    frame = pd.DataFrame({"index": range(60), "file": files, "label": [0, 1] * 30, "digest": digests})
    pd.concat([frame, frame]).to_parquet(out / "pseudo_labels.parquet")  # as segments, two of each file
    for file in files[3:58:9]:
        (photos / "train" / file).write_text("changed")
    found, said = export()
    assert set(found.values()) == {f"photo {file}" for file in set(files) - set(files[3:58:9])}
    assert "than in the run, and left out: 7, such as 003.jpg" in said


def test_what_does_not_fit_is_refused_and_nothing_is_written(out, photos, tmp_path, capsys):
    def error(output="sorted", dataset=photos, folder=out):
        before = sorted(tmp_path.rglob("*"))
        command = ["export", str(folder), "--dataset", str(dataset), "--output", str(tmp_path / output)]
        assert main(command) == 2
        assert sorted(tmp_path.rglob("*")) == before
        said = capsys.readouterr().err
        assert said.startswith("hf-plr export: error: ")
        assert said.count("\n") == 1
        return said

    assert "out is not empty: name a new folder" in error("out")
    assert "is in --dataset" in error("photos/sorted")
    assert "is no folder here: name that of the run's images or recordings" in error(dataset="mnist")
    assert "has no a/1.jpg, nor has a folder in it" in error(dataset=tmp_path / "out")
    assert "holds no pseudo_labels.parquet" in error(folder=photos)
    other = tmp_path / "other" / "a" / "1.jpg"
    other.parent.mkdir(parents=True)
    other.write_text("another photo")
    assert "has files of these names with other content, such as a/1.jpg" in error(dataset=tmp_path / "other")
    frame = write_run(out, photos)
    frame.assign(file="../secret").to_parquet(out / "pseudo_labels.parquet")
    assert "the file ../secret is not below a folder of all files" in error()
    frame.drop(columns="file").to_parquet(out / "pseudo_labels.parquet")
    assert "names no files, as the run's data were not files in a folder" in error()


def test_linked_folders_are_followed_as_in_training(export, out, photos, tmp_path, capsys):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "around").symlink_to(linked)
    (linked / "broken").symlink_to("nowhere")
    (linked / "train").symlink_to(os.path.join("..", "photos", "train"))
    (linked / "again").symlink_to(photos / "train")  # the same folder counts once
    assert export(dataset=linked)[0] == EXPECTED
    inside = photos / "train" / "sorted"
    assert main(["export", str(out), "--dataset", str(linked), "--output", str(inside)]) == 2
    assert f"{inside} is in --dataset {linked}" in capsys.readouterr().err


def test_two_folders_with_the_same_files_are_named(out, photos, tmp_path, capsys):
    write_run(out, photos)
    os.rename(photos / "train", photos / "one")
    shutil.copytree(photos / "one", photos / "two")
    assert main(["export", str(out), "--dataset", str(photos), "--output", str(tmp_path / "sorted")]) == 2
    assert "name one of these" in capsys.readouterr().err


def test_where_no_links_can_be_made_copies_are_suggested(out, photos, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.symlink_to", fail)
    assert main(["export", str(out), "--dataset", str(photos), "--output", str(tmp_path / "sorted")]) == 2
    assert "takes no links ([Errno 1] Operation not permitted): give --copy" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
