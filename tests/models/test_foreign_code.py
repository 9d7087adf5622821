"""Code that lies beside a model is not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_plr.models.speech import load_feature_extractor, load_speech_backbone, small_hubert_extractor
from hf_plr.models.vision import load_backbone, load_image_processor, small_vit_processor

CODE = """
from pathlib import Path
from transformers import {base}

Path({mark!r}).touch()


class Foreign({base}):
    pass
"""


def add_code(folder: Path, file: str, base: str, *classes: str, **changes: str) -> Path:
    """Have a JSON file name a class of a module beside it for some Auto classes; returns what that module leaves."""
    mark = folder / "was-run"
    (folder / "foreign.py").write_text(CODE.format(base=base, mark=str(mark)))
    content = json.loads((folder / file).read_text())
    content = {**content, **changes, "auto_map": dict.fromkeys(classes, "foreign.Foreign")}
    (folder / file).write_text(json.dumps(content))
    return mark


@pytest.mark.parametrize("load", [load_backbone, load_speech_backbone])
def test_a_model_of_a_foreign_class_is_refused(tmp_path, tiny_vit, load):
    tiny_vit().save_pretrained(tmp_path)
    mark = add_code(tmp_path, "config.json", "ViTConfig", "AutoConfig", "AutoModel", model_type="foreign")
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)
    assert not mark.exists()


def test_a_model_of_a_known_class_is_that_of_transformers(tmp_path, tiny_vit):
    tiny_vit().save_pretrained(tmp_path)
    mark = add_code(tmp_path, "config.json", "ViTModel", "AutoModel")
    assert type(load_backbone(tmp_path)).__module__.startswith("transformers.")
    assert not mark.exists()


def test_foreign_processors_are_not_run(tmp_path, tiny_vit, tiny_hubert):
    for make, processor, auto, load in (
        (tiny_vit, small_vit_processor(16), "AutoImageProcessor", load_image_processor),
        (tiny_hubert, small_hubert_extractor(8_000), "AutoFeatureExtractor", load_feature_extractor),
    ):
        folder = tmp_path / auto
        model = make()
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        mark = add_code(folder, "preprocessor_config.json", type(processor).__name__, auto)
        model.name_or_path = str(folder)
        assert type(load(model)).__module__.startswith("transformers.")
        assert not mark.exists()
