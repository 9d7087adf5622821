"""Source and precision of the stage's features."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.data.sample_store import SampleStore
from hf_plr.features.centering import CenteredFeatures, compute_directions
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.utils.distributed import gather_objects, gather_rows
from hf_plr.utils.mapped_arrays import allocate_array
from hf_plr.utils.precision import exact_products
from hf_plr.utils.serialization import validate_array

logger = logging.getLogger(__name__)

SOURCES = ("extract", "epoch")
DTYPES = ("auto", "float32", "bfloat16")
TRIAL_SAMPLES = 2048
LARGEST_MOVED_SHARE = 0.02  # of the trial's samples that bfloat16 may put nearer to another cluster


class FeatureSource:
    """Source of the stage's features: a pass over all samples, or the features of training steps, averaged by sample.

    Precision "auto" is that of training with bf16 or fp16. Otherwise it extracts the first stage in float32. Where the
    device computes in bfloat16, a trial follows: 2,048 samples, evenly spaced, are extracted in bfloat16 too. If at
    most 2% of them are nearest to another of the stage's clusters than in float32, later stages use bfloat16.

    Args:
        source: "extract" for a pass, "epoch" for the features of the last epoch's training steps: they are free, but
            have augmentation and weights up to an epoch old. Samples that the epoch did not draw are extracted.
        dtype: "auto", "float32" or "bfloat16".
        momentum: fraction of the old feature that stays when a sample is seen again, in [0, 1).
        folder: folder of a memory-mapped file for features; None keeps them on the device.
        keeps_own: with source "epoch", True if a process trains on its own samples alone, and keeps features of these;
            otherwise it keeps those of all.

    Attributes:
        dtype: as given, or the selection of "auto".
        moved_share: share of the trial's samples that moved to another cluster; None where there was no trial.
    """

    def __init__(self, source: str, dtype: str, momentum: float, folder: str | None, keeps_own: bool = False):
        self.source = source
        self.momentum = momentum
        self.folder = folder
        self.keeps_own = keeps_own
        self._given = dtype
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget the features of training steps, and what a trial selected."""
        self.dtype = self._given
        self.moved_share: float | None = None
        self._first = 0  # position of the first sample that is kept
        self._rows = torch.empty(0, 0)  # of the samples that are kept, where the source is "epoch"
        self._seen = torch.empty(0, dtype=torch.bool)

    def extract_local(self, extractor: FeatureExtractor, store: SampleStore) -> torch.Tensor:
        """Extract features of this process's samples, float32 of shape (n, D), which the caller may overwrite."""
        dtype = self.decide_autocast(extractor.accelerator.mixed_precision)
        local_slice = extractor.local_slice(store)
        positions = torch.arange(local_slice.start, local_slice.stop)
        shape = (len(positions), extractor.width)
        buffer = None if self.folder is None else self._allocate(shape, torch.device("cpu"))
        if self.source == "extract" or len(self._rows) == 0:
            features = extractor.extract(store, positions, dtype, buffer)
        else:
            device = extractor.accelerator.device
            features = torch.empty(shape, device=device) if buffer is None else buffer
            kept = slice(local_slice.start - self._first, local_slice.stop - self._first)
            features.copy_(self._rows[kept])
            unseen = (~self._seen[kept]).nonzero().flatten().cpu()
            new_features = extractor.extract(store, positions[unseen], dtype)
            features[unseen.to(features.device)] = new_features.to(features.device)
        if self.source == "epoch":
            self._first = local_slice.start if self.keeps_own else 0
            of_all = features if self.keeps_own else gather_rows(extractor.accelerator, features)
            self._rows = self._allocate(of_all.shape, of_all.device).copy_(of_all)
            self._rows[~of_all.isfinite().all(dim=1)] = 0.0  # nothing is kept of these
            self._seen = torch.zeros(len(self._rows), dtype=torch.bool, device=self._rows.device)
        return features

    def _allocate(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Allocate features: in a file on the CPU where there is a folder for it, otherwise on the device."""
        if self.folder is None:
            return torch.empty(tuple(shape), device=device)
        return torch.from_numpy(allocate_array(tuple(shape), np.float32, self.folder))

    def decide_autocast(self, mixed_precision: str) -> torch.dtype | None:
        """Decide the `dtype` of the next extraction, see `FeatureExtractor.extract`, by the precision of training."""
        if self.dtype == "auto" and mixed_precision == "bf16":
            self.dtype = "bfloat16"
        return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def decide_dtype(
        self, extractor: FeatureExtractor, store: SampleStore, features: CenteredFeatures, prototypes: torch.Tensor
    ) -> None:
        """Decide the precision of later stages, where it is open, by a trial against the clusters of this one.

        Args:
            extractor: extracts, on every process.
            store: all samples.
            features: what the stage clustered, in float32.
            prototypes: directions of its clusters, shape (K, D).
        """
        if self.dtype != "auto" or extractor.accelerator.mixed_precision == "fp16":
            return
        if not has_bf16_arithmetic(extractor.accelerator.device):
            self.dtype = "float32"
            return
        positions = torch.linspace(0, len(store) - 1, min(len(store), TRIAL_SAMPLES), dtype=torch.float64).long()
        own = positions[(positions >= features.part.start) & (positions < features.part.stop)]
        exact = features.rows[(own - features.part.start).to(features.rows.device)]
        fast = compute_directions(features.center, extractor.extract(store, own, torch.bfloat16))
        n_moved = count_moved(exact.to(prototypes), fast.to(prototypes), prototypes)
        self.moved_share = sum(gather_objects(extractor.accelerator, n_moved)) / len(positions)
        self.dtype = "bfloat16" if self.moved_share <= LARGEST_MOVED_SHARE else "float32"
        words = (
            "Features are extracted in %s from now on: in bfloat16, %.1f%% of %d samples are nearer to another cluster"
        )
        logger.info(words, self.dtype, 100 * self.moved_share, len(positions))

    def record(self, index: torch.Tensor, features: torch.Tensor) -> None:
        """Record the features (B, D) of a step at positions (B,): of all processes, or own ones if these are kept."""
        if self.source != "epoch":
            return
        is_finite = features.isfinite().all(dim=1)
        features, index = features[is_finite], index[is_finite]
        samples, row = torch.unique(index - self._first, return_inverse=True)
        largest = float(features.abs().max()) if len(features) else 0.0
        sums = ClusterSums(len(samples), features.shape[1], len(row), largest, features.device)
        sums.add(features, row)
        means, samples = sums.means().to(self._rows), samples.to(self._rows.device)
        kept = self._rows[samples]
        mixed = self.momentum * kept + (1.0 - self.momentum) * means
        self._rows[samples] = torch.where(kept.any(dim=1, keepdim=True), mixed, means)
        self._seen[samples] = True

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run: the selected precision, and the recorded features."""
        state = {"features.dtype": np.array([DTYPES.index(self.dtype)])}
        if len(self._rows):
            state |= {"features.rows": self._rows.cpu().numpy(), "features.seen": self._seen.cpu().numpy()}
        return state

    def load_state_dict(self, state: dict[str, np.ndarray], device: torch.device, held: slice, width: int) -> None:
        """Restore the output of `state_dict`; other entries are ignored.

        Args:
            state: arrays by name.
            device: device of the features, where there is no folder for them.
            held: positions of the samples whose features are kept.
            width: size D of a feature.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        self.dtype = DTYPES[int(validate_array(state, "features.dtype", "integers", (1,), 0, len(DTYPES) - 1)[0])]
        if "features.rows" in state or "features.seen" in state:
            shape = (held.stop - held.start, width)
            self._first = held.start
            rows = validate_array(state, "features.rows", "floats", shape).astype(np.float32, copy=False)
            self._rows = self._allocate(shape, device).copy_(torch.from_numpy(rows))
            seen = validate_array(state, "features.seen", "booleans", shape[:1])
            self._seen = torch.from_numpy(seen).to(self._rows.device)


def count_moved(exact: torch.Tensor, fast: torch.Tensor, prototypes: torch.Tensor) -> int:
    """Count the rows whose nearest prototype differs between two versions.

    Args:
        exact: directions by float32 arithmetic, shape (n, D).
        fast: the same by bfloat16 arithmetic.
        prototypes: unit length, shape (K, D), on the same device.
    """
    with exact_products(prototypes.device):
        before, after = ((rows @ prototypes.T).argmax(dim=1) for rows in (exact, fast))
    return int((before != after).sum())


def has_bf16_arithmetic(device: torch.device) -> bool:
    """True if a device has bfloat16 arithmetic and does not emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)
