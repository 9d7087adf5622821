"""First pass over samples that nobody has decoded yet: finds unreadable ones, and lets features be kept."""

from __future__ import annotations

import torch

from hf_plr.data.sample_store import SampleStore
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.utils.distributed import gather_results


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
    kept = extractor.kept if extract and extractor.kept is not None and extractor.kept.is_open else None
    try:
        if kept is not None:
            features = extractor.extract(store, positions, dtype, kept.allocate(len(positions), extractor.width))
        else:
            extractor.read(store, positions)
        found = store.examine()
    except Exception as error:  # the other processes wait: tell them before raising
        failure = error
    parts = gather_results(accelerator, found, failure)
    found = {row: finding for each in parts for row, finding in each.items()}
    store.settle(found)
    if kept is not None and features is not None and not found:  # else some are of zeros
        kept.keep(store, positions, extractor.model, extractor.describe_products(dtype), features)
    return any(finding is not None for finding in found.values())
