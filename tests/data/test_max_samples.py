"""A part of a data set that is drawn reads no more than its own samples."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from helpers.launching import load_script
from helpers.paths import VIT_PLR

from hf_plr.data.loading import draw_rows

opened: list[str] | None = None


def note_opened(event, arguments):
    """An audit hook, which cannot be removed; it notes files while there is a list."""
    if event == "open" and opened is not None:
        opened.append(str(arguments[0]))


sys.addaudithook(note_opened)


def test_a_part_of_a_folder_reads_no_other_file(tmp_path, some_digits, monkeypatch):
    for number in range(60):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        some_digits[number]["image"].save(folder / f"{number:02d}.jpg")
    recipe = load_script(VIT_PLR)
    arguments = ["--dataset_name", str(tmp_path / "photos"), "--max_samples", "12", "--use_cpu"]
    parsed = recipe.parse([*arguments, "--output_dir", str(tmp_path / "out")])
    noted: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "opened", noted)
    trainer, rows = recipe.build_trainer(*parsed)
    trainer.extract_features()
    trainer.train_dataset.digest()
    read = {os.path.basename(path) for path in noted if path.endswith(".jpg")}
    assert len(rows) == 12
    assert read == {os.path.basename(path) for path in trainer.train_dataset.files()}


def test_larger_draws_contain_smaller_ones():
    small, large = draw_rows(1000, 50, seed=3), draw_rows(1000, 400, seed=3)
    assert len(np.unique(small)) == 50
    assert np.isin(small, large).all()
    assert not np.isin(small, draw_rows(1000, 400, seed=4)).all()
    np.testing.assert_array_equal(draw_rows(20, 50, seed=3), np.arange(20))
    with pytest.raises(ValueError, match="max_samples=0 must be at least 1"):
        draw_rows(20, 0, seed=3)
