"""Manifests: a second run of the same data knows what the first found out, and never what is not so."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, Image
from PIL import Image as PILImage
from safetensors.numpy import save_file
from transformers import Wav2Vec2FeatureExtractor

from hf_plr.data.audio_decoding import UnreadableRecording
from hf_plr.data.audio_store import AudioFormat, AudioStore
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.data.image_decoding import UnreadableImage
from hf_plr.data.image_store import ImageGeometry, ImageStore
from hf_plr.data.manifest import FORMAT, Manifest, ManifestFile
from hf_plr.models.vision import small_vit_processor


@pytest.fixture
def geometry() -> ImageGeometry:
    return ImageGeometry(small_vit_processor(16), 3)


@pytest.fixture
def pictures(tmp_path) -> Dataset:
    """Paths of 12 images, of which two are damaged."""
    for row in range(12):
        PILImage.fromarray(np.full((9, 9), 20 * row, np.uint8)).save(tmp_path / f"{row}.png")
    for row in (3, 8):
        (tmp_path / f"{row}.png").write_bytes(b"no image")
    return Dataset.from_dict({"image": [str(tmp_path / f"{row}.png") for row in range(12)]}).cast_column(
        "image", Image()
    )


def audio_format(seconds: float | None = None) -> AudioFormat:
    return AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=8000), 400, segment_seconds=seconds)


@pytest.mark.parametrize("totals", [None, np.array([5, -1, 0])])
def test_it_is_read_as_it_was_written(tmp_path, totals):
    file = ManifestFile(tmp_path / "new" / "folder", "key", 3)
    assert file.read() is None
    file.write(Manifest(np.array([1]), totals))
    manifest = file.read()
    assert manifest.unreadable.tolist() == [1]
    assert manifest.totals is totals or manifest.totals.tolist() == totals.tolist()
    assert os.listdir(file.path.parent) == [file.path.name]
    for key, n_rows in (("other", 3), ("key", 4)):
        assert ManifestFile(file.path.parent, key, n_rows).read() is None


def test_rates_are_read_as_they_were_written(tmp_path):
    file = ManifestFile(tmp_path, "key", 3)
    file.write(Manifest(np.array([1]), np.array([5, -1, 0]), (8_000, 44_100)))
    assert file.read().rates == (8_000, 44_100)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"unreadable": np.array([3])},
        {"unreadable": np.array([-1])},
        {"unreadable": np.array([0.5])},
        {"unreadable": np.array([1]), "totals": np.array([5, 6])},
        {"unreadable": np.array([1]), "totals": np.array([5, 6, -2])},
        {"unreadable": np.array([1]), "totals": np.array([5, 6, 7]), "rates": np.array([0, 8000])},
    ],
)
def test_what_does_not_fit_counts_as_absent(tmp_path, arrays):
    file = ManifestFile(tmp_path, "key", 3)
    save_file(arrays, file.path, metadata={"format": FORMAT})
    assert file.read() is None
    file.write(Manifest(np.array([1])))
    assert file.read() is not None


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, geometry, some_digits, caplog):
    (tmp_path / "file").write_text("")
    store = ImageStore(some_digits, "image", geometry, manifest_dir=tmp_path / "file" / "folder").check()
    assert store.is_checked
    assert "The next run checks all samples again" in caplog.text


def test_a_disk_that_fills_up_is_a_warning(tmp_path):
    """In a process of its own, whose files may have a thousand bytes."""
    lines = (
        "import resource, signal, sys",
        "import numpy as np",
        "from hf_plr.data.manifest import Manifest, ManifestFile",
        "file = ManifestFile(sys.argv[1], 'key', 10_000)",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))",
        "file.write(Manifest(np.array([1]), np.zeros(10_000, np.int64)))",
    )
    run = subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "The next run checks all samples again" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_images_are_not_decoded_again_to_be_checked(pictures, geometry, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "manifests"
    first = ImageStore(pictures, "image", geometry, skip_unreadable=True, manifest_dir=folder)
    assert (first.is_checked, len(first)) == (False, 12)
    first.check()
    caplog.clear()
    decoded = []
    decode = ImageStore._decode_rows
    monkeypatch.setattr(
        ImageStore, "_decode_rows", lambda self, rows: decoded.extend(rows.tolist()) or decode(self, rows)
    )
    second = ImageStore(pictures, "image", geometry, skip_unreadable=True, manifest_dir=folder)
    assert second.is_checked
    assert decoded == [3]  # whether it is still unreadable
    assert second.unreadable == first.unreadable == [3, 8]
    assert second.rows.tolist() == first.rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
    assert "2 of 12 images cannot be read and are left out: row 3" in caplog.text
    assert second.digest() == first.digest()
    with pytest.raises(UnreadableImage, match=r"image 3 cannot be read \(.*3\.png.*\)\. --skip_unreadable"):
        ImageStore(pictures, "image", geometry, manifest_dir=folder)


def test_an_image_that_can_be_read_meanwhile_is_taken_again(pictures, geometry, tmp_path, monkeypatch):
    """With another library, say: what decodes is not in the key."""
    ImageStore(pictures, "image", geometry, skip_unreadable=True, manifest_dir=tmp_path / "manifests").check()
    monkeypatch.setattr("hf_plr.data.sample_store.stamp_column", lambda *_: "the same")
    ImageStore(pictures, "image", geometry, skip_unreadable=True, manifest_dir=tmp_path / "manifests").check()
    for row in (3, 8):
        PILImage.new("L", (9, 9)).save(tmp_path / f"{row}.png")
    store = ImageStore(pictures, "image", geometry, skip_unreadable=True, manifest_dir=tmp_path / "manifests")
    assert not store.is_checked
    assert store.check().unreadable == []


def test_a_run_that_ends_for_a_bad_file_leaves_what_it_has_found(pictures, geometry, tmp_path, monkeypatch):
    folder = tmp_path / "manifests"
    with pytest.raises(UnreadableImage, match="image 3 cannot be read"):
        ImageStore(pictures, "image", geometry, manifest_dir=folder).check()
    decoded = []
    decode = ImageStore._decode_rows
    monkeypatch.setattr(
        ImageStore, "_decode_rows", lambda self, rows: decoded.extend(rows.tolist()) or decode(self, rows)
    )
    store = ImageStore(pictures, "image", geometry, skip_unreadable=True, manifest_dir=folder)
    assert store.is_checked
    assert store.unreadable == [3, 8]
    assert decoded == [3]


@pytest.mark.parametrize("seconds", [None, 0.25])
def test_true_lengths_are_left_too(tmp_path, seconds):
    """Also those that were found beside a recording that ended the run."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(24_000) / 9), 8000, format="MP3")
    broken = io.BytesIO()
    soundfile.write(broken, np.full(6000, np.nan, np.float32), 8000, format="WAV", subtype="FLOAT")
    files = [buffer.getvalue()[: len(buffer.getvalue()) // 2], broken.getvalue(), buffer.getvalue()]
    rows = Dataset.from_dict({"audio": [{"bytes": file, "path": None} for file in files]})
    with pytest.raises(UnreadableRecording, match="recording 1 holds samples that are NaN"):
        AudioStore(rows, "audio", audio_format(seconds), manifest_dir=tmp_path).check()
    second = AudioStore(rows, "audio", audio_format(seconds), skip_unreadable=True, manifest_dir=tmp_path)
    assert second.is_checked
    assert second.unreadable == [1]
    assert 400 < second.lengths[second.rows == 0].sum() < 20_000 < second.lengths[second.rows == 2].sum()
    assert [len(second[i]["input_values"]) for i in range(len(second))] == second.lengths.tolist()


@pytest.mark.parametrize("seconds", [None, 0.25])
def test_a_recording_that_can_be_read_meanwhile_is_taken_again(tmp_path, monkeypatch, seconds):
    rows = make_synthetic_recordings(n_per_class=1).cast_column("audio", Audio(decode=False)).to_list()
    data = [[row["audio"] for row in rows], [row["audio"] for row in rows]]
    data[0][2] = {"bytes": b"no sound", "path": None}

    def make(column: list[dict]) -> AudioStore:
        dataset = Dataset.from_dict({"audio": column})
        dataset._fingerprint = "the same"
        return AudioStore(dataset, "audio", audio_format(seconds), skip_unreadable=True, manifest_dir=tmp_path)

    assert make(data[0]).check().unreadable == [2]
    assert make(data[0]).is_checked
    again = make(data[1])
    assert not again.is_checked
    assert again.check().unreadable == []
    assert set(again.rows.tolist()) == set(range(8))


def test_files_that_have_changed_are_checked_again(pictures, geometry, tmp_path):
    def make() -> ImageStore:
        return ImageStore(pictures, "image", geometry, skip_unreadable=True, manifest_dir=tmp_path / "manifests")

    make().check()
    assert make().is_checked
    (tmp_path / "5.png").write_bytes(b"another")
    changed = make()
    assert not changed.is_checked
    assert changed.check().unreadable == [3, 5, 8]


def test_other_data_and_other_ways_to_decode_have_manifests_of_their_own(some_digits, geometry, tmp_path):
    ImageStore(some_digits, "image", geometry, manifest_dir=tmp_path).check()
    again = ImageStore(some_digits, "image", ImageGeometry(small_vit_processor(16), 3), manifest_dir=tmp_path)
    assert again.is_checked
    for data, other in (
        (some_digits.select(range(100)), geometry),
        (some_digits.select(range(203)[::-1]), geometry),
        (some_digits.map(lambda row: row, new_fingerprint="random"), geometry),
        (some_digits, ImageGeometry(small_vit_processor(16), 3, pixel_range=[0, 9])),
        (some_digits, ImageGeometry(small_vit_processor(16), 3, background="black")),
    ):
        assert not ImageStore(data, "image", other, manifest_dir=tmp_path).is_checked


@pytest.mark.parametrize("seconds", [None, 0.25])
def test_headers_of_recordings_are_not_read_again(tmp_path, monkeypatch, seconds):
    rows = make_synthetic_recordings(n_per_class=2)
    first = AudioStore(rows, "audio", audio_format(seconds), manifest_dir=tmp_path).check()
    monkeypatch.setattr(soundfile, "SoundFile", lambda *_: pytest.fail("opened again"))
    second = AudioStore(rows, "audio", audio_format(seconds), manifest_dir=tmp_path)
    assert second.is_checked
    for name in ("rows", "lengths") if seconds is None else ("rows", "lengths", "segments"):
        assert np.array_equal(getattr(second, name), getattr(first, name))
    monkeypatch.undo()
    assert not AudioStore(rows, "audio", AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=4000), 400),
                          manifest_dir=tmp_path).is_checked  # fmt: skip


def test_true_lengths_are_remembered_and_not_those_of_headers(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(24_000) / 9), 8000, format="MP3")
    cut = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    rows = Dataset.from_dict({"audio": [{"bytes": cut, "path": None}] * 2})
    first = AudioStore(rows, "audio", audio_format(), manifest_dir=tmp_path)
    assert first.lengths.tolist() == [24_000] * 2
    first.check()
    assert 400 < first.lengths[0] < 20_000
    second = AudioStore(rows, "audio", audio_format(), manifest_dir=tmp_path)
    assert second.is_checked
    assert second.lengths.tolist() == first.lengths.tolist()
    assert [len(second[i]["input_values"]) for i in range(2)] == first.lengths.tolist()
