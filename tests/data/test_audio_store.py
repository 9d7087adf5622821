"""Recordings: decoded to one rate whatever they are stored as, ordered by length, and clear about what is wrong."""

from __future__ import annotations

import io
import logging
import shutil

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value
from helpers.paths import SHARED_DATA
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from hf_plr.data import audio_store
from hf_plr.data.audio_decoding import UnreadableRecording, decode_waveform
from hf_plr.data.audio_store import AudioFormat, AudioStore, collate_recordings, read_sampling_rates
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.data.loading import load_train_and_test
from hf_plr.models.vision import small_vit_processor
from hf_plr.utils import distributed

RATE = 16_000
FILE = {"bytes": Value("binary"), "path": Value("string")}


def tone(seconds, rate=RATE, pitch=440.0, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(samples, rate=RATE, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype, format=kind)
    return buffer.getvalue()


def data_set(files, **columns):
    rows = [file if isinstance(file, dict) or file is None else {"bytes": file, "path": None} for file in files]
    stored = Dataset.from_dict({"audio": rows}, features=Features({"audio": FILE})).cast_column("audio", Audio())
    for name, values in columns.items():
        stored = stored.add_column(name, values)
    return stored


def audio_format(min_samples=400, max_seconds=None, rate=RATE):
    return AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=rate), min_samples, max_seconds)


def pitch_of(waveform, rate=RATE):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return spectrum.argmax() * rate / len(waveform)


@pytest.fixture
def tones():
    """Seven tones, the length falling and rising from row to row."""
    seconds = [0.3, 0.1, 0.5, 0.2, 0.1, 0.4, 0.25]
    return data_set(
        [encode(tone(each, amplitude=0.1 * (i + 1))) for i, each in enumerate(seconds)], digit=list(range(7))
    )


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_the_usual_formats(kind):
    if kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {kind}")
    waveform = decode_waveform(encode(tone(1.0), kind=kind), 0, RATE)
    assert waveform.dtype == np.float32
    assert waveform.shape == (RATE,)
    assert pitch_of(waveform) == pytest.approx(440, abs=1)
    np.testing.assert_allclose(waveform[2000:-2000], tone(1.0)[2000:-2000], atol=0.03)
    if kind in ("WAV", "FLAC"):
        np.testing.assert_allclose(waveform, tone(1.0), atol=2**-15)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_other_rates_are_resampled(rate):
    waveform = decode_waveform(encode(tone(1.0, rate), rate), 0, RATE)
    assert abs(len(waveform) - RATE) <= 1
    assert pitch_of(waveform) == pytest.approx(440, abs=1)
    np.testing.assert_allclose(waveform[500:15_500], tone(1.0)[500:15_500], atol=1e-3)


def test_channels_are_averaged():
    left, right = tone(0.2, pitch=300), tone(0.2, pitch=700)
    mean = (left + right) / 2
    np.testing.assert_allclose(decode_waveform(encode(np.stack([left, right], 1)), 0, RATE), mean, atol=2**-14)
    for array in (np.stack([left, right]), np.stack([left, right], 1), [left.tolist(), right.tolist()]):
        np.testing.assert_allclose(decode_waveform({"array": array, "sampling_rate": RATE}, 0, RATE), mean, atol=1e-6)


def test_arrays_bytes_and_paths_are_the_same_recording(tmp_path):
    samples = (tone(0.2) * 32768).round().astype(np.int16)
    (tmp_path / "a.wav").write_bytes(encode(samples))
    path = str(tmp_path / "a.wav")
    same = [encode(samples), path, tmp_path / "a.wav", {"bytes": None, "path": path}]
    same += [{"array": each, "sampling_rate": RATE} for each in (samples, samples / 32768, samples.tolist())]
    for value in same:
        np.testing.assert_array_equal(decode_waveform(value, 0, RATE), samples / np.float32(32768))
    columns = [[path], [encode(samples)], [{"array": samples.tolist(), "sampling_rate": RATE}]]
    for column in columns:
        store = AudioStore(Dataset.from_dict({"audio": column}), "audio", audio_format())
        np.testing.assert_array_equal(store[0]["input_values"], samples / np.float32(32768))


def test_silence_and_short_recordings_are_fine():
    store = AudioStore(data_set([encode(np.zeros(3)), encode(tone(1.0))]), "audio", audio_format())
    assert store.lengths.tolist() == [400, RATE]
    assert store[0]["input_values"].tolist() == [0.0] * 400
    short = decode_waveform(encode(tone(0.01)), 0, RATE, min_samples=400)
    assert len(short) == 400
    assert np.abs(short[:160]).max() > 0.4
    assert not short[160:].any()
    assert len(decode_waveform(encode(np.ones(1), 44_100), 0, 8_000, min_samples=25)) == 25


def test_the_rest_of_an_hour_is_not_decoded(tmp_path, monkeypatch):
    hour = np.zeros(3600 * 8000, dtype=np.int16)
    hour[:80_000] = tone(10.0, 8000) * 32767
    soundfile.write(tmp_path / "hour.wav", hour, 8000)
    frames_read = []
    read = soundfile.SoundFile.read

    def counted(self, *args, **kwargs):
        samples = read(self, *args, **kwargs)
        frames_read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    store = AudioStore(data_set([{"bytes": None, "path": str(tmp_path / "hour.wav")}]), "audio", audio_format(400, 2.5))
    assert frames_read == []  # the header tells
    store.check()
    assert frames_read == [20_000]
    assert store.lengths.tolist() == [40_000]
    assert pitch_of(store[0]["input_values"].numpy()) == pytest.approx(440, abs=1)
    assert len(decode_waveform({"array": tone(9.0), "sampling_rate": RATE}, 0, 8000, max_samples=8000)) == 8000


BAD = {
    "missing": (None, r"recording 1 is missing"),
    "empty file": (b"", r"recording 1 is missing"),
    "garbage": (b"no recording" * 99, r"recording 1 cannot be read as wav, flac, ogg or mp3 \(Format not recognised"),
    "cut flac": (encode(tone(0.5), kind="FLAC")[:2000], r"recording 1 cannot be read .*lost sync"),
    "no such file": ({"bytes": None, "path": "nowhere/a.wav"}, r"recording 1 cannot be read .*nowhere/a.wav"),
    "no header": ({"bytes": None, "path": "nowhere/a.raw"}, r"recording 1 cannot be read .*samplerate"),
    "no samples": (encode(np.zeros(0)), r"recording 1 has no samples"),
    "NaN": (
        encode(np.array([0.0, np.nan, 0.1]), subtype="FLOAT"),
        r"recording 1 holds samples that are NaN or infinite",
    ),
    "infinite": (
        encode(np.array([0.0, np.inf]), subtype="FLOAT"),
        r"recording 1 holds samples that are NaN or infinite",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_read_is_named_or_left_out(bad, caplog):
    value, message = BAD[bad]
    rows = data_set([encode(tone(0.3)), value, encode(tone(0.2)), value], digit=[5, 6, 7, 8])
    with pytest.raises(
        UnreadableRecording, match=message + r".*\. --skip_unreadable \(skip_unreadable=True\) leaves it out"
    ):
        AudioStore(rows, "audio", audio_format()).check()
    for cache_bytes in (0, 2**20):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            store = AudioStore(
                rows, "audio", audio_format(), "digit", cache_bytes=cache_bytes, skip_unreadable=True
            ).check()
        assert "2 of 4 recordings cannot be read and are left out: row 1" in caplog.text
        assert store.unreadable == [1, 3]
        assert store.rows.tolist() == [2, 0]
        assert store.true_labels().tolist() == [7, 5]
        assert len(store[1]["input_values"]) == 4800
    with pytest.raises(ValueError, match="none of the 1 recordings can be read"):
        AudioStore(rows.select([1]), "audio", audio_format(), skip_unreadable=True).check()


def test_a_header_that_promises_too_much_is_unreadable():
    damaged = bytearray(encode(tone(0.1), kind="FLAC"))
    damaged[21:26] = bytes([damaged[21] | 0x0F]) + b"\xff" * 4  # the number of samples
    with pytest.raises(UnreadableRecording, match="recording 3 cannot be read"):
        decode_waveform(bytes(damaged), 3, RATE)


@pytest.mark.parametrize("form", ["bytes", "paths"])
def test_no_room_is_made_for_what_a_damaged_header_promises(tmp_path, monkeypatch, form):
    files = [encode(tone(0.2 + 0.1 * row), kind="FLAC") for row in range(3)]
    damaged = bytearray(files[1])
    damaged[22:26] = (0xF0000000).to_bytes(4, "big")  # the low bits of its number of samples
    files[1] = bytes(damaged)
    if form == "bytes":
        data = data_set(files)
    else:
        for row, file in enumerate(files):
            (tmp_path / f"{row}.flac").write_bytes(file)
        data = Dataset.from_dict({"audio": [str(tmp_path / f"{row}.flac") for row in range(3)]})
    usage = shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    for limits in ({"cache_dir": tmp_path / "cache"}, {"cache_bytes": 2**20}):
        store = AudioStore(data, "audio", audio_format(), skip_unreadable=True, **limits).check()
        assert store.unreadable == [1]
        assert store.is_cached
        with pytest.raises(UnreadableRecording, match="recording 1 cannot be read"):
            AudioStore(data, "audio", audio_format(), **limits).check()


@pytest.mark.parametrize("seconds", [None, 0.3])
def test_unreadable_recordings_take_no_room_in_the_cache(tmp_path, monkeypatch, seconds):
    """They have a plausible header: that they are unreadable is known after the first pass."""
    broken = encode(np.full(5 * RATE, np.nan, np.float32), subtype="FLOAT")
    data = data_set([encode(tone(0.5)), broken, encode(tone(1.0))])
    form = AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=RATE), 400, segment_seconds=seconds)
    store = AudioStore(data, "audio", form, skip_unreadable=True, cache_bytes=2 * 2 * RATE)
    expected = [item["input_values"] for item in store.check().__getitems__(range(len(store)))]
    assert store.is_cached

    def open_file() -> AudioStore:
        folders = {"cache_dir": tmp_path / "cache", "manifest_dir": tmp_path / "manifests"}
        return AudioStore(data, "audio", form, skip_unreadable=True, **folders)

    first = open_file().check()
    kept = [item["input_values"] for item in first.__getitems__(range(len(first)))]
    assert first.is_cached
    assert len(list((tmp_path / "cache").glob("*.bytes"))) == 1
    second = open_file()
    monkeypatch.setattr(AudioStore, "_decode_row", lambda *_: pytest.fail("decoded again"))
    again = [item["input_values"] for item in second.__getitems__(range(len(second)))]
    for waveforms in (kept, again):
        assert all(map(torch.equal, waveforms, expected))
    assert sorted(set(second.rows.tolist())) == [0, 2]


@pytest.mark.parametrize("error", [PermissionError("no"), MemoryError(), ValueError("no")])
def test_any_failure_to_read_lengths_is_told_to_all_processes(tones, monkeypatch, error):
    """Of two processes: the one that fails raises its error, and the other one does not wait for it."""

    class State:
        num_processes, process_index, is_main_process = 2, 0, True

    def fail(*_):
        raise error

    sent: list[tuple] = []
    monkeypatch.setattr(distributed, "gather_objects", lambda state, item: sent.append(item) or sent)
    count = audio_store.read_length
    monkeypatch.setattr(audio_store, "read_length", fail)
    with pytest.raises(type(error)) as raised:
        AudioStore(tones, "audio", audio_format(), state=State)
    assert raised.value is error
    State.process_index, State.is_main_process = 1, False
    monkeypatch.setattr(audio_store, "read_length", count)
    with pytest.raises(ValueError if isinstance(error, ValueError) else RuntimeError, match=r"^(no|MemoryError)$"):
        AudioStore(tones, "audio", audio_format(), state=State)
    assert len(sent) == 2


def test_values_that_are_no_recordings_are_named():
    for value in (7, {"array": [["a"]], "sampling_rate": RATE}, {"array": [[[0.0]]], "sampling_rate": RATE}):
        with pytest.raises(UnreadableRecording, match="recording 3 is n"):
            decode_waveform(value, 3, RATE)
    with pytest.raises(UnreadableRecording, match="recording 3 has sampling_rate=0"):
        decode_waveform({"array": [0.0], "sampling_rate": 0}, 3, RATE)


@pytest.mark.parametrize("value", [[0.0, 0.1], {"array": [0.0, 0.1], "sampling_rate": None}])
def test_an_array_without_sampling_rate_is_refused(value):
    rows = Dataset.from_dict({"audio": [value]})
    with pytest.raises(
        ValueError, match=r'sampling rate is missing: give {"array": .*, "sampling_rate": .*} or an audio'
    ):
        AudioStore(rows, "audio", audio_format(), skip_unreadable=True)
    with pytest.raises(ValueError, match="sampling rate is missing"):
        read_sampling_rates(rows, "audio")


def test_empty_data_is_refused():
    with pytest.raises(ValueError, match="the data set is empty"):
        AudioStore(data_set([]), "audio", audio_format())
    with pytest.raises(ValueError, match="these recordings have no label column"):
        AudioStore(data_set([encode(tone(0.1))]), "audio", audio_format()).true_labels()


def test_positions_ascend_by_length_and_labels_follow(tones):
    store = AudioStore(tones, "audio", audio_format(), "digit")
    assert store.rows.tolist() == [1, 4, 3, 6, 0, 5, 2]
    assert store.lengths.tolist() == [1600, 1600, 3200, 4000, 4800, 6400, 8000]
    assert store.lengths.dtype == np.int64
    assert store.labels.tolist() == list(range(7))
    assert store.true_labels().tolist() == store.rows.tolist()
    for position, item in enumerate(store.__getitems__(range(7))):
        assert (item["index"], item["labels"]) == (position, store.rows[position])
        assert len(item["input_values"]) == store.lengths[position]
        assert float(item["input_values"].abs().max()) == pytest.approx(0.1 * (store.rows[position] + 1), abs=0.01)


def test_without_cache_the_same_bit_for_bit(tones):
    rows = data_set([*tones.cast_column("audio", Audio(decode=False))["audio"], encode(tone(0.3, 8000), 8000)])
    cached = AudioStore(rows, "audio", audio_format()).check()
    decoded = AudioStore(rows, "audio", audio_format(), cache_bytes=int(2 * cached.lengths.sum()) - 1).check()
    assert cached.is_cached
    assert not decoded.is_cached
    assert AudioStore(rows, "audio", audio_format(), cache_bytes=int(2 * cached.lengths.sum())).check().is_cached
    assert cached.rows.tolist() == decoded.rows.tolist()
    for position in range(len(rows)):
        assert torch.equal(cached[position]["input_values"], decoded[position]["input_values"])


def test_a_cache_of_many_batches(monkeypatch):
    monkeypatch.setattr(AudioStore, "decode_batch", 3)
    rows = data_set([encode(tone(0.1 + 0.01 * (i * 7 % 11), pitch=200 + 50 * i)) for i in range(11)])
    store = AudioStore(rows, "audio", audio_format())
    for row, waveform in zip(store.rows, store.batch(torch.arange(11))["input_values"], strict=True):
        expected = tone(0.1 + 0.01 * (row * 7 % 11), pitch=200 + 50 * row)
        np.testing.assert_allclose(waveform[: len(expected)], expected, atol=2**-14)
        assert not waveform[len(expected) :].any()


def test_batches_are_padded_with_zeros(tones):
    store = AudioStore(tones, "audio", audio_format(), "digit")
    positions = torch.tensor([5, 0, 3])
    batch = store.batch(positions)
    assert sorted(batch) == ["index", "input_values", "lengths"]
    assert torch.equal(batch["index"], positions)
    assert batch["input_values"].shape == (3, 6400)
    assert batch["input_values"].dtype == torch.float32
    assert batch["lengths"].tolist() == [6400, 1600, 4000]
    assert batch["lengths"].dtype == torch.int64
    for length, padded in zip(batch["lengths"], batch["input_values"], strict=True):
        assert padded[:length].any()
        assert not padded[length:].any()
    collated = collate_recordings(store.__getitems__([5, 0, 3]))
    assert collated.pop("labels").tolist() == [5, 1, 6]
    assert all(torch.equal(collated[name], batch[name]) for name in batch)
    assert "labels" not in collate_recordings([AudioStore(tones, "audio", audio_format())[0]])


def test_very_quiet_and_too_loud_recordings_keep_their_shape():
    for peak in (1e-6, 30.0):
        store = AudioStore(data_set([encode(tone(0.1, amplitude=peak), subtype="FLOAT")]), "audio", audio_format())
        np.testing.assert_allclose(store[0]["input_values"], tone(0.1, amplitude=peak), atol=2e-5 * peak)
    denormal = data_set([encode(np.full(500, 1e-42, dtype=np.float32), subtype="FLOAT")])
    assert not AudioStore(denormal, "audio", audio_format())[0]["input_values"].any()


def test_feature_extractors_that_do_not_fit_are_named():
    form = AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=False), 400, 2.0)
    assert (form.sampling_rate, form.do_normalize, form.min_samples, form.max_samples) == (8000, False, 400, 16_000)
    assert audio_format().max_samples is None
    with pytest.raises(ValueError, match="has no sampling_rate: a feature extractor of waveforms"):
        AudioFormat(small_vit_processor(16), 400)
    with pytest.raises(ValueError, match=r"WhisperFeatureExtractor makes spectrograms \(feature_size=80\)"):
        AudioFormat(WhisperFeatureExtractor(), 400)
    with pytest.raises(ValueError, match=r"ASTFeatureExtractor makes spectrograms \(num_mel_bins=32\)"):
        AudioFormat(ASTFeatureExtractor(num_mel_bins=32), 400)
    with pytest.raises(
        ValueError, match=r"max_seconds=0.01 is too short: the model needs at least 400 samples, 0.0250"
    ):
        audio_format(400, 0.01)
    with pytest.raises(ValueError, match="min_samples=0 must be at least 1"):
        audio_format(0)


def test_sampling_rates_come_from_the_headers():
    files = [encode(tone(0.1, rate), rate) for rate in (8000, 44_100, RATE)]
    rows = data_set([files[0], b"garbage", *files[1:]])
    assert read_sampling_rates(rows, "audio") == [8000, 44_100, RATE]
    assert read_sampling_rates(rows, "audio", n_samples=2) == [8000, RATE]
    arrays = Dataset.from_dict({"audio": [{"array": [0.0], "sampling_rate": 22_050}]})
    assert read_sampling_rates(arrays, "audio") == [22_050]
    many = data_set([files[0]] * 70)
    assert read_sampling_rates(many, "audio") == [8000] * 70
    with pytest.raises(
        ValueError, match="none of 1 recordings can be read; the first: recording 0 cannot be read as wav"
    ):
        read_sampling_rates(data_set([b"garbage"]), "audio")


def test_a_folder_of_recordings_loads(tmp_path):
    kinds = [kind for kind in ("wav", "flac", "ogg", "mp3") if kind.upper() in soundfile.available_formats()]
    for split in ("train", "test"):
        for kind in kinds:
            folder = tmp_path / split / ("high" if kind == "wav" else "low")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"a.{kind}").write_bytes(encode(tone(0.2), kind=kind.upper()))
    train, test = load_train_and_test(str(tmp_path))
    assert test is not None
    assert train.features["label"].names == ["high", "low"]
    assert train.features["audio"] == Audio()
    for split in (train, test):
        store = AudioStore(split, "audio", audio_format(), "label")
        assert sorted(store.true_labels().tolist()) == [0] + [1] * (len(kinds) - 1)
        assert set(store.lengths.tolist()) == {3200}


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "high").mkdir()
    with pytest.raises(ValueError, match=r"the folder holds no images, no recordings and no parquet files"):
        load_train_and_test(str(tmp_path))


def test_synthetic_sounds_are_always_the_same():
    rows = make_synthetic_recordings(n_per_class=5, seed=3)
    stored = rows.cast_column("audio", Audio(decode=False))["audio"]
    assert stored[:] == make_synthetic_recordings(5, 3).cast_column("audio", Audio(decode=False))["audio"][:]
    assert stored[:] != make_synthetic_recordings(5, 4).cast_column("audio", Audio(decode=False))["audio"][:]
    assert len(rows) == 40
    assert np.bincount(rows["label"]).tolist() == [5] * 8
    store = AudioStore(rows, "audio", audio_format(25, rate=8000), "label")
    assert set(read_sampling_rates(rows, "audio")) == {8000}
    assert store.lengths[0] >= 0.3 * 8000
    assert store.lengths[-1] <= 8000
    loudest = [item["input_values"].abs().max() for item in store.__getitems__(range(40))]
    assert min(loudest) > 0.08
    assert max(loudest) > 0.5


def test_spoken_digits():
    folder = SHARED_DATA / "fsdd"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    _, test = load_train_and_test(str(folder))
    assert test is not None
    store = AudioStore(test, "audio", audio_format(), "digit")
    assert len(store) == 300
    assert set(read_sampling_rates(test, "audio")) == {8000}
    stored = test.cast_column("audio", Audio(decode=False))
    for position in (0, 150, 299):
        row = int(store.rows[position])
        assert store[position]["labels"] == stored[row]["digit"]
        samples, rate = soundfile.read(io.BytesIO(stored[row]["audio"]["bytes"]))
        assert abs(store.lengths[position] - 2 * len(samples)) <= 1
        waveform = store[position]["input_values"][::2].numpy()
        assert rate == 8000
        assert np.corrcoef(waveform[: len(samples)], samples[: len(waveform)])[0, 1] > 0.99


def test_files_are_known_below_their_folder_or_not_at_all(tmp_path):
    for name in ("a/1.wav", "a/2.wav", "b/1.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(2000 - 500 * (name == "a/2.wav")), RATE)
    train, _ = load_train_and_test(str(tmp_path))
    store = AudioStore(train, "audio", AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=RATE), 400))
    assert store.files() == ["a/2.wav", "a/1.wav", "b/1.wav"]  # by length
    assert AudioStore(make_synthetic_recordings(2), "audio", store.audio_format).files() is None
