"""A file that has changed is noticed, wherever its name stands: neither manifest nor decoded pixels outlive it."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_plr.data import file_stamps
from hf_plr.data.file_stamps import list_files, stamp_column, stamp_files
from hf_plr.data.image_store import ImageGeometry, ImageStore
from hf_plr.models.vision import small_vit_processor


def encode(grey: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("L", (16, 16), grey).save(buffer, "PNG")
    return buffer.getvalue()


def name_images(paths: list[str | None]) -> Dataset:
    rows = [None if path is None else {"bytes": None, "path": path} for path in paths]
    stored = Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    return Dataset.from_dict({"image": rows}, features=stored).cast_column("image", Image())


def open_store(paths: list[str | None], folder: Path) -> ImageStore:
    return ImageStore(
        name_images(paths),
        "image",
        ImageGeometry(small_vit_processor(16), 3),
        skip_unreadable=True,
        manifest_dir=folder / "manifests",
        cache_dir=folder / "cache",
    )


def read_greys(store: ImageStore) -> list[int]:
    return [int(store[position]["pixel_values"].max()) for position in range(len(store))]


@pytest.mark.parametrize("place", ["first", "last"])
def test_every_file_counts_also_where_rows_have_none(tmp_path, place):
    """Also the first row, and a file that none of the evenly spaced ones would be."""
    for row in range(5000):
        path = tmp_path / f"{row}.png"
        if row == 0:
            path.write_bytes(encode(7))
        elif row != 77:
            os.link(tmp_path / "0.png", path)
    (tmp_path / "77.png").write_bytes(b"no image")
    paths: list[str | None] = [str(tmp_path / f"{row}.png") for row in range(5000)]
    paths.insert(0 if place == "first" else 5000, None)
    store = open_store(paths, tmp_path).check()
    missing, damaged = paths.index(None), paths.index(str(tmp_path / "77.png"))
    assert store.unreadable == sorted([missing, damaged])
    assert open_store(paths, tmp_path).is_checked
    (tmp_path / "77.png").write_bytes(encode(8))
    (tmp_path / "78.png").unlink()
    (tmp_path / "78.png").write_bytes(encode(99))
    again = open_store(paths, tmp_path)
    assert not again.is_checked
    assert again.check().unreadable == [missing]
    greys = {int(again.rows[position]): grey for position, grey in enumerate(read_greys(again))}
    assert (greys[damaged], greys[damaged + 1], greys[damaged + 2]) == (8, 99, 7)


def test_files_in_an_archive_change_with_it(tmp_path):
    archive = tmp_path / "images.zip"

    def write(grey: int, damaged: tuple[int, ...]) -> None:
        with zipfile.ZipFile(archive, "w") as file:
            for row in range(5):
                file.writestr(f"{row}.png", b"no image" if row in damaged else encode(grey))

    paths: list[str | None] = [f"zip://{row}.png::{archive}" for row in range(5)]
    write(5, (1, 3))
    assert open_store(paths, tmp_path).check().unreadable == [1, 3]
    assert open_store(paths, tmp_path).is_checked
    write(50, (1,))
    again = open_store(paths, tmp_path)
    assert not again.is_checked
    assert again.check().unreadable == [1]
    assert read_greys(again) == [50] * 4


def test_files_of_all_forms_of_columns():
    text = Dataset.from_dict({"a": ["x", None, "y"]})
    assert list_files(text, "a").to_pylist() == ["x", None, "y"]
    assert list_files(text.select([2, 0]), "a").to_pylist() == ["y", "x"]
    both = Dataset.from_dict(
        {"a": [{"bytes": b"1", "path": "x"}, {"bytes": None, "path": "y"}, None, {"bytes": None, "path": None}]}
    )
    assert list_files(both, "a").to_pylist() == [None, "y", None, None]
    assert list_files(both.select([0, 2, 3]), "a") is None
    for rows in ([{"bytes": b"1"}], [{"array": [0.0], "sampling_rate": 8000}], [[0, 1]], [1]):
        data = Dataset.from_dict({"a": rows})
        assert list_files(data, "a") is None
        assert stamp_column(data, "a") == ""


def test_the_stamp_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    """Processes look at neighbouring rows each."""
    monkeypatch.setattr(file_stamps, "BLOCK_ROWS", 4)
    for row in range(11):
        (tmp_path / str(row)).write_bytes(b"1" * row)
    column = Dataset.from_dict({"a": [str(tmp_path / str(row)) for row in range(11)]})
    expected = stamp_column(column, "a")

    class State:
        num_processes, process_index = 2, 0

    sent: list[bytes] = []
    monkeypatch.setattr(file_stamps, "gather_objects", lambda state, digests: sent.append(digests) or [digests])
    for State.process_index in range(2):
        stamp_column(column, "a", State)
    assert [len(digests) // 32 for digests in sent] == [2, 1]
    monkeypatch.setattr(file_stamps, "gather_objects", lambda *_: sent[:2])
    assert stamp_column(column, "a", State) == expected
    monkeypatch.undo()
    (tmp_path / "9").write_bytes(b"")
    monkeypatch.setattr(file_stamps, "BLOCK_ROWS", 4)
    assert stamp_column(column, "a") != expected


def test_stamps_know_sizes_times_and_what_is_missing(tmp_path):
    path, archive = tmp_path / "a", tmp_path / "b.zip"
    names = [str(path), f"zip://a::{archive}", None, "hf://c", "no\0name"]
    stamps = [stamp_files(names)]
    path.write_bytes(b"1")
    stamps.append(stamp_files(names))
    os.utime(path, ns=(1, 1))
    stamps.append(stamp_files(names))
    path.write_bytes(b"12")
    os.utime(path, ns=(1, 1))
    stamps.append(stamp_files(names))
    archive.write_bytes(b"1")
    stamps.append(stamp_files(names))
    assert len(set(stamps)) == 5


def test_files_are_looked_at_once_per_store(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(encode(1))
    looked_at = np.zeros(1, np.int64)

    def counted(paths):
        looked_at[0] += len(paths)
        return stamp_files(paths)

    monkeypatch.setattr(file_stamps, "stamp_files", counted)
    open_store([str(tmp_path / "0.png")], tmp_path).check()
    assert looked_at.tolist() == [1]
