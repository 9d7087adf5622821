"""The recipes say and use the defaults that the trainers have."""

from __future__ import annotations

import pytest
from helpers.launching import load_script
from helpers.paths import HUBERT_PLR, REID_PLR, VIT_PLR

from hf_plr.training_args.defaults import FROM_SCRATCH, PRETRAINED


@pytest.fixture
def text_of(capsys):
    def text_of(script):
        with pytest.raises(SystemExit):
            load_script(script).main(["--help"])
        return " ".join(capsys.readouterr().out.split())

    return text_of


def written(value):
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


@pytest.mark.parametrize(("script", "kind"), [(VIT_PLR, "image"), (HUBERT_PLR, "audio"), (REID_PLR, "image")])
def test_help_tells_the_defaults_of_a_pretrained_backbone(script, kind, text_of):
    text = text_of(script)
    of_model = text.partition("options:")[2].partition("--model_name_or_path")[2].partition(" --")[0]
    for name, value in PRETRAINED[kind].items():
        assert name in of_model
        if (script, name) != (REID_PLR, "num_train_epochs"):
            assert f"{name} to {written(value)}" in of_model


def test_help_tells_the_defaults_that_a_recipe_sets(text_of):
    def help_of(name):
        return text.partition(f" --{name} ")[2].partition(" --")[0]

    text = text_of(REID_PLR)
    for name, value in {"num_train_epochs": 30, "clusterer": "dbscan", "augmentation": "reid"}.items():
        assert help_of(name).endswith(f"(default: {value})")
        assert "efault" not in help_of(name).removesuffix(f"(default: {value})")
    assert "mirroring, small shifts, erasing" in help_of("augmentation")
    assert "1e-4 with a pretrained backbone" in help_of("source_learning_rate")
    text = text_of(HUBERT_PLR)
    assert help_of("per_device_eval_batch_size").endswith("(default: 64)")


@pytest.mark.parametrize("script", [VIT_PLR, REID_PLR])
def test_recipes_for_images_show_no_arguments_of_sounds(script, text_of):
    text = text_of(script)
    for name in ("audio_column", "max_seconds", "segment_seconds", "segment_overlap", "sound_cache_gib"):
        assert f"--{name} " not in text


def test_help_tells_both_defaults_of_an_argument(text_of):
    text = text_of(HUBERT_PLR)
    assert "Peak learning rate. Default: 0.001, from a pretrained backbone 3e-5" in text.replace("1e-3", "0.001")
    for name, value in FROM_SCRATCH.items():
        said = text.partition(f"--{name} ")[2].partition(" --")[0].replace("1e-3", "0.001")
        assert (
            f"Default: {written(value)}, from a pretrained backbone {written(PRETRAINED['audio'][name])}" in said
            or (
                name == "per_device_train_batch_size"
                and "Default: 128, from a pretrained backbone 64 (sounds: 16)" in said
            )
        )


def test_recipes_for_images_and_sounds_leave_these_defaults_to_the_trainer(tmp_path):
    given = {"model_name_or_path": "model", "dataset_name": "data", "output_dir": str(tmp_path)}
    for script in (VIT_PLR, HUBERT_PLR):
        assert not set(load_script(script).adjust_defaults(given)) & set(FROM_SCRATCH)


def test_re_identification_has_thirty_epochs_and_the_rate_of_its_start(tmp_path):
    recipe = load_script(REID_PLR)
    given = {"dataset_name": "data", "output_dir": str(tmp_path), "source_dataset_name": "source"}
    names = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "source_learning_rate")
    new = recipe.adjust_defaults(given)
    assert [new.get(name) for name in names] == [1e-3, 30, 128, None]
    trained = recipe.adjust_defaults({**given, "model_name_or_path": "model"})
    assert [trained.get(name) for name in names] == [3e-5, 30, 64, 1e-4]
