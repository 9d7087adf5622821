"""Decoded samples in memory and in files: filled by whoever decodes them, and never shown before they are written."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Wav2Vec2FeatureExtractor

from hf_plr.data.audio_store import AudioFormat, AudioStore
from hf_plr.data.decoded_cache import DecodedCache
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.data.image_store import ImageGeometry, ImageStore, UnreadableImage, collate_images
from hf_plr.models.vision import small_vit_processor

OFFSETS = range(0, 11 * 12, 12)
SAMPLES = np.random.default_rng(0).integers(0, 256, (10, 12), np.uint8)


@pytest.fixture
def geometry() -> ImageGeometry:
    return ImageGeometry(small_vit_processor(16), 3)


@pytest.fixture(params=["memory", "other memory", "file"])
def cache(request, tmp_path, monkeypatch) -> DecodedCache:
    if request.param == "other memory":  # of systems without files in it
        monkeypatch.delattr(os, "memfd_create", raising=False)
    if request.param != "file":
        return DecodedCache.in_memory(OFFSETS)
    return DecodedCache.in_file(tmp_path, "images", "key", OFFSETS)


# ---- the cache itself --------------------------------------------------------------------------------------------


def test_what_is_written_is_found_in_any_order(cache):
    numbers = np.arange(10)
    assert not cache.find(numbers).any()
    for number in (7, 0, 3):
        cache.write(number, SAMPLES[number])
    assert np.flatnonzero(cache.find(numbers)).tolist() == [0, 3, 7]
    assert np.array_equal(cache.read(7), SAMPLES[7])
    assert cache.seems_complete(np.array([7, 0]))
    assert not cache.seems_complete(numbers)
    with pytest.raises(ValueError, match="sample 1 has 11 bytes, not 12"):
        cache.write(1, SAMPLES[1, :11])


def test_samples_of_zeros_count_as_written(cache):
    cache.write(2, np.zeros(12, np.uint8))
    assert cache.find(np.arange(10)).tolist() == [number == 2 for number in range(10)]


def test_forked_processes_fill_it_together(cache):
    children = []
    for part in (range(5), range(5, 10)):
        child = os.fork()
        if child == 0:
            for number in part:
                cache.write(number, SAMPLES[number])
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert cache.find(np.arange(10)).all()
    assert np.array_equal(cache.content.reshape(10, 12), SAMPLES)


def test_it_is_opened_again_by_what_is_not_forked(cache):
    cache.write(4, SAMPLES[4])
    if not cache.can_be_sent:
        with pytest.raises(TypeError, match="cannot be sent"):
            copy.deepcopy(cache)
        return
    sent = copy.deepcopy(cache)  # by what pickling takes
    sent.write(5, SAMPLES[5])
    assert np.flatnonzero(cache.find(np.arange(10))).tolist() == [4, 5]


@pytest.mark.parametrize("loses", ["bytes", "marks"])
def test_a_crash_that_loses_either_part_loses_samples_and_shows_none_that_were_not_written(tmp_path, loses):
    """The system writes pages to the disk in any order: marks may outlive the bytes that they are of."""
    cache = DecodedCache.in_file(tmp_path, "images", "key", OFFSETS)
    for number in range(10):
        cache.write(number, SAMPLES[number])
    (path,) = tmp_path.glob(f"*.{loses}")
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    path.write_bytes(content)
    again = DecodedCache.in_file(tmp_path, "images", "key", OFFSETS)
    assert np.flatnonzero(again.find(np.arange(10))).tolist() == [5, 6, 7, 8, 9]


def test_keys_and_sizes_have_files_of_their_own(tmp_path):
    first = DecodedCache.in_file(tmp_path, "images", "key", OFFSETS)
    first.write(0, SAMPLES[0])
    for key, offsets in (("other", OFFSETS), ("key", range(0, 12 * 12, 12)), ("key", range(0, 11 * 6, 6))):
        assert not DecodedCache.in_file(tmp_path, "images", key, offsets).find(np.arange(5)).any()
    assert len(list(tmp_path.glob("*.bytes"))) == 4
    first.remove()
    assert len(list(tmp_path.glob("*"))) == 6


def test_a_disk_without_room_is_refused_with_the_size_and_the_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"has 3.0 GiB of room, but the decoded samples need 4.0 GiB more"):
        DecodedCache.in_file(tmp_path, "images", "key", [0, 2**32])
    assert list(tmp_path.iterdir()) == []
    DecodedCache.in_file(tmp_path, "images", "key", [0, 2**31])


def test_a_disk_that_fills_up_ends_the_writing_and_not_the_run(tmp_path, monkeypatch, caplog):
    cache = DecodedCache.in_file(tmp_path, "images", "key", OFFSETS)
    cache.write(0, SAMPLES[0])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for number in range(1, 10):
        cache.write(number, SAMPLES[number])
    assert caplog.text.count("No more decoded samples are kept") == 1
    assert np.flatnonzero(cache.find(np.arange(10))).tolist() == [0]


# ---- in stores -----------------------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_then_read_from_the_file(some_digits, geometry, tmp_path, monkeypatch):
    in_memory = ImageStore(some_digits, "image", geometry).check()
    first = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path)
    assert not first.is_cached
    first.check()
    assert sorted(name.rsplit(".")[-1] for name in os.listdir(tmp_path)) == ["bytes", "marks"]
    monkeypatch.setattr("hf_plr.data.image_decoding.ImageDecoder.decode", lambda *_: pytest.fail("decoded again"))
    second = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path)
    some = torch.tensor([202, 0, 17])
    for store in (first, second, in_memory):
        assert store.is_cached
        assert torch.equal(store.pixels(some), in_memory.pixels(some))
        assert torch.equal(store[5]["pixel_values"], in_memory[5]["pixel_values"])


def test_batches_of_kept_and_other_images_are_the_same(some_digits, geometry, tmp_path):
    decoded = ImageStore(some_digits, "image", geometry, cache_bytes=0)
    for cache_dir in (None, tmp_path):
        store = ImageStore(some_digits, "image", geometry, cache_dir=cache_dir)
        store.pixels(torch.tensor([4, 9]))
        mixed = torch.tensor([9, 1, 4, 9, 2])
        for _ in range(2):
            assert torch.equal(store.pixels(mixed), decoded.pixels(mixed))
        assert not store.is_cached


def test_the_bound_of_memory_is_of_memory_alone(some_digits, geometry, tmp_path):
    size = 203 * 3 * 16 * 16
    assert ImageStore(some_digits, "image", geometry, cache_bytes=size).check().is_cached
    assert not ImageStore(some_digits, "image", geometry, cache_bytes=size - 1).check().is_cached
    assert ImageStore(some_digits, "image", geometry, cache_dir=tmp_path, cache_bytes=0).check().is_cached


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("is_in_file", [False, True])
def test_workers_fill_the_cache_of_their_parent(some_digits, geometry, tmp_path, monkeypatch, is_in_file, start):
    store = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path if is_in_file else None)
    if start == "spawn" and not store._cache.can_be_sent:
        pytest.skip("no files in memory here")
    expected = ImageStore(some_digits, "image", geometry, cache_bytes=0).pixels(torch.arange(203))
    workers = 2 if start == "fork" else 1  # which begin slowly
    loader = DataLoader(
        store, batch_size=16, collate_fn=collate_images, num_workers=workers, multiprocessing_context=start
    )
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected)
    assert store.is_cached
    monkeypatch.setattr("hf_plr.data.image_decoding.ImageDecoder.decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(store.pixels(torch.arange(203)), expected)


def test_workers_decode_again_where_memory_cannot_be_sent(some_digits, geometry, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    store = ImageStore(some_digits, "image", geometry).check()
    sent = copy.copy(store)  # by what pickling takes
    assert (store.is_cached, sent.is_cached) == (True, False)
    assert torch.equal(sent.pixels(torch.arange(20)), store.pixels(torch.arange(20)))


def test_damaged_files_are_decoded_anew(some_digits, geometry, tmp_path):
    expected = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path).check().pixels(torch.arange(203))
    (path,) = tmp_path.glob("*.bytes")
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole[:5000] + b"\0" * 100 + whole[5100:]):
        path.write_bytes(damaged)
        store = ImageStore(some_digits, "image", geometry, cache_dir=tmp_path)
        assert torch.equal(store.check().pixels(torch.arange(203)), expected)
        del store
        assert path.read_bytes() == whole


def test_unreadable_rows_take_no_part(some_digits, geometry, tmp_path):
    images = some_digits.select(range(5)).to_list()
    images[3]["image"]["bytes"] = b"no image"
    damaged = Dataset.from_list(images, features=some_digits.features)
    expected = ImageStore(some_digits, "image", geometry).pixels(torch.tensor([0, 1, 2, 4]))
    for _ in range(2):
        with pytest.raises(UnreadableImage, match="image 3 cannot be read"):
            ImageStore(damaged, "image", geometry, cache_dir=tmp_path).check()
        store = ImageStore(damaged, "image", geometry, cache_dir=tmp_path, skip_unreadable=True).check()
        assert store.unreadable == [3]
        assert store.rows.tolist() == [0, 1, 2, 4]
        assert store.is_cached
        assert torch.equal(store.pixels(torch.arange(4)), expected)


@pytest.mark.parametrize("segment_seconds", [None, 0.25])
def test_sounds_in_a_file_are_the_same_bit_for_bit(tmp_path, monkeypatch, segment_seconds):
    rows = make_synthetic_recordings(n_per_class=2)
    audio_format = AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=8000), 400, segment_seconds=segment_seconds)
    decoded = AudioStore(rows, "audio", audio_format, cache_bytes=0).check()
    first = AudioStore(rows, "audio", audio_format, cache_dir=tmp_path, cache_bytes=0).check()
    assert (first.is_cached, decoded.is_cached) == (True, False)
    monkeypatch.setattr("hf_plr.data.audio_store.decode_waveform", lambda *_, **__: pytest.fail("decoded again"))
    monkeypatch.setattr("hf_plr.data.audio_store.decode_segments", lambda *_, **__: pytest.fail("decoded again"))
    second = AudioStore(rows, "audio", audio_format, cache_dir=tmp_path)
    monkeypatch.undo()
    for store in (first, second):
        for position in range(len(decoded)):
            assert torch.equal(store[position]["input_values"], decoded[position]["input_values"])


# ---- kills ---------------------------------------------------------------------------------------------------------

FILL = textwrap.dedent(
    """
    import sys, time
    from hf_plr.data.example_data import digits
    from hf_plr.data.image_store import ImageGeometry, ImageStore
    from hf_plr.models.vision import small_vit_processor

    store = ImageStore(digits().select(range(400)), "image", ImageGeometry(small_vit_processor(16), 3),
                       cache_dir=sys.argv[1], manifest_dir=sys.argv[1])
    store.decode_batch = 7
    print("begins", flush=True)
    store.check()
    """
)


def test_killed_at_any_moment_the_next_run_has_the_same_images(all_digits, tmp_path):
    some = all_digits.select(range(400))
    geometry = ImageGeometry(small_vit_processor(16), 3)
    expected = ImageStore(some, "image", geometry, cache_bytes=0).pixels(torch.arange(400))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for delay in (0.0, 0.02, 0.05):
        run = subprocess.Popen(
            [sys.executable, "-c", FILL, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert run.stdout is not None
        assert run.stdout.readline() == "begins\n"
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        store = ImageStore(some, "image", geometry, cache_dir=tmp_path)
        is_kept = store._cache.find(np.arange(400))
        kept = store._cache.content.reshape(400, 3, 16, 16)[is_kept]
        assert np.array_equal(kept, expected.numpy()[is_kept])
    store = ImageStore(some, "image", geometry, cache_dir=tmp_path, manifest_dir=tmp_path).check()
    assert store.is_checked
    assert torch.equal(store.pixels(torch.arange(400)), expected)
