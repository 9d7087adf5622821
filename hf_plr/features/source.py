"""Where the stage gets its features from, and in which precision."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from hf_plr.clustering import Clusterer, KMeans
from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.data.sample_store import SampleStore
from hf_plr.features.centering import center_features
from hf_plr.features.extractor import FeatureExtractor, allocate_in_file
from hf_plr.utils.distributed import find_sharded_modules, gather_rows, run_on_main
from hf_plr.utils.serialization import validate_array

logger = logging.getLogger(__name__)

SOURCES = ("extract", "epoch")
DTYPES = ("auto", "float32", "bfloat16")
TRIAL_SAMPLES = 2048
SAME_CLUSTERS = 0.98  # adjusted Rand index from which two clusterings count as the same


class FeatureSource:
    """The stage's features: from a pass over all samples, or those that training saw, averaged sample by sample.

    Precision "auto" takes bfloat16 if the device computes in it and a trial at the first stage finds the same clusters:
    2,048 samples, evenly spaced, are extracted in both precisions and clustered by the run's own clusterer (with
    proportionally fewer clusters, where it takes a number; k-means starts the second time from its own centroids). From
    an adjusted Rand index of 0.98 on, with two clusters at least, bfloat16 is taken for the whole run; otherwise, and
    with clusterers that are no scikit-learn estimators, float32. Training with bf16 gives bfloat16 in any case.

    Args:
        source: "extract" for a pass, "epoch" for the features of the last epoch's training steps: with augmentation and
            of weights up to an epoch old, but free. Samples that the epoch did not draw are extracted.
        dtype: "auto", "float32" or "bfloat16".
        momentum: share of the old feature that stays when a sample is seen again, in [0, 1).
        folder: where features lie in a memory-mapped file; None keeps them on the device.

    Attributes:
        dtype: as given, or what "auto" has found.
        trial_ari: adjusted Rand index of the trial; None where there was none.
    """

    def __init__(self, source: str, dtype: str, momentum: float, folder: str | None):
        self.source = source
        self.dtype = dtype
        self.momentum = momentum
        self.folder = folder
        self.trial_ari: float | None = None
        self._rows = torch.empty(0, 0)  # of all samples, where the source is "epoch"
        self._seen = torch.empty(0, dtype=torch.bool)

    def extract_local(self, extractor: FeatureExtractor, store: SampleStore, clusterer: Clusterer) -> torch.Tensor:
        """Features of this process's samples, float32 of shape (n, D), for the caller to keep and to change."""
        if self.dtype == "auto":
            self.dtype = self._try_dtypes(extractor, store, clusterer)
        part = extractor.local_slice(store)
        positions = torch.arange(part.start, part.stop)
        room = None if self.folder is None else allocate_in_file(len(positions), extractor.width, self.folder)
        if self.source == "extract" or len(self._rows) == 0:
            features = extractor.extract(store, positions, self._arithmetic, room)
        else:
            device = extractor.accelerator.device
            features = torch.empty(len(positions), extractor.width, device=device) if room is None else room
            features.copy_(self._rows[part])
            unseen = (~self._seen[part]).nonzero().flatten().cpu()
            fresh = extractor.extract(store, positions[unseen], self._arithmetic)
            features[unseen.to(features.device)] = fresh.to(features.device)
        if self.source == "epoch":
            self._rows = gather_rows(extractor.accelerator, features).clone()
            self._seen = torch.zeros(len(store), dtype=torch.bool, device=self._rows.device)
        return features

    def record(self, index: torch.Tensor, features: torch.Tensor) -> None:
        """Take in what a step saw: positions (B,), -1 = none, and features (B, D), the same on all processes."""
        if self.source != "epoch":
            return
        present, row = torch.unique(index[index >= 0], return_inverse=True)
        largest = float(features.abs().max()) if len(features) else 0.0
        sums = ClusterSums(len(present), features.shape[1], len(row), largest, features.device)
        sums.add(features[index >= 0], row)
        means, present = sums.means().to(self._rows), present.to(self._rows.device)
        self._rows[present] = self.momentum * self._rows[present] + (1.0 - self.momentum) * means
        self._seen[present] = True

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a resumed run needs: the precision found, and the features seen so far."""
        state = {"features.dtype": np.array([DTYPES.index(self.dtype)])}
        if len(self._rows):
            state |= {"features.rows": self._rows.cpu().numpy(), "features.seen": self._seen.cpu().numpy()}
        return state

    def load_state_dict(self, state: dict[str, np.ndarray], device: torch.device, shape: tuple[int, int]) -> None:
        """Restore what `state_dict` gave; other entries are ignored.

        Args:
            state: arrays by name.
            device: where features lie.
            shape: (N, D), number and size of the features.

        Raises:
            ValueError: if an array is missing or cannot be what `state_dict` gave, naming it.
        """
        self.dtype = DTYPES[int(validate_array(state, "features.dtype", "integers", (1,), 0, len(DTYPES) - 1)[0])]
        if "features.rows" in state or "features.seen" in state:
            rows = validate_array(state, "features.rows", "floats", shape).astype(np.float32, copy=False)
            self._seen = torch.from_numpy(validate_array(state, "features.seen", "booleans", shape[:1])).to(device)
            self._rows = torch.from_numpy(rows).to(device)

    @property
    def _arithmetic(self) -> torch.dtype | None:
        return torch.bfloat16 if self.dtype == "bfloat16" else None

    def _try_dtypes(self, extractor: FeatureExtractor, store: SampleStore, clusterer: Clusterer) -> str:
        accelerator = extractor.accelerator
        if accelerator.mixed_precision == "bf16":
            return "bfloat16"
        if not has_bf16_arithmetic(accelerator.device) or not clusterer.get_params():
            return "float32"
        if find_sharded_modules(extractor.model):  # the trial is the main process's alone
            return "float32"
        positions = torch.linspace(0, len(store) - 1, min(len(store), TRIAL_SAMPLES)).long()

        def trial() -> float:
            exact, fast = (
                center_features(extractor.extract(store, positions, dtype)).rows for dtype in (None, torch.bfloat16)
            )
            return agreement(clusterer, exact, fast, len(positions) / len(store))

        self.trial_ari = float(run_on_main(accelerator, trial))
        chosen = "bfloat16" if self.trial_ari >= SAME_CLUSTERS else "float32"
        logger.info("Features are extracted in %s: bfloat16 gives clusters with ARI %.3f", chosen, self.trial_ari)
        return chosen


def agreement(clusterer: Clusterer, exact: torch.Tensor, fast: torch.Tensor, fraction: float) -> float:
    """Adjusted Rand index of a clusterer's labels for two versions of features (n, D); 0 if it makes fewer than two.

    Args:
        clusterer: stays as it is; a copy is fitted.
        exact: features in float32 arithmetic.
        fast: the same in bfloat16 arithmetic.
        fraction: fraction of all samples that these are; the copy's `n_clusters` is scaled by it.
    """
    trial: Any = clone(clusterer)
    parameters = trial.get_params()
    if parameters.get("n_clusters") is not None:
        trial.set_params(n_clusters=max(2, round(parameters["n_clusters"] * fraction)))
    if not isinstance(parameters.get("init", ""), str):
        trial.set_params(init="k-means++")  # centroids that were given are as many as clusters were asked for
    if isinstance(trial, KMeans):
        labels = trial.fit_predict(exact)
        trial.set_params(init=trial.cluster_centers_)
        others = trial.fit_predict(fast)
    else:
        labels, others = (np.asarray(trial.fit_predict(features.cpu().numpy())) for features in (exact, fast))
    n_clusters = len(np.unique(labels[labels >= 0]))
    return float(adjusted_rand_score(labels, others)) if n_clusters > 1 else 0.0


def has_bf16_arithmetic(device: torch.device) -> bool:
    """Whether a device has bfloat16 arithmetic and does not emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    found = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in found)
