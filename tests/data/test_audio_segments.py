"""Segments of long recordings: where they begin and end, and that reading them needs no more than their part."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value
from transformers import Wav2Vec2FeatureExtractor

from hf_plr.data.audio_decoding import UnreadableRecording, count_samples, decode_waveform
from hf_plr.data.audio_segments import Segmentation, decode_segments, iterate_segments
from hf_plr.data.audio_store import AudioFormat, AudioStore, collate_recordings

RATE = 8_000
FILE = {"bytes": Value("binary"), "path": Value("string")}
SECOND = Segmentation(RATE, RATE)
KINDS = ["WAV", "FLAC", "OGG", "MP3", "AIFF"]
RATES = [RATE, 44_100, 11_025, 16_000, 48_000]


def sweep(seconds, rate=RATE, seed=0):
    """A tone that rises, and noise: no two places are alike."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 15 * time) * time) + noise).astype(np.float32)


def encode(samples, rate=RATE, kind="WAV", subtype=None):
    if kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {kind}")
    buffer = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(buffer, "w", rate, channels, subtype, format=kind) as file:
        for start in range(0, len(samples), 4096):  # libsndfile's encoder of Vorbis overflows the stack otherwise
            file.write(samples[start : start + 4096])
    return buffer.getvalue()


def data_set(files, **columns):
    rows = [file if isinstance(file, dict) or file is None else {"bytes": file, "path": None} for file in files]
    stored = Dataset.from_dict({"audio": rows}, features=Features({"audio": FILE})).cast_column("audio", Audio())
    for name, values in columns.items():
        stored = stored.add_column(name, values)
    return stored


def audio_format(segment_seconds=1.0, overlap=0.0, max_seconds=None, min_samples=400):
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    return AudioFormat(extractor, min_samples, max_seconds, segment_seconds, overlap)


def spans_of(store):
    """Row, start and end in seconds of every position, in the order of the recordings."""
    return sorted((int(row), *map(float, span)) for row, span in zip(store.rows, store.segments, strict=True))


# ---- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "overlap", "expected"),
    [
        (1, 0.0, [(0, 1)]),
        (RATE - 1, 0.0, [(0, RATE - 1)]),
        (RATE, 0.0, [(0, RATE)]),
        (RATE + 1, 0.0, [(0, RATE + 1)]),  # a rest under half a segment belongs to the one before
        (RATE + RATE // 2 - 1, 0.0, [(0, RATE + RATE // 2 - 1)]),
        (RATE + RATE // 2, 0.0, [(0, RATE), (RATE, RATE // 2)]),
        (2 * RATE, 0.0, [(0, RATE), (RATE, RATE)]),
        (2 * RATE + 1, 0.0, [(0, RATE), (RATE, RATE + 1)]),
        (RATE, 0.75, [(0, RATE)]),
        (RATE + 999, 0.75, [(0, RATE + 999)]),  # half a hop is 1,000 samples
        (RATE + 1000, 0.75, [(0, RATE), (2000, 7000)]),
        (RATE + 2000, 0.75, [(0, RATE), (2000, RATE)]),
    ],
)
def test_where_segments_begin_and_end(samples, overlap, expected):
    rule = Segmentation.from_seconds(1.0, overlap, RATE, 400)
    waveform = sweep(3.0)[:samples]
    found = list(iterate_segments({"array": waveform, "sampling_rate": RATE}, 0, RATE, rule))
    assert [(start, len(segment)) for start, segment in found] == expected
    for start, segment in found:
        np.testing.assert_array_equal(segment, waveform[start : start + len(segment)])


def test_what_cannot_be_a_segment_is_named():
    with pytest.raises(ValueError, match=r"segment_seconds=0.04 is too short: the model needs at least 400 samples"):
        audio_format(0.04)
    with pytest.raises(ValueError, match=r"segment_overlap=1.0 must be less than segment_seconds=1.0"):
        audio_format(1.0, 1.0)
    with pytest.raises(ValueError, match=r"segment_seconds=1.0 has no effect: max_seconds=1.0 leaves nothing longer"):
        audio_format(1.0, max_seconds=1.0)


# ---- the samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_those_of_the_whole_recording(kind, rate):
    stored = encode(np.stack([sweep(4.3, rate), sweep(4.3, rate, seed=1)], axis=1), rate, kind)
    whole = decode_waveform(stored, 0, RATE)
    rule = Segmentation.from_seconds(1.0, 0.25, RATE, 400)
    found = list(iterate_segments(stored, 0, RATE, rule))
    assert [start for start, _ in found] == [0, 6000, 12_000, 18_000, 24_000][: len(found)]
    assert found[-1][0] + len(found[-1][1]) == len(whole)
    for start, segment in found:
        atol = {"MP3": 5e-3}.get(kind, 0.0 if rate == RATE else 2e-6)  # MP3 depends on how much is read at a time
        np.testing.assert_allclose(segment, whole[start : start + len(segment)], rtol=0, atol=atol)
    spans = [(start, len(segment)) for start, segment in found]
    order = [2, 0, 4, 2, 1, 3][: len(found) + 1]
    again = decode_segments(stored, 0, RATE, [spans[i] for i in order])
    for i, segment in zip(order, again, strict=True):
        np.testing.assert_array_equal(segment, found[i][1])


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "GSM610"), ("WAV", "G721_32"), ("AU", "G723_40")])
def test_files_that_cannot_jump_are_read_as_a_whole_and_in_segments(monkeypatch, kind, subtype):
    monkeypatch.setattr("hf_plr.data.audio_decoding.BLOCK_FRAMES", 1000)
    samples = sweep(4.3, RATE)
    try:
        stored = encode(samples, RATE, kind, subtype)
    except soundfile.LibsndfileError:
        pytest.skip(f"this libsndfile has no {subtype}")
    whole = decode_waveform(stored, 0, RATE)
    assert len(whole) == count_samples(stored, 0, RATE)
    assert np.corrcoef(whole[: len(samples)], samples)[0, 1] > 0.9
    np.testing.assert_array_equal(decode_waveform(stored, 0, RATE, max_samples=5000), whole[:5000])
    for start, segment in iterate_segments(stored, 0, RATE, SECOND):
        np.testing.assert_array_equal(segment, whole[start : start + len(segment)])


@pytest.mark.parametrize("rate", RATES)
def test_a_recording_of_one_segment_is_what_it_is_without_segments(rate):
    for seconds in (0.01, 0.7, 1.0, 1.4):
        stored = encode(sweep(seconds, rate), rate)
        (segment,) = (waveform for _, waveform in iterate_segments(stored, 0, RATE, SECOND))
        np.testing.assert_array_equal(segment, decode_waveform(stored, 0, RATE))


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_again_they_are_the_same_bit_for_bit(tmp_path, workers):
    files = []
    for i, (kind, rate) in enumerate([("WAV", RATE), ("FLAC", 44_100), ("OGG", 16_000), ("MP3", 22_050)]):
        path = tmp_path / f"{i}.{kind.lower()}"
        path.write_bytes(encode(sweep(2.6 + 0.3 * i, rate), rate, kind))
        files += [{"bytes": None, "path": str(path)}, encode(sweep(0.4, rate), rate, kind)]
    rows = data_set(files, label=list(range(8)))
    cached = AudioStore(rows, "audio", audio_format(0.5, 0.1), "label").check()
    decoded = AudioStore(
        rows, "audio", audio_format(0.5, 0.1), "label", cache_bytes=2 * int(cached.lengths.sum()) - 1
    ).check()
    assert (cached.is_cached, decoded.is_cached) == (True, False)
    assert spans_of(cached) == spans_of(decoded)
    assert cached.digest() == decoded.digest()
    order = np.random.default_rng(0).permutation(len(cached)).tolist()
    loader = torch.utils.data.DataLoader(
        decoded, batch_sampler=[order[i : i + 7] for i in range(0, len(order), 7)], num_workers=workers,
        collate_fn=collate_recordings,
    )  # fmt: skip
    for batch in loader:
        expected = collate_recordings(cached.__getitems__(batch["index"].tolist()))
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_segments_are_samples_with_the_label_of_their_recording():
    rows = data_set([encode(sweep(2.6)), encode(sweep(0.3)), encode(sweep(1.0))], label=[7, 8, 9])
    store = AudioStore(rows, "audio", audio_format(), "label")
    expected = [(0, 0.0, 1.0), (0, 1.0, 2.0), (0, 2.0, 2.6), (1, 0.0, 0.3), (2, 0.0, 1.0)]
    assert spans_of(store) == expected
    assert store.rows.tolist() == [1, 0, 0, 0, 2]  # by length, then as they follow each other
    assert store.segments[2:4].tolist() == [[0.0, 1.0], [1.0, 2.0]]
    assert store.lengths.tolist() == [2400, 4800, RATE, RATE, RATE]
    assert store.true_labels().tolist() == [8, 7, 7, 7, 9]
    for position, item in enumerate(store.__getitems__(range(5))):
        assert item["labels"] == store.true_labels()[position]
        assert len(item["input_values"]) == store.lengths[position]
    assert AudioStore(rows, "audio", audio_format(None), "label").segments is None


def test_other_segments_are_other_data_for_a_resumed_run():
    rows = data_set([encode(sweep(2.0)), encode(sweep(0.3))])
    formats = [audio_format(None), audio_format(1.0), audio_format(1.0, 0.001), audio_format(0.9)]
    assert len({AudioStore(rows, "audio", each).digest() for each in formats}) == 4


def test_of_a_beginning_segments_are_cut():
    store = AudioStore(data_set([encode(sweep(5.0, 44_100), 44_100)]), "audio", audio_format(1.0, max_seconds=2.75))
    assert spans_of(store) == [(0, 0.0, 1.0), (0, 1.0, 2.0), (0, 2.0, 2.75)]


def test_arrays_are_cut_too():
    arrays = [{"array": sweep(2.0).tolist(), "sampling_rate": RATE}]
    store = AudioStore(Dataset.from_dict({"audio": arrays}), "audio", audio_format(), cache_bytes=0)
    assert spans_of(store) == [(0, 0.0, 1.0), (0, 1.0, 2.0)]
    np.testing.assert_allclose(store[1]["input_values"], sweep(2.0)[RATE:], atol=2**-15)


# ---- no more than is needed --------------------------------------------------------------------------------------


def test_a_segment_is_read_by_seeking(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", sweep(60.0), RATE)
    rows = data_set([{"bytes": None, "path": str(tmp_path / "long.wav")}])
    store = AudioStore(rows, "audio", audio_format(), cache_bytes=0).check()
    frames_read = []
    read = soundfile.SoundFile.read

    def counted(self, *args, **kwargs):
        samples = read(self, *args, **kwargs)
        frames_read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    np.testing.assert_allclose(store[41]["input_values"], sweep(60.0)[41 * RATE : 42 * RATE], atol=2**-14)
    assert frames_read == [RATE]
    frames_read.clear()
    AudioStore(rows, "audio", audio_format(), cache_bytes=0).check()
    assert sum(frames_read) == 60 * RATE
    assert max(frames_read) <= 1.5 * RATE


@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_a_long_recording_is_never_in_memory_as_a_whole(tmp_path, kind):
    seconds, rate = 300, 16_000
    (tmp_path / "long").write_bytes(encode(sweep(seconds, rate), rate, kind))
    rows = data_set([{"bytes": None, "path": str(tmp_path / "long")}])
    tracemalloc.start()
    try:
        store = AudioStore(rows, "audio", audio_format(), cache_bytes=0)
        batch = store.__getitems__([0, 100, 250])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(store) == seconds
    assert len(batch) == 3
    assert peak < seconds * rate * 4 / 8  # an eighth of the waveform


# ---- what is damaged ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [0, 50_000, 2**20])
def test_a_recording_that_turns_out_to_be_damaged_is_left_out_as_a_whole(cache_bytes):
    broken = sweep(4.0)
    broken[3 * RATE] = np.nan
    flac = encode(sweep(4.0), kind="FLAC")
    whole = [encode(sweep(2.0)), encode(sweep(0.5))]
    bad = [encode(broken, subtype="FLOAT"), flac[: len(flac) // 2], encode(np.zeros(0)), None, b"no sound" * 99]
    rows = data_set([whole[0], *bad, whole[1]])
    with pytest.raises(
        UnreadableRecording, match=r"recording 3 has no samples.*--skip_unreadable"
    ):  # its header says so
        AudioStore(rows, "audio", audio_format(), cache_bytes=cache_bytes)
    with pytest.raises(UnreadableRecording, match=r"recording 1 holds samples that are NaN .*--skip_unreadable"):
        AudioStore(rows.select([0, 1, 2]), "audio", audio_format(), cache_bytes=cache_bytes).check()
    store = AudioStore(rows, "audio", audio_format(), cache_bytes=cache_bytes, skip_unreadable=True)
    assert store.unreadable == [3, 4, 5]
    assert store.check() is store
    assert store.unreadable == [1, 2, 3, 4, 5]
    assert spans_of(store) == [(0, 0.0, 1.0), (0, 1.0, 2.0), (6, 0.0, 0.5)]
    np.testing.assert_allclose(store[2]["input_values"], sweep(2.0)[RATE:], atol=2**-14)
    np.testing.assert_allclose(store[0]["input_values"], sweep(0.5), atol=2**-14)


def test_recordings_that_are_much_longer_than_the_rest_are_described():
    few = [encode(sweep(0.3)) for _ in range(9)]
    long = [encode(sweep(3.1)), encode(sweep(6.0))]
    store = AudioStore(data_set([*few, *long]), "audio", audio_format(None))
    assert store.describe_long() == (
        "2 of 11 recordings are longer than 10 times the median (0.3 s), the longest 6 s: --segment_seconds S cuts "
        "them into samples, --max_seconds S takes their beginnings"
    )
    assert AudioStore(data_set([*few, encode(sweep(2.9))]), "audio", audio_format(None)).describe_long() is None
