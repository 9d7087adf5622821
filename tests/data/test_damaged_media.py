"""Damaged images, recordings and caches of them."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from helpers.damaged import check_damaged
from PIL import Image

from hf_plr.data.audio_decoding import UnreadableRecording, decode_waveform
from hf_plr.data.decoded_cache import DecodedCache
from hf_plr.data.image_decoding import ImageDecoder, UnreadableImage
from hf_plr.data.manifest import Manifest, ManifestFile

pytestmark = pytest.mark.timeout(300)


def test_decoded_samples(tmp_path):
    offsets = range(0, 7 * 12, 12)
    samples = np.random.default_rng(0).integers(0, 256, (6, 12), np.uint8)
    cache = DecodedCache.in_file(tmp_path, "images", "key", offsets)
    for number in (0, 1, 2, 4, 5):
        cache.write(number, samples[number])

    def read():
        again = DecodedCache.in_file(tmp_path, "images", "key", offsets)
        is_kept = again.find(np.arange(6))
        assert not is_kept[3]
        for number in np.flatnonzero(is_kept):  # damaged ones count as not there
            assert np.array_equal(again.read(number), samples[number])

    read()
    for path in sorted(tmp_path.iterdir()):
        check_damaged(path, read, errors=())


@pytest.mark.parametrize("totals", [None, np.array([5, -1, 0, 7, 9, 3])], ids=["images", "sounds"])
def test_manifests(tmp_path, totals):
    file = ManifestFile(tmp_path, "key", 6)
    file.write(Manifest(np.array([1, 4]), totals))

    def read():
        manifest = file.read()
        if manifest is not None:
            assert all(0 <= row < 6 for row in manifest.unreadable)
            assert manifest.totals is None or (manifest.totals.shape == (6,) and manifest.totals.min() >= -1)

    assert file.read().unreadable.tolist() == [1, 4]
    check_damaged(file.path, read, errors=())


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_images(tmp_path, kind):
    path = tmp_path / f"image.{kind}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    check_damaged(
        path, lambda: ImageDecoder(3).decode(str(path), 5), errors=(UnreadableImage,), named="image 5", examples=60
    )


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_sounds(tmp_path, kind):
    path = tmp_path / f"sound.{kind}"
    soundfile.write(path, np.sin(np.arange(800) / 5), 8_000)

    def read():
        waveform = decode_waveform(str(path), 5, 8_000, max_samples=4_000)
        assert (waveform.ndim, waveform.dtype) == (1, np.float32)
        assert np.isfinite(waveform).all()

    check_damaged(path, read, errors=(UnreadableRecording,), named="recording 5", examples=60)
