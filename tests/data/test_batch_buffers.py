"""Memory of batches that is used again, and never while somebody holds the batch."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_plr.data.batch_buffers import MOST_BUFFERS, BatchBuffers
from hf_plr.data.image_store import ImageGeometry, ImageStore, collate_images
from hf_plr.models.vision import small_vit_processor

SOURCE = torch.arange(40 * 6, dtype=torch.uint8).reshape(40, 2, 3)


def test_memory_is_used_again_once_nothing_refers_to_the_batch():
    buffers = BatchBuffers()
    addresses = set()
    for start in range(30):
        batch = buffers.take(SOURCE.numpy(), np.arange(start, start + 8))
        assert torch.equal(batch, SOURCE[start : start + 8])
        addresses.add(batch.data_ptr())
    assert len(addresses) <= 2  # the last one is held while the next is made


def test_a_batch_that_is_held_keeps_its_values():
    buffers = BatchBuffers()
    held = [
        buffers.take(SOURCE.numpy(), np.arange(start, start + 8))[2:5] for start in range(3 * MOST_BUFFERS)
    ]  # views too
    for start, part in enumerate(held):
        assert torch.equal(part, SOURCE[start + 2 : start + 5])
    del held, part
    assert len(buffers._free) == MOST_BUFFERS


def test_what_is_held_does_not_rest_on_how_an_interpreter_counts_references(monkeypatch):
    count = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda value: count(value) - 2)  # one for this function, one for 3.14
    buffers = BatchBuffers()
    held = [buffers.take(SOURCE.numpy(), np.arange(start, start + 8)) for start in range(2 * MOST_BUFFERS)]
    for start, batch in enumerate(held):
        assert torch.equal(batch, SOURCE[start : start + 8])


@pytest.mark.parametrize(
    "keep",
    [
        lambda batch: batch.numpy()[2:],
        lambda batch: batch.view(-1)[12:].view(-1, 2, 3),
        lambda batch: batch.detach()[2:],
    ],
)
def test_whatever_shares_the_memory_of_a_batch_holds_it(keep):
    buffers = BatchBuffers()
    held = [keep(buffers.take(SOURCE.numpy(), np.arange(start, start + 8))) for start in range(2 * MOST_BUFFERS)]
    for start, part in enumerate(held):
        assert torch.equal(torch.as_tensor(part), SOURCE[start + 2 : start + 8])


def test_threads_get_batches_of_their_own():
    buffers = BatchBuffers()

    def check(start: int) -> bool:
        batch = buffers.take(SOURCE.numpy(), np.arange(start % 30, start % 30 + 8))
        time.sleep(1e-4)
        return torch.equal(batch, SOURCE[start % 30 : start % 30 + 8])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, range(500)))


def test_a_smaller_batch_fits_and_a_larger_one_gets_more():
    buffers = BatchBuffers()
    for size in (8, 3, 20, 1):
        assert torch.equal(buffers.take(SOURCE.numpy(), np.arange(size)), SOURCE[:size])


def test_images_reach_a_loader_without_another_copy(some_digits):
    store = ImageStore(some_digits, "image", ImageGeometry(small_vit_processor(16), num_channels=3))
    items = store.__getitems__([5, 0, 7])
    batch = collate_images(items)
    assert batch["pixel_values"].data_ptr() == items[0]["pixel_values"].data_ptr()
    assert batch["index"].tolist() == [5, 0, 7]
    torch.testing.assert_close(batch["pixel_values"], collate_images(list(items))["pixel_values"])  # a user's own list
    for workers in (0, 1):
        loader = DataLoader(store, batch_size=32, collate_fn=collate_images, num_workers=workers)
        kept = list(loader)
        assert torch.equal(torch.cat([each["pixel_values"] for each in kept]), store.pixels(torch.arange(len(store))))
