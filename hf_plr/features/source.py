"""Source and precision of the stage's features."""

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
    """Source of the stage's features: a pass over all samples, or the features of training steps, averaged by sample.

    Precision "auto" selects bfloat16 if the device computes in it and a trial at the first stage gives equal clusters.
    The trial extracts 2,048 samples, evenly spaced, in both precisions and clusters them by the run's clusterer. Where
    that takes a number of clusters, the trial has proportionally fewer. k-means starts the second time from its own
    centroids. From an adjusted Rand index of 0.98 on, with two clusters at least, the whole run uses bfloat16.
    Otherwise, and with clusterers that are not scikit-learn estimators, it uses float32. Training with bf16 always
    gives bfloat16.

    Args:
        source: "extract" for a pass, "epoch" for the features of the last epoch's training steps: they are free, but
            have augmentation and weights up to an epoch old. Samples that the epoch did not draw are extracted.
        dtype: "auto", "float32" or "bfloat16".
        momentum: fraction of the old feature that stays when a sample is seen again, in [0, 1).
        folder: folder of a memory-mapped file for features; None keeps them on the device.

    Attributes:
        dtype: as given, or the selection of "auto".
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
        """Extract features of this process's samples, float32 of shape (n, D), which the caller may overwrite."""
        if self.dtype == "auto":
            self.dtype = self._try_dtypes(extractor, store, clusterer)
        local_slice = extractor.local_slice(store)
        positions = torch.arange(local_slice.start, local_slice.stop)
        buffer = None if self.folder is None else allocate_in_file(len(positions), extractor.width, self.folder)
        if self.source == "extract" or len(self._rows) == 0:
            features = extractor.extract(store, positions, self._autocast_dtype, buffer)
        else:
            device = extractor.accelerator.device
            features = torch.empty(len(positions), extractor.width, device=device) if buffer is None else buffer
            features.copy_(self._rows[local_slice])
            unseen = (~self._seen[local_slice]).nonzero().flatten().cpu()
            new_features = extractor.extract(store, positions[unseen], self._autocast_dtype)
            features[unseen.to(features.device)] = new_features.to(features.device)
        if self.source == "epoch":
            self._rows = gather_rows(extractor.accelerator, features).clone()
            self._seen = torch.zeros(len(store), dtype=torch.bool, device=self._rows.device)
        return features

    def record(self, index: torch.Tensor, features: torch.Tensor) -> None:
        """Record the features (B, D) of a step at positions (B,), -1 = none, the same on all processes."""
        if self.source != "epoch":
            return
        samples, row = torch.unique(index[index >= 0], return_inverse=True)
        largest = float(features.abs().max()) if len(features) else 0.0
        sums = ClusterSums(len(samples), features.shape[1], len(row), largest, features.device)
        sums.add(features[index >= 0], row)
        means, samples = sums.means().to(self._rows), samples.to(self._rows.device)
        self._rows[samples] = self.momentum * self._rows[samples] + (1.0 - self.momentum) * means
        self._seen[samples] = True

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run: the selected precision, and the recorded features."""
        state = {"features.dtype": np.array([DTYPES.index(self.dtype)])}
        if len(self._rows):
            state |= {"features.rows": self._rows.cpu().numpy(), "features.seen": self._seen.cpu().numpy()}
        return state

    def load_state_dict(self, state: dict[str, np.ndarray], device: torch.device, shape: tuple[int, int]) -> None:
        """Restore the output of `state_dict`; other entries are ignored.

        Args:
            state: arrays by name.
            device: device of the features.
            shape: (N, D), number and size of the features.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        self.dtype = DTYPES[int(validate_array(state, "features.dtype", "integers", (1,), 0, len(DTYPES) - 1)[0])]
        if "features.rows" in state or "features.seen" in state:
            rows = validate_array(state, "features.rows", "floats", shape).astype(np.float32, copy=False)
            self._seen = torch.from_numpy(validate_array(state, "features.seen", "booleans", shape[:1])).to(device)
            self._rows = torch.from_numpy(rows).to(device)

    @property
    def _autocast_dtype(self) -> torch.dtype | None:
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
            return measure_agreement(clusterer, exact, fast, len(positions) / len(store))

        self.trial_ari = float(run_on_main(accelerator, trial, "trying bfloat16"))
        dtype_name = "bfloat16" if self.trial_ari >= SAME_CLUSTERS else "float32"
        logger.info("Features are extracted in %s: bfloat16 gives clusters with ARI %.3f", dtype_name, self.trial_ari)
        return dtype_name


def measure_agreement(clusterer: Clusterer, exact: torch.Tensor, fast: torch.Tensor, fraction: float) -> float:
    """Measure the adjusted Rand index of a clusterer's labels for two versions of features (n, D).

    Args:
        clusterer: stays unchanged; a copy is fitted.
        exact: features in float32 arithmetic.
        fast: the same in bfloat16 arithmetic.
        fraction: fraction of all samples that these are, which scales the copy's `n_clusters`.

    Returns:
        The index, or 0 for fewer than two clusters.
    """
    trial: Any = clone(clusterer)
    parameters = trial.get_params()
    if parameters.get("n_clusters") is not None:
        trial.set_params(n_clusters=max(2, round(parameters["n_clusters"] * fraction)))
    if not isinstance(parameters.get("init", ""), str):
        trial.set_params(init="k-means++")  # given centroids are too many for the trial
    if isinstance(trial, KMeans):
        exact_labels = trial.fit_predict(exact)
        trial.set_params(init=trial.cluster_centers_)
        fast_labels = trial.fit_predict(fast)
    else:
        exact_labels, fast_labels = (
            np.asarray(trial.fit_predict(features.cpu().numpy())) for features in (exact, fast)
        )
    n_clusters = len(np.unique(exact_labels[exact_labels >= 0]))
    return float(adjusted_rand_score(exact_labels, fast_labels)) if n_clusters > 1 else 0.0


def has_bf16_arithmetic(device: torch.device) -> bool:
    """True if a device has bfloat16 arithmetic and does not emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)
