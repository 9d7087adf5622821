"""Damaged lists of images; none leads out of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Image as ImageColumn
from helpers.damaged import check_damaged

from hf_plr.reid.reid_data import load_reid_folder

pytestmark = pytest.mark.timeout(300)


def test_lists_of_images(tmp_path):
    names = ["0000/0000_000_01_0_0.jpg", "0001/0001_000_12_0_0.jpg"]
    for folder in ("train", "test"):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
    for split in ("train", "val", "query", "gallery"):
        (tmp_path / f"list_{split}.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))

    def read():
        for row in load_reid_folder(tmp_path)["train"].cast_column("image", ImageColumn(decode=False)).to_list():
            assert Path(row["image"]["path"]).resolve().is_relative_to(tmp_path / "train")

    check_damaged(tmp_path / "list_train.txt", read, named=tmp_path, examples=60)
    outside = tmp_path.parent / "a_b_1_c.jpg"
    outside.touch()
    for path in ("../../a_b_1_c.jpg", str(outside)):
        (tmp_path / "list_train.txt").write_text(f"{path} 0\n")
        with pytest.raises(ValueError, match=r"list_train.txt, line 1: .* is not below"):
            load_reid_folder(tmp_path)
    for line in (
        f"{names[0]} {'9' * 30}",
        f"{names[0]} ²",
        f"a_b_{'1' * 30}_c 0",
        "x" * 5000 + "_b_1_c 0",
        "a\0_b_1_c 0",
    ):
        (tmp_path / "list_train.txt").write_text(f"{line}\n")
        with pytest.raises(ValueError, match=r"list_train.txt"):
            load_reid_folder(tmp_path)
