"""Damaged images, recordings and caches of them."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from helpers.damaged import check_damaged
from PIL import Image

from hf_plr.data.audio_decoding import UnreadableRecording, decode_waveform
from hf_plr.data.image_decoding import ImageDecoder, UnreadableImage
from hf_plr.data.pixel_cache import PixelCache

pytestmark = pytest.mark.timeout(300)


def test_pixel_cache(tmp_path):
    cache = PixelCache(tmp_path, "key", (6, 3, 2, 2))
    with cache.create() as room:
        room.fill_(7)
        cache.write_note([1, 4])

    def read():
        found = cache.read()
        if found is not None:
            pixels, unreadable = found
            assert (pixels.shape, pixels.dtype) == ((6, 3, 2, 2), torch.uint8)
            assert unreadable == sorted(set(unreadable))
            assert all(0 <= row < 6 for row in unreadable)

    pixels, unreadable = cache.read()
    assert (pixels == 7).all()
    assert unreadable == [1, 4]
    for path in (cache.path, cache._note_path):  # damaged ones count as not there
        check_damaged(path, read, errors=())
    for note in ('{"unreadable": [6]}', '{"unreadable": [true]}', '{"unreadable": "1"}', "[1]", "3", "[" * 10**5):
        cache._note_path.write_text(note)
        assert cache.read() is None


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
