"""Damaged weights and configurations of models, and folders that are none."""

from __future__ import annotations

import pytest
from helpers.damaged import check_damaged

from hf_plr.models.vision import load_backbone

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_models(tmp_path, tiny_vit, file):
    tiny_vit().save_pretrained(tmp_path)
    check_damaged(tmp_path / file, lambda: load_backbone(tmp_path), named=tmp_path, examples=40)


def test_a_folder_of_models_names_them(tmp_path, tiny_vit):
    for name in ("fashion", "digits"):
        tiny_vit().save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=r"is no model; there are models in .*digits, .*fashion$"):
        load_backbone(str(tmp_path))
