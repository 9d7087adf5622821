"""Containers that libsndfile does not open: named without PyAV, decoded with it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from datasets import Audio, Dataset, Features, Value
from transformers import Wav2Vec2FeatureExtractor

from hf_plr.data import audio_containers
from hf_plr.data.audio_containers import name_container
from hf_plr.data.audio_decoding import UnreadableRecording, decode_waveform, describe_unreadable
from hf_plr.data.audio_segments import Segmentation, decode_segments, iterate_segments
from hf_plr.data.audio_store import AudioFormat, AudioStore

RATE = 16_000
EMPTY_M4A = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + b"\0" * 500
HEADS = [
    (EMPTY_M4A, "", "M4A"),
    (b"\0\0\0\x18ftypmp42", ".m4a", "M4A"),
    (b"\0\0\0\x18ftypmp42", "", "MP4"),
    (b"\0\0\0\x18ftyp3gp4", "", "3GP"),
    (b"\xff\xf1\x50\x80", "", "AAC"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "", "WMA"),
    (b"#!AMR\n", "", "AMR"),
    (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", "", "WebM"),
    (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x88matroska", "", "Matroska"),
    (b"nothing known", ".WMA", "WMA"),
    (b"RIFF\0\0\0\0WAVE", ".wav", None),
    (b"\xff\xfb\x90\x64", ".mp3", None),
    (b"ID3\x04", ".mp3", None),
    (b"OggS", ".ogg", None),
    (b"", ".m4a", None),
]


@pytest.fixture
def without_av(monkeypatch):
    monkeypatch.setattr(audio_containers, "has_decoder", lambda: False)


def write_container(waveform, kind="mp4", codec="aac", rate=RATE):
    """Encode a waveform (T,) or (T, 2) by PyAV."""
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono" if waveform.ndim == 1 else "stereo")
        planes = np.ascontiguousarray(np.atleast_2d(waveform.T), np.float32)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=stream.layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


def sweep(seconds, rate=RATE):
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (300 + 40 * time) * time)).astype(np.float32)


@pytest.mark.parametrize(("head", "suffix", "name"), HEADS)
def test_a_container_is_known_by_its_content_or_its_name(without_av, head, suffix, name):
    assert name_container(head[:64], suffix) == name
    needed = describe_unreadable(head[:64], suffix)
    assert needed == (None if name is None else f"{name} needs av (pip install av)")


def test_with_the_decoder_nothing_is_needed(monkeypatch):
    monkeypatch.setattr(audio_containers, "has_decoder", lambda: True)
    assert describe_unreadable(EMPTY_M4A[:64], ".m4a") is None


def test_without_the_decoder_the_remedy_is_named(without_av, tmp_path):
    path = tmp_path / "phone.m4a"
    path.write_bytes(EMPTY_M4A)
    for value in (EMPTY_M4A, str(path), {"bytes": None, "path": str(path)}, {"bytes": EMPTY_M4A, "path": "phone.m4a"}):
        with pytest.raises(UnreadableRecording, match=r"recording 3 cannot be read: M4A needs av \(pip install av\)"):
            decode_waveform(value, 3, RATE)


def test_a_phones_recording_is_decoded(tmp_path):
    for waveform in (sweep(2.0), np.stack([sweep(2.0), -0.5 * sweep(2.0)], axis=1)):
        stored = write_container(waveform)
        path = tmp_path / "phone.m4a"
        path.write_bytes(stored)
        expected = waveform if waveform.ndim == 1 else waveform.mean(axis=1)
        for value in (stored, str(path), {"bytes": None, "path": str(path)}):
            found = decode_waveform(value, 0, RATE)
            assert found.dtype == np.float32
            assert 0 <= len(found) - len(expected) < 2048  # whole blocks of the codec
            np.testing.assert_allclose(found[2000:30_000], expected[2000:30_000], atol=0.02)
        assert len(decode_waveform(stored, 0, RATE, max_samples=1000)) == 1000
    assert abs(len(decode_waveform(stored, 0, 8_000)) - RATE) < 1024


@pytest.mark.parametrize(("kind", "codec"), [("adts", "aac"), ("webm", "libopus"), ("matroska", "aac")])
def test_relatives_are_decoded(kind, codec):
    stored = write_container(sweep(1.0, 48_000), kind, codec, 48_000)
    assert abs(len(decode_waveform(stored, 0, RATE)) - RATE) < 1500


def test_segments_of_a_container(tmp_path):
    stored = write_container(sweep(4.0))
    whole = decode_waveform(stored, 0, RATE)
    found = list(iterate_segments(stored, 0, RATE, Segmentation(RATE, RATE)))
    assert np.array_equal(np.concatenate([segment for _, segment in found]), whole)
    spans = [(start, len(segment)) for start, segment in found]
    for again, (_, segment) in zip(decode_segments(stored, 0, RATE, spans[::-1]), found[::-1], strict=True):
        np.testing.assert_array_equal(again, segment)


def test_a_damaged_container_is_named():
    pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    for damaged in (EMPTY_M4A, write_container(sweep(1.0))[:2000]):
        with pytest.raises(UnreadableRecording, match=r"recording 3 cannot be read as M4A \(.+\)"):
            decode_waveform({"bytes": damaged, "path": "phone.m4a"}, 3, RATE)


def test_a_container_opens_no_other_file(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    (tmp_path / "secret.aac").write_bytes(write_container(sweep(1.0), "adts"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.aac\n#EXT-X-ENDLIST\n".encode()
    listed = b"ffconcat version 1.0\nfile secret.aac\n"
    for content in (playlist, listed):
        (tmp_path / "phone.m4a").write_bytes(content)
        for value in ({"bytes": content, "path": "phone.m4a"}, {"bytes": None, "path": str(tmp_path / "phone.m4a")}):
            with pytest.raises(UnreadableRecording, match="recording 3 cannot be read as M4A"):
                decode_waveform(value, 3, RATE)


def test_a_container_among_other_recordings():
    files = [{"bytes": write_container(sweep(1.0)), "path": "a.m4a"}, {"bytes": EMPTY_M4A, "path": "b.m4a"}]
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}})
    rows = Dataset.from_dict({"audio": files}, features=features).cast_column("audio", Audio())
    store = AudioStore(
        rows, "audio", AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=RATE), 400), skip_unreadable=True
    )
    assert store.unreadable == [1]
    assert store.files() == ["a.m4a"]
