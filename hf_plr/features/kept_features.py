"""Features that were just extracted, for whoever extracts the very same next."""

from __future__ import annotations

import hashlib
import os
import weakref
from dataclasses import dataclass

import numpy as np
import torch

from hf_plr.data.sample_store import SampleStore
from hf_plr.utils.mapped_arrays import allocate_array


@dataclass
class _Kept:
    revision: int
    positions: torch.Tensor
    products: tuple[str, int]
    weights: str
    features: torch.Tensor


class KeptFeatures:
    """Features of this process's part of a store, kept for whoever extracts the very same next.

    They are given out as long as store, positions, products and weights are those that they were computed with:
    weights are compared by a hash. Features go with their store. `close` forgets them, and nothing is kept afterwards.

    Args:
        folder: folder of a memory-mapped file without a name for them; None keeps them in memory.

    Attributes:
        is_open: True until `close`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self.folder = folder
        self._kept: weakref.WeakKeyDictionary[SampleStore, _Kept] = weakref.WeakKeyDictionary()
        self.is_open = True

    def close(self) -> None:
        """Forget the features, and keep none from now on: training begins."""
        self._kept.clear()
        self.is_open = False

    def allocate(self, n_rows: int, width: int) -> torch.Tensor:
        """Allocate features of n samples that are to be kept: float32 (n, D) on the CPU."""
        shape = (n_rows, width)
        if self.folder is None:
            return torch.empty(shape)
        return torch.from_numpy(allocate_array(shape, np.float32, self.folder))

    def keep(
        self,
        store: SampleStore,
        positions: torch.Tensor,
        model: torch.nn.Module,
        products: tuple[str, int],
        features: torch.Tensor,
    ) -> None:
        """Keep the features of samples.

        Args:
            store: the samples.
            positions: positions in the store, shape (n,).
            model: the backbone.
            products: precision of its products, and samples of a batch, which the last bits depend on.
            features: shape (n, D).
        """
        if self.is_open:
            self._kept[store] = _Kept(store.revision, positions, products, hash_weights(model), features)

    def find(
        self, store: SampleStore, positions: torch.Tensor, model: torch.nn.Module, products: tuple[str, int]
    ) -> torch.Tensor | None:
        """Find what an extraction would give, (n, D), with arguments as of `keep`; None if it is not kept."""
        kept = self._kept.get(store)
        is_asked = (
            kept is not None
            and kept.revision == store.revision
            and kept.products == products
            and torch.equal(kept.positions, positions)
        )
        if not is_asked:
            return None
        assert kept is not None
        if kept.weights == hash_weights(model):
            return kept.features
        del self._kept[store]  # weights do not come back
        return None


def hash_weights(model: torch.nn.Module) -> str:
    """Hash all parameters and buffers of a module, in their order."""
    digest = hashlib.sha256()
    for value in (*model.parameters(), *model.buffers()):
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
