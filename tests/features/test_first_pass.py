"""The first pass over samples: finds what cannot be read, and its features serve whoever asks next."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Image, Value
from helpers.launching import launch
from helpers.paths import HELPERS
from helpers.tiny import image_trainer, sound_trainer
from transformers import TrainerCallback

from hf_plr import PLRTrainer, UnitTrainer
from hf_plr.data.image_decoding import ImageDecoder, UnreadableImage
from hf_plr.data.image_store import ImageStore
from hf_plr.data.unreadable import UnreadableSample
from hf_plr.features.extractor import FeatureExtractor

BAD_IMAGES = (5, 40, 177, 202)
ONE_PRECISION = {"feature_dtype": "float32"}  # no trial of another
NO_WORKERS = {"dataloader_num_workers": 0}  # what is counted is counted in this process


class Stop(TrainerCallback):
    """Ends training after the first step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Samples of each batch whose features were computed without gradients, and not drawn from what is kept."""
    sizes: list[int] = []
    compute = FeatureExtractor._compute

    def counted(self, batch, numbers):
        if numbers is None:  # views are another matter
            sizes.append(len(batch["index"]))
        return compute(self, batch, numbers)

    monkeypatch.setattr(FeatureExtractor, "_compute", counted)
    return sizes


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Rows of images that were decoded to be trained on."""
    rows: list[int] = []
    decode = ImageStore._decode_rows

    def counted(self, chosen):
        rows.extend(chosen.tolist())
        return decode(self, chosen)

    monkeypatch.setattr(ImageStore, "_decode_rows", counted)
    return rows


def damage_images(data: Dataset, bad: tuple[int, ...] = BAD_IMAGES) -> Dataset:
    raw = data.cast_column("image", Image(decode=False)).to_list()
    for row in bad:
        raw[row]["image"]["bytes"] = raw[row]["image"]["bytes"][:60]
    return Dataset.from_list(raw, features=Features({**data.features, "image": Image(decode=False)})).cast_column(
        "image", Image()
    )


def damage_sounds(data: Dataset) -> tuple[Dataset, list[int]]:
    """Recordings of which one has no header, one breaks off, one holds NaN, and an MP3 is cut; the first three rows."""
    raw = data.cast_column("audio", Audio(decode=False)).to_list()
    waveform, rate = soundfile.read(io.BytesIO(raw[9]["audio"]["bytes"]), dtype="float32")
    long = np.tile(waveform, 3)
    broken = long.copy()
    broken[-1] = np.nan
    raw[3]["audio"]["bytes"] = b"no sound"
    raw[20]["audio"]["bytes"] = encode(long, rate, "FLAC")[:3000]
    raw[60]["audio"]["bytes"] = encode(broken, rate, "WAV", subtype="FLOAT")
    mp3 = encode(long, rate, "MP3")
    raw[9]["audio"]["bytes"] = mp3[: len(mp3) // 2]
    features = Features({**data.features, "audio": {"bytes": Value("binary"), "path": Value("string")}})
    return Dataset.from_list(raw, features=features).cast_column("audio", Audio()), [3, 20, 60]


def encode(waveform: np.ndarray, rate: int, kind: str, **more: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=kind, **more)
    return buffer.getvalue()


def weights_of(trainer) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.state_dict().values()]


def assert_same(first, second) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))


# ---- nothing is computed twice -----------------------------------------------------------------------------------


def test_scoring_and_the_first_stage_take_the_features_of_the_first_pass(make_trainer, computed, decoded):
    trainer = make_trainer({"callbacks": [Stop()]}, **ONE_PRECISION, **NO_WORKERS)
    assert decoded == computed == []
    trainer.score("before")
    assert sorted(decoded) == list(range(203))
    assert sum(computed) == 203
    trainer.train()
    assert sum(computed) == 203
    assert sorted(decoded) == list(range(203))


@pytest.mark.parametrize("scores_first", [False, True])
def test_a_run_that_computes_them_again_has_the_same_bits(some_digits, tmp_path, computed, scores_first):
    trainers = [
        image_trainer(tmp_path / name, some_digits, num_train_epochs=2, **ONE_PRECISION) for name in ("first", "second")
    ]
    trainers[1]._kept_features = None
    n_computed = []
    for trainer in trainers:
        computed.clear()
        if scores_first:
            trainer.score("before")
        trainer.train()
        n_computed.append(sum(computed))
    assert n_computed == [203 * 2, 203 * (3 if scores_first else 2)]
    assert_same(*trainers)
    assert np.array_equal(trainers[0].pseudo_labels.labels, trainers[1].pseudo_labels.labels)


def test_features_that_nobody_will_take_are_not_computed(some_digits, tmp_path, computed):
    """Those of a set that is first opened when training has begun: it is decoded, and its features computed once."""
    trainer = image_trainer(tmp_path, some_digits, num_train_epochs=1, **ONE_PRECISION)
    trainer.train()
    computed.clear()
    other = some_digits.select(range(90))
    features = trainer.extract_features(other)
    assert sum(computed) == 90
    assert trainer.open_samples(other).is_checked
    assert torch.equal(trainer.extract_features(other), features)


def test_features_of_other_weights_are_computed_anew(make_trainer, computed):
    trainer = make_trainer()
    before = trainer.extract_features()
    assert sum(computed) == 203
    assert torch.equal(trainer.extract_features(), before)
    assert sum(computed) == 203
    with torch.no_grad():
        next(trainer.model.parameters()).mul_(1.5)
    assert not torch.equal(trainer.extract_features(), before)
    assert sum(computed) == 2 * 203
    assert torch.equal(trainer.extract_features(positions=torch.tensor([3, 4])), trainer.extract_features()[3:5])


def test_frames_are_decoded_once_without_features(some_sounds, tmp_path, computed):
    trainer = sound_trainer(tmp_path, some_sounds, UnitTrainer, {"callbacks": [Stop()]})
    trainer.train()
    assert computed == []
    assert trainer.train_dataset.is_checked
    assert trainer.train_dataset.is_cached


# ---- what cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "cache"), [(0, 2.0), (2, 0.0)])
def test_unreadable_images_stop_a_run_or_leave_it_as_if_it_had_known(
    some_digits, tmp_path, workers, cache, caplog, manifests
):
    damaged = damage_images(some_digits)
    settings = {"num_train_epochs": 2, "dataloader_num_workers": workers, "image_cache_gib": cache}
    with pytest.raises(UnreadableImage, match=r"image 5 cannot be read \(.*\)\. --skip_unreadable"):
        image_trainer(tmp_path / "out", damaged, **settings).train()
    with pytest.raises(UnreadableImage, match=r"image 5 cannot be read \(.*\)\. --skip_unreadable"):
        image_trainer(tmp_path / "out", damaged, **settings)  # by the manifest, at once
    for path in manifests.iterdir():
        path.unlink()
    first = image_trainer(tmp_path / "first", damaged, skip_unreadable=True, **settings)
    assert len(first.train_dataset) == 203
    first.score("before")
    assert len(first.train_dataset) == 199
    assert first.train_dataset.unreadable == list(BAD_IMAGES)
    assert "4 of 203 images cannot be read and are left out: row 5, row 40" in caplog.text
    first.train()
    second = image_trainer(tmp_path / "second", damaged, skip_unreadable=True, **settings)
    assert second.train_dataset.is_checked
    assert len(second.train_dataset) == 199
    second.train()
    whole = some_digits.select([row for row in range(203) if row not in BAD_IMAGES])
    third = image_trainer(tmp_path / "third", whole, num_clusters=12, **settings)
    third.train()
    for other in (second, third):
        assert_same(first, other)
        assert np.array_equal(first.pseudo_labels.labels, other.pseudo_labels.labels)
    assert first.run_settings()["data"] == second.run_settings()["data"]


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
@pytest.mark.parametrize("segment_seconds", [None, 0.2])
def test_unreadable_and_shorter_recordings(some_sounds, tmp_path, kind, segment_seconds):
    damaged, bad = damage_sounds(some_sounds)
    settings = {"num_train_epochs": 2, "skip_unreadable": True, "segment_seconds": segment_seconds}
    first = sound_trainer(tmp_path / "first", damaged, kind, **settings)
    assert first.train_dataset.unreadable == [3]
    assumed = first.train_dataset.lengths[first.train_dataset.rows == 9].sum()
    first.train()
    assert first.train_dataset.unreadable == bad
    lengths = first.train_dataset.lengths[first.train_dataset.rows == 9]
    assert 0 < lengths.sum() < assumed
    decoded = [first.train_dataset[i]["input_values"] for i in np.flatnonzero(first.train_dataset.rows == 9)]
    assert [len(waveform) for waveform in decoded] == lengths.tolist()
    second = sound_trainer(tmp_path / "second", damaged, kind, **settings)
    assert second.train_dataset.is_checked
    assert np.array_equal(second.train_dataset.lengths, first.train_dataset.lengths)
    second.train()
    assert_same(first, second)


@pytest.mark.parametrize("n_faults", [1, 2])
def test_a_fault_that_does_not_come_again_leaves_nothing_out(some_digits, tmp_path, monkeypatch, manifests, n_faults):
    expected = image_trainer(tmp_path / "expected", some_digits).extract_features()
    for path in manifests.iterdir():
        path.unlink()
    trainer = image_trainer(tmp_path / "out", some_digits, **NO_WORKERS)
    faults = [17] * n_faults  # in a batch, and by itself; then it is examined
    decode = ImageDecoder.decode

    def sometimes(self, value, row, *more):
        if row in faults:
            faults.pop()
            raise UnreadableImage(f"image {row} cannot be read (the network is away)")
        return decode(self, value, row, *more)

    monkeypatch.setattr(ImageDecoder, "decode", sometimes)
    assert torch.equal(trainer.extract_features(), expected)
    assert faults == []
    assert len(trainer.train_dataset) == 203


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_after_the_first_pass_is_named(some_digits, tmp_path, workers):
    folder = tmp_path / "images"
    folder.mkdir()
    for row, image in enumerate(some_digits["image"][:40]):
        image.save(folder / f"{row}.png")
    data = Dataset.from_dict({"image": [str(folder / f"{row}.png") for row in range(40)]}).cast_column("image", Image())
    settings = {"num_clusters": 3, "image_cache_gib": 0.0, "dataloader_num_workers": workers}
    trainer = image_trainer(tmp_path / "out", data, **settings)
    trainer.check_samples()
    (folder / "7.png").write_bytes(b"gone")
    for load in (lambda: trainer.extract_features(positions=torch.arange(4, 9)), trainer.train):
        with pytest.raises(UnreadableImage, match=r"^image 7 cannot be read[^\n]*$"):  # a line also from workers
            load()


def test_a_message_of_an_error_is_kept_as_it_is():
    for message in ("image 3 cannot be read", "Caught in the act", "Caught X: a\nb\n"):
        assert str(UnreadableSample(message)) == message
        assert str(copy.copy(UnreadableImage(message))) == message


def test_an_evaluation_set_is_checked_too(some_digits, tmp_path, computed, manifests):
    damaged = damage_images(some_digits)
    parts = {"eval_dataset": damaged}
    with pytest.raises(UnreadableSample, match="image 5 cannot be read"):
        image_trainer(tmp_path / "out", some_digits, parts).evaluate()
    for path in manifests.iterdir():
        path.unlink()
    trainer = image_trainer(tmp_path / "out", some_digits, parts, skip_unreadable=True)
    computed.clear()
    metrics = trainer.evaluate()
    assert sum(computed) == 203 + 203  # both sets, once each; predictions are Trainer's own
    assert trainer.open_samples.latest.unreadable == list(BAD_IMAGES)
    assert 0.0 <= metrics["eval_knn_accuracy"] <= 1.0


# ---- several processes -------------------------------------------------------------------------------------------


def test_processes_check_their_own_parts_and_agree(tmp_path, some_digits, some_sounds):
    damage_images(some_digits).save_to_disk(tmp_path / "images")
    damage_sounds(some_sounds)[0].save_to_disk(tmp_path / "sounds")
    script = HELPERS / "first_pass_in_processes.py"
    found = {}
    for processes in (1, 2):
        output = tmp_path / f"{processes}.npz"
        run = launch(tmp_path, output, processes=processes, script=script)
        assert run.returncode == 0, run.stderr[-5000:]
        found[processes] = dict(np.load(output))
    assert found[2].pop("images: same error").tolist() == [True, True]
    assert found[2].pop("images: own part").all()
    for name, value in found[2].items():
        assert np.array_equal(found[1][name], value), name
    assert found[2]["images: unreadable"].tolist() == list(BAD_IMAGES)
    assert found[2]["sounds: unreadable"].tolist() == [3, 20, 60]


def test_features_for_the_stage_are_never_those_of_zeros(tmp_path, some_digits):
    """Also where they are asked for before training."""
    damaged = damage_images(some_digits)
    with pytest.raises(UnreadableImage, match="image 5 cannot be read"):
        image_trainer(tmp_path / "stops", damaged).extract_shard()
    trainer = image_trainer(tmp_path / "skips", damaged, skip_unreadable=True)
    assert len(trainer.extract_shard()) == len(some_digits) - len(BAD_IMAGES)
