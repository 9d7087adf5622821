"""`hf-plr embed`: the features of the trainer, in a file."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset
from helpers.tiny import deep_images, image_trainer

from hf_plr import PLRTrainer
from hf_plr.cli import main


def write(dataset, folder):
    folder.mkdir()
    dataset.to_parquet(folder / "train.parquet")
    return str(folder)


def test_images_have_the_features_of_the_run(make_trainer, some_digits, tmp_path, capsys):
    trainer = make_trainer(num_train_epochs=1, pooling="mean")
    trainer.train()
    trainer.save_model()
    out = trainer.args.output_dir
    (tmp_path / "out" / "metrics.json").write_text(json.dumps({"settings": {"pooling": "mean"}}))
    command = ["embed", "--model", out, "--dataset", write(some_digits, tmp_path / "data")]
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 0
    assert "203 features of 32 numbers" in capsys.readouterr().out
    found = pd.read_parquet(tmp_path / "features.parquet")
    assert found["index"].tolist() == list(range(203))
    np.testing.assert_allclose(np.stack(found["feature"]), trainer.extract_features().numpy(), atol=1e-6)
    loaded = load_dataset("parquet", data_files=str(tmp_path / "features.parquet"), cache_dir=str(tmp_path / "cache"))
    assert np.asarray(loaded["train"]["feature"][:]).shape == (203, 32)

    assert main([*command, "--pooling", "cls", "--output", str(tmp_path / "cls.parquet")]) == 0
    cls = np.stack(pd.read_parquet(tmp_path / "cls.parquet")["feature"])
    assert np.abs(cls - np.stack(found["feature"])).max() > 0.01
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err
    (tmp_path / "out" / "metrics.json").write_text("{")
    assert main([*command, "--output", str(tmp_path / "other.parquet")]) == 2
    assert "give --pooling, --layer or --max_seconds" in capsys.readouterr().err


def test_deep_images_are_decoded_as_in_the_run(make_trainer, tmp_path, capsys):
    images = deep_images()
    trainer = image_trainer(tmp_path / "deep", images, num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    assert "# 0 to 4,095 become 0 to 255" in trainer.modality.usage_snippet("name")
    assert "np" not in make_trainer().modality.usage_snippet("name")
    dark = [row for row in range(len(images)) if row % 3 == 0]
    data = write(images.select(dark), tmp_path / "data")
    command = ["embed", "--model", trainer.args.output_dir, "--dataset", data]
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 0
    found = np.stack(pd.read_parquet(tmp_path / "features.parquet")["feature"])
    np.testing.assert_allclose(found, trainer.extract_features().numpy()[dark], atol=1e-6)
    assert main([*command, "--pixel_range", "0", "1023", "--output", str(tmp_path / "other.parquet")]) == 0
    assert np.abs(np.stack(pd.read_parquet(tmp_path / "other.parquet")["feature"]) - found).max() > 0.01
    assert main([*command, "--pixel_range", "5", "1", "--output", str(tmp_path / "none.parquet")]) == 2
    assert "the lower first" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{}, {"layer": 1, "max_seconds": 0.5}])
def test_sounds_have_the_features_of_the_run(make_sound_trainer, some_sounds, tmp_path, settings):
    trainer = make_sound_trainer(PLRTrainer, num_train_epochs=1, **settings)
    trainer.save_model()
    stored = {name: str(value) for name, value in settings.items()}
    (tmp_path / "out" / "metrics.json").write_text(json.dumps({"settings": stored}))
    command = ["embed", "--model", trainer.args.output_dir, "--dataset", write(some_sounds, tmp_path / "data")]
    assert main([*command, "--batch_size", "8", "--output", str(tmp_path / "features.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "features.parquet")
    assert found["index"].tolist() == list(range(83))
    of_run = trainer.extract_features().numpy()[np.argsort(trainer.train_dataset.rows)]
    np.testing.assert_allclose(np.stack(found["feature"]), of_run, atol=1e-6)
