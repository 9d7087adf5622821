"""First pass over samples that nobody has decoded yet: finds unreadable ones, and keeps the features it computes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_plr.data.sample_store import SampleStore
from hf_plr.utils.distributed import gather_results

if TYPE_CHECKING:
    from hf_plr.features.extractor import FeatureExtractor


@dataclass
class _Kept:
    store: SampleStore
    revision: int
    positions: torch.Tensor
    precision: str
    batch_size: int
    weights: str
    features: torch.Tensor


class KeptFeatures:
    """Features of this process's part of a store, kept for whoever extracts the very same next.

    They are given out as long as store, positions, precision, batches and weights are those that they were computed
    with: weights are compared by a hash. `close` forgets them, and nothing is kept afterwards.

    Args:
        folder: folder of a memory-mapped file without a name for them; None keeps them in memory.

    Attributes:
        is_open: True until `close`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self.folder = folder
        self._kept: dict[int, _Kept] = {}
        self.is_open = True

    def close(self) -> None:
        """Forget the features, and keep none from now on: training begins."""
        self._kept.clear()
        self.is_open = False

    def keep(
        self,
        extractor: FeatureExtractor,
        store: SampleStore,
        positions: torch.Tensor,
        dtype: torch.dtype | None,
        features: torch.Tensor,
    ) -> None:
        """Keep the features (n, D) of samples at these positions (n,), extracted with `dtype`."""
        if self.is_open:
            self._kept[id(store)] = _Kept(
                store,
                store.revision,
                positions,
                extractor.name_precision(dtype),
                extractor.batch_size,
                hash_weights(extractor.model),
                features,
            )

    def find(
        self, extractor: FeatureExtractor, store: SampleStore, positions: torch.Tensor, dtype: torch.dtype | None
    ) -> torch.Tensor | None:
        """Find what an extraction of these positions (n,) would give, (n, D); None if it is not kept."""
        kept = self._kept.get(id(store))
        is_asked = (
            kept is not None
            and kept.store is store
            and kept.revision == store.revision
            and kept.precision == extractor.name_precision(dtype)
            and kept.batch_size == extractor.batch_size
            and torch.equal(kept.positions, positions)
        )
        if not is_asked:
            return None
        assert kept is not None
        if kept.weights == hash_weights(extractor.model):
            return kept.features
        del self._kept[id(store)]  # weights do not come back
        return None


def check_samples(
    extractor: FeatureExtractor, store: SampleStore, dtype: torch.dtype | None = None, extract: bool = True
) -> bool:
    """Decode every sample of a store once, each process its own part, and settle what is unreadable.

    Called on every process. A store that is checked already is left as it is.

    Args:
        extractor: shares the samples among processes, and loads them.
        store: the samples.
        dtype: as for `FeatureExtractor.extract`, of the features that are kept.
        extract: also extract features where the extractor keeps some, so that `FeatureExtractor.extract` finds them.

    Returns:
        True if samples were left out, or their lengths corrected: positions are then others.

    Raises:
        UnreadableSample: on every process the same, naming the first unreadable row, unless these are left out.
        ValueError: if a sample does not fit the others, or none is left.
    """
    if store.is_checked:
        return False
    accelerator = extractor.accelerator
    part = extractor.local_slice(store)
    positions = torch.arange(part.start, part.stop)
    features, found, failure = None, {}, None
    keeps = extract and extractor.kept is not None and extractor.kept.is_open
    try:
        if keeps:
            features = extractor.extract(store, positions, dtype, extractor.allocate_kept(len(positions)))
        else:
            extractor.read(store, positions)
        found = store.examine()
    except Exception as error:  # the other processes wait: tell them before raising
        failure = error
    parts = gather_results(accelerator, found, failure)
    found = {row: finding for each in parts for row, finding in each.items()}
    store.settle(found)
    if features is not None and extractor.kept is not None and not found:  # else some are of zeros
        extractor.kept.keep(extractor, store, positions, dtype, features)
    return any(finding is not None for finding in found.values())


def hash_weights(model: torch.nn.Module) -> str:
    """Hash all parameters and buffers of a module, in their order."""
    digest = hashlib.sha256()
    for value in (*model.parameters(), *model.buffers()):
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
