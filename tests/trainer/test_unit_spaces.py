"""`UnitTrainer` in other spaces of frames: resumed, published, refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Value
from helpers.runs import StopAt, assert_same_weights, weights
from safetensors.torch import load_file, save_file

from hf_plr.cli import main
from hf_plr.units.encoder import UnitEncoder

BY_SPEAKER = {"frame_scaling": "speaker", "speaker_column": "speaker", "whitening_shrinkage": 0.1}
SPEAKERS = ["ada", "bob", None, "cleo", "bob", "ada", "dan"]


@pytest.fixture(scope="module")
def spoken(some_sounds):
    """83 sounds with speakers, of whom some are unknown."""
    return some_sounds.add_column("speaker", [SPEAKERS[i % 7] for i in range(83)])


@pytest.fixture
def make(make_sound_trainer, spoken):
    def make_trainer(trainer=None, **arguments):
        return make_sound_trainer(trainer={"train_dataset": spoken, **(trainer or {})}, **arguments)

    return make_trainer


@pytest.mark.parametrize("arguments", [BY_SPEAKER, {"frame_scaling": "recording"}], ids=["speaker", "recording"])
def test_resume_is_bit_exact(make, tmp_path, arguments):
    whole = make(output_dir=str(tmp_path / "whole"), **arguments)
    whole.train()
    make({"callbacks": [StopAt(4)]}, output_dir=str(tmp_path / "part"), **arguments).train()
    resumed = make(output_dir=str(tmp_path / "part"), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    assert_same_weights(weights(whole), weights(resumed))
    whole.save_labels(tmp_path / "whole")
    resumed.save_labels(tmp_path / "part")
    for name in ("centroids.safetensors", "units.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


def test_published_units_are_those_of_the_run(make, spoken, tmp_path, capsys):
    trainer = make(num_train_epochs=1, **BY_SPEAKER)
    trainer.train()
    trainer.save_model()
    trainer.save_labels(trainer.args.output_dir)
    assert UnitEncoder.load(trainer.args.output_dir).space.scaling == "speaker"
    published = pd.read_parquet(tmp_path / "out" / "units.parquet")["units"]
    (tmp_path / "new").mkdir()
    spoken.to_parquet(tmp_path / "new" / "train.parquet")
    output = tmp_path / "units.parquet"
    command = ["units", "--model", trainer.args.output_dir, "--dataset", str(tmp_path / "new"), "--batch_size", "8"]
    command += ["--output", str(output), "--overwrite"]

    assert main([*command, "--speaker_column", "speaker"]) == 0
    assert "No --speaker_column" not in capsys.readouterr().out
    found = pd.read_parquet(output)["units"]
    assert all(np.array_equal(one, other) for one, other in zip(found, published, strict=True))

    assert main(command) == 0
    assert "No --speaker_column: the frames of each recording are standardised by themselves" in capsys.readouterr().out
    alone = pd.read_parquet(output)["units"]
    differing = [not np.array_equal(one, other) for one, other in zip(alone, published, strict=True)]
    assert any(differing)
    assert not any(differing[i] for i in range(83) if SPEAKERS[i % 7] is None)  # these were by themselves before

    (tmp_path / "unknown").mkdir()
    nobody = spoken.remove_columns("speaker").add_column("speaker", [None] * 83, feature=Value("string"))
    nobody.to_parquet(tmp_path / "unknown" / "train.parquet")
    unknown = [str(tmp_path / "unknown") if word == str(tmp_path / "new") else word for word in command]
    for more in ([], ["--segment_seconds", "0.4"]):
        assert main([*unknown, *more, "--speaker_column", "speaker"]) == 0
        by_nobody = pd.read_parquet(output)["units"]
        assert main([*command, *more]) == 0
        expected = pd.read_parquet(output)["units"]
        assert all(np.array_equal(one, other) for one, other in zip(by_nobody, expected, strict=True))
    capsys.readouterr()

    assert main([*command, "--speaker_column", "digit"]) == 2
    assert "speaker_column='digit' is not in the data set" in capsys.readouterr().err


def test_frames_that_are_not_finite_have_no_units(make, some_sounds, tmp_path, capsys):
    trainer = make(num_train_epochs=1, frame_scaling="global")
    trainer.train()
    trainer.save_model()
    trainer.save_labels(trainer.args.output_dir)
    (tmp_path / "new").mkdir()
    waveforms = [np.random.default_rng(i).normal(0, 0.1, 4000 - 100 * i).astype(np.float32) for i in range(6)]
    waveforms[4] *= np.float32(1e38)  # each sample is a number, but not their variance
    write_sounds(tmp_path / "new" / "train.parquet", waveforms)
    output = tmp_path / "units.parquet"
    command = ["units", "--model", trainer.args.output_dir, "--dataset", str(tmp_path / "new"), "--batch_size", "8"]
    assert main([*command, "--output", str(output)]) == 2
    assert "the frames of row 4 are NaN or infinite" in capsys.readouterr().err
    assert not output.exists()

    weights_file = tmp_path / "out" / "model.safetensors"
    state = {name: torch.full_like(value, np.nan) for name, value in load_file(weights_file).items()}
    save_file(state, weights_file, metadata={"format": "pt"})
    command[4] = str(tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    write_sounds(tmp_path / "whole" / "train.parquet", waveforms[:4])
    assert main([*command, "--output", str(output)]) == 2
    assert "the frames of row 3 are NaN or infinite" in capsys.readouterr().err  # the shortest comes first


def write_sounds(path, waveforms):
    sounds = [{"array": waveform, "sampling_rate": 8000} for waveform in waveforms]
    Dataset.from_dict({"audio": sounds}).to_parquet(path)


def test_a_column_of_speakers_without_effect_is_refused(make, spoken, tmp_path, capsys):
    trainer = make(num_train_epochs=1, frame_scaling="recording")
    trainer.train()
    trainer.save_model()
    trainer.save_labels(trainer.args.output_dir)
    command = ["units", "--model", trainer.args.output_dir, "--dataset", str(tmp_path), "--speaker_column", "speaker"]
    assert main([*command, "--output", str(tmp_path / "units.parquet")]) == 2
    assert "--speaker_column speaker has no effect" in capsys.readouterr().err


def test_checkpoints_of_another_space_are_refused(make, spoken, tmp_path):
    make({"callbacks": [StopAt(3)]}, **BY_SPEAKER).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-3")
    for name, value in {"whitening_shrinkage": 0.2, "frame_scaling": "recording"}.items():
        changed = {**BY_SPEAKER, name: value}
        if changed["frame_scaling"] != "speaker":
            changed["speaker_column"] = None
        with pytest.raises(ValueError, match=f"{name} was {BY_SPEAKER[name]!r} and is {value!r}"):
            make(**changed).train(resume_from_checkpoint=checkpoint)
    others = spoken.remove_columns("speaker").add_column("speaker", ["eve"] * 83)
    with pytest.raises(ValueError, match="speakers was '"):
        make({"train_dataset": others}, **BY_SPEAKER).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame_scaling": "speaker"}, "frame_scaling='speaker' needs the speakers"),
        ({"frame_scaling": "speaker", "speaker_column": "who"}, "speaker_column='who' is not in the data set"),
        ({"speaker_column": "speaker"}, "speaker_column='speaker' has no effect without frame_scaling='speaker'"),
        ({"frame_scaling": "word"}, "frame_scaling='word' is unknown: use one of none, global, recording, speaker"),
        ({"whitening_shrinkage": 0.0}, "whitening_shrinkage=0.0 must be above 0"),
    ],
)
def test_what_does_not_fit_is_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_speakers_of_a_nested_column_and_of_a_stream_are_read(make, spoken):
    speakers = make(**BY_SPEAKER)._speakers
    nested = spoken.remove_columns("speaker").add_column("meta", [{"who": speaker} for speaker in spoken["speaker"]])
    for data, column in ((nested, "meta.who"), (spoken.to_iterable_dataset(), "speaker")):
        trainer = make({"train_dataset": data}, **{**BY_SPEAKER, "speaker_column": column})
        np.testing.assert_array_equal(trainer._speakers, speakers)
    with pytest.raises(ValueError, match=r"speaker_column='meta' is not in the data set; .*meta\.who"):
        make({"train_dataset": nested}, **{**BY_SPEAKER, "speaker_column": "meta"})


def test_a_column_without_speakers_is_refused(make, spoken):
    nobody = spoken.remove_columns("speaker").add_column("speaker", [-1] * 83)
    with pytest.raises(ValueError, match="speaker_column='speaker' names no speaker"):
        make({"train_dataset": nobody}, **BY_SPEAKER)
