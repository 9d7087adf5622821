"""Damaged weights and configurations of models."""

from __future__ import annotations

import pytest
from helpers.damaged import check_damaged

from hf_plr.models.vision import load_backbone

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_models(tmp_path, tiny_vit, file):
    tiny_vit().save_pretrained(tmp_path)
    check_damaged(tmp_path / file, lambda: load_backbone(tmp_path), named=tmp_path, examples=40)
