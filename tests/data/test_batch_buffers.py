"""Memory of batches that is used again, and never while somebody holds the batch."""

from __future__ import annotations

import numpy as np
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
    assert len(buffers._buffers) == MOST_BUFFERS


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
