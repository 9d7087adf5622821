"""k-means that starts where the last epoch's ended."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted

from hf_plr.clustering.checks import as_features, check_finite, check_lengths
from hf_plr.clustering.empty_clusters import refill_empty
from hf_plr.clustering.exact_sums import ClusterSums, average_rows, to_exact
from hf_plr.clustering.rows import Rows, Sliceable, assign_rows, update_sums
from hf_plr.clustering.seeding import draw_positions, draw_seeds
from hf_plr.utils.distributed import gather_objects, locate_rows, max_all, sum_all
from hf_plr.utils.precision import exact_products
from hf_plr.utils.progress import track
from hf_plr.utils.threads import block_threads

INITS = ("warm", "k-means++")
PRECISE_DTYPES = (torch.float64, torch.int64, torch.int32)  # of values that float32 would round
SEEDING_SAMPLES_PER_CLUSTER = 64
SEEDING_DISTANCES = 1 << 30  # pairs of samples and seeds that k-means++ looks at, at most: a minute on one processor


class KMeans(ClusterMixin, BaseEstimator):
    """Lloyd's k-means on the device that holds the features, warm-started from call to call.

    Between two epochs the features move a little. A start from the last centroids takes a few iterations instead of
    some twenty, and keeps the clusters of two epochs alike. Sums are exact (see `ClusterSums`): the same features and
    seed give the same labels for any number of processes.

    Features are read block by block and never copied: a memory-mapped array may be larger than memory.

    Args:
        n_clusters: number of clusters K, at least 1 and at most the number of samples.
        init: "warm" starts from `cluster_centers_` if it was fitted before with this K and width, else as "k-means++";
            "k-means++" seeds on a sample of 64 points per cluster, of fewer with more than 4,096 clusters (its work
            grows with their square); or an array of shape (K, D).
        spherical: normalise features and centroids to unit length, for cosine distances.
        max_iter: largest number of iterations; 0 assigns to the first centroids.
        tol: stop when the centroids' mean squared move is below tol times the mean variance of the features.
        seed: seed of the k-means++ start and of the samples for `fit_samples`.
        fit_samples: number of samples, drawn at random, that the centroids are fitted on, at least K; None fits on all.
            All samples are assigned to the centroids in the end.
        device: device of the products; None takes the device that holds the features.
        verbose: show a progress bar of the iterations.

    Attributes:
        cluster_centers_: float32 tensor of shape (K, D); float64 with spherical=False and features of more precision.
        labels_: int64 array of shape (N,), 0 to K - 1.
        inertia_: sum of squared distances to the nearest centroid, of all samples, as float32 products give them: of
            tight clusters far apart, about a ten-millionth of the squared lengths is rounding.
        n_iter_: number of iterations.

    Example:
        >>> features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> labels = KMeans(n_clusters=2).fit(features).labels_
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
        True
    """

    def __init__(
        self,
        n_clusters: int,
        init: str | np.ndarray | torch.Tensor = "warm",
        spherical: bool = True,
        max_iter: int = 50,
        tol: float = 1e-4,
        seed: int = 0,
        fit_samples: int | None = None,
        device: str | torch.device | None = None,
        verbose: bool = False,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.spherical = spherical
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed
        self.fit_samples = fit_samples
        self.device = device
        self.verbose = verbose

    def fit(self, features: np.ndarray | torch.Tensor, y: None = None) -> KMeans:
        """Cluster features of shape (N, D), a numpy array of floats (also a memory map) or a tensor on any device.

        Raises:
            ValueError: if there are fewer samples than clusters, features are not finite, or an argument does not fit.
        """
        return self._fit(features, None)

    def fit_predict_shard(self, features: np.ndarray | torch.Tensor, accelerator: Accelerator) -> np.ndarray:
        """Cluster the features of all processes together; each calls this with its own, shape (n, D).

        The centroids are the same on every process, and the same as those of one process with all features.

        Returns:
            int64 array of shape (n,): the labels of this process's samples, also in `labels_`.

        Raises:
            ValueError: as `fit`.
        """
        return self._fit(features, accelerator).labels_

    def check_arguments(self) -> None:
        """Check the arguments as far as they need no features.

        Raises:
            ValueError: naming an argument that is out of its range.
        """
        if self.n_clusters < 1:
            raise ValueError(f"n_clusters={self.n_clusters} must be at least 1")
        if self.max_iter < 0:
            raise ValueError(f"max_iter={self.max_iter} must be at least 0")
        if self.fit_samples is not None and self.fit_samples < self.n_clusters:
            raise ValueError(f"fit_samples={self.fit_samples} must be at least n_clusters={self.n_clusters}")
        if isinstance(self.init, str):
            if self.init not in INITS:
                raise ValueError(f"init={self.init!r} is unknown: use 'warm', 'k-means++' or an array (K, D)")
            return
        shape = tuple(torch.as_tensor(self.init).shape)
        if len(shape) != 2 or shape[0] != self.n_clusters:
            raise ValueError(f"init has shape {shape} but the centroids have shape ({self.n_clusters}, D)")

    def predict(self, features: np.ndarray | torch.Tensor) -> np.ndarray:
        """Predict the nearest centroid per row of features (N, D): int64 array of shape (N,).

        Raises:
            ValueError: if there are no centroids yet, or features are not finite or of another width.
        """
        check_is_fitted(self, "cluster_centers_")
        features, width = as_features(features), self.cluster_centers_.shape[1]
        if features.shape[1] != width:
            raise ValueError(f"features have {features.shape[1]} columns, but the centroids have {width}")
        rows = Rows(features, self.spherical, self.device, self._find_origin(self.cluster_centers_))
        if not torch.isfinite(rows.norms).all():
            check_finite(rows.features)
            check_lengths(rows.features)
        with block_threads(rows.device), exact_products(rows.device):
            return assign_rows(rows, rows.shift(self.cluster_centers_))[0].cpu().numpy()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Centroids for the next warm start; empty before the first fit."""
        return {"cluster_centers": self.cluster_centers_} if hasattr(self, "cluster_centers_") else {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the output of `state_dict`.

        Raises:
            ValueError: if the centroids are not finite floats of shape (K, D).
        """
        if "cluster_centers" in state:
            centers = torch.as_tensor(state["cluster_centers"])
            if centers.ndim != 2 or not centers.is_floating_point():
                raise ValueError(
                    f"'cluster_centers' holds {centers.dtype} of shape {tuple(centers.shape)}, expected floats of "
                    "shape (K, D)"
                )
            check_finite(centers, "cluster_centers")
            self.cluster_centers_ = centers
        elif hasattr(self, "cluster_centers_"):
            del self.cluster_centers_

    def _fit(self, features: np.ndarray | torch.Tensor, accelerator: Accelerator | None) -> KMeans:
        all_rows = Rows(as_features(features), self.spherical, self.device)
        with block_threads(all_rows.device):
            return self._fit_rows(all_rows, accelerator)

    def _fit_rows(self, all_rows: Rows, accelerator: Accelerator | None) -> KMeans:
        self.check_arguments()
        start, total = locate_rows(accelerator, len(all_rows))
        if self.n_clusters > total:
            raise ValueError(f"n_clusters={self.n_clusters} but there are {total} samples")
        if not all(gather_objects(accelerator, bool(torch.isfinite(all_rows.norms).all()))):
            check_finite(all_rows.features, accelerator=accelerator)
            check_lengths(all_rows.features, accelerator=accelerator)
        if not self.spherical and all_rows.features.dtype in PRECISE_DTYPES:
            all_rows = all_rows.relative_to(average_rows(all_rows.features, accelerator, torch.float64))
        fit_rows = all_rows
        positions = self.draw_fit_positions(total)
        if positions is not None:
            local = positions[(positions >= start) & (positions < start + len(all_rows))] - start
            fit_rows = Rows(all_rows.take(local), self.spherical, self.device)
        centers = self.init_centers(all_rows, start, total, accelerator)
        with exact_products(all_rows.device):
            centers = self.iterate_rows(fit_rows, centers, accelerator)
            if all_rows.origin is not None:
                centers = to_exact(centers) + all_rows.origin.to(centers.device)
            all_rows = all_rows.relative_to(self._find_origin(centers))
            labels, scores = assign_rows(all_rows, all_rows.shift(centers))
        self.cluster_centers_ = centers
        self.labels_ = labels.cpu().numpy()
        self.inertia_ = float(sum_all(accelerator, to_exact(all_rows.distances(scores)).sum()))
        return self

    def iterate_rows(self, rows: Rows, centers: torch.Tensor, accelerator: Accelerator | None = None) -> torch.Tensor:
        """Iterate Lloyd's algorithm from centers (K, D), float32, relative to the rows' origin; returns the last."""
        is_shifted = not self.spherical and rows.origin is None
        if is_shifted:  # float32 loses the distances of rows that are all far from zero
            rows = rows.relative_to(average_rows(rows.features, accelerator))
            centers = rows.shift(centers)
        total = locate_rows(accelerator, len(rows))[1]
        largest = max_all(accelerator, float(rows.lengths().max()) if len(rows) else 0.0)
        squares = float(sum_all(accelerator, to_exact(rows.lengths()).square().sum()))
        sums = ClusterSums(self.n_clusters, centers.shape[1], total, largest, centers.device)
        labels: torch.Tensor | None = None

        def sum_clusters(centers: torch.Tensor) -> ClusterSums:
            nonlocal labels
            labels_before = labels
            labels, scores = assign_rows(rows, centers)
            update_sums(sums, rows, labels, labels_before)
            all_sums = sums.all_reduce(accelerator)
            refill_empty(all_sums, rows, labels, scores, accelerator)
            return all_sums

        centers = self.iterate_centers(sum_clusters, centers, squares, total)
        return centers + rows.origin if is_shifted and rows.origin is not None else centers

    def iterate_centers(
        self, sum_clusters: Callable[[torch.Tensor], ClusterSums], centers: torch.Tensor, squares: float, total: int
    ) -> torch.Tensor:
        """Iterate Lloyd's algorithm over rows that lie anywhere; returns the last centers.

        Args:
            sum_clusters: sums all rows by their nearest of the centers (K, D), none of which is left empty.
            centers: the first centers, float32 of shape (K, D).
            squares: sum of the squared lengths of all rows.
            total: number of rows.
        """
        self.n_iter_ = 0
        steps = range(1, self.max_iter + 1)
        for step in track(steps, "Clustering", len(steps), self.verbose):
            self.n_iter_ = step
            sums = sum_clusters(centers)
            mean = sums.sums.sum(dim=0) / total
            threshold = self.tol * max(squares / total - float(mean.square().sum()), 0.0) / len(mean)
            new_centers = sums.means()
            if self.spherical:
                new_centers = torch.nn.functional.normalize(new_centers, dim=1)
            shift = (new_centers - to_exact(centers)).square().sum(dim=1).mean().item()
            centers = new_centers.float().to(centers.device)
            if shift <= threshold:
                break
        return centers

    def init_centers(
        self, rows: Sliceable, start: int, total: int, accelerator: Accelerator | None = None
    ) -> torch.Tensor:
        """Initialise the centers: float32 of shape (K, D), relative to the rows' origin, on the device of the products.

        Args:
            rows: this process's rows.
            start: position of the first of them among all.
            total: number of rows of all processes.
            accelerator: connects the processes.

        Raises:
            ValueError: if `init` does not fit.
        """
        shape = (self.n_clusters, rows.width)
        if isinstance(self.init, str):
            last_centers = getattr(self, "cluster_centers_", None)
            if self.init == "warm" and last_centers is not None and tuple(last_centers.shape) == shape:
                return rows.shift(last_centers)
            return draw_seeds(self.draw_rows_to_seed(rows, start, total), self.n_clusters, self.seed, accelerator)
        centers = torch.as_tensor(self.init)
        if tuple(centers.shape) != shape:
            raise ValueError(f"init has shape {tuple(centers.shape)} but the centroids have shape {shape}")
        centers = rows.shift(centers)
        return torch.nn.functional.normalize(centers, dim=1) if self.spherical else centers

    def _find_origin(self, centers: torch.Tensor) -> torch.Tensor | None:
        """Mean (D,) of the centers, relative to which rows are assigned; None for unit rows, which need none."""
        return None if self.spherical else average_rows(centers, None, centers.dtype)

    def draw_fit_positions(self, total: int) -> torch.Tensor | None:
        """Draw the positions of `fit_samples` among `total` rows, ascending; None to fit on all."""
        if self.fit_samples is None or self.fit_samples >= total:
            return None
        return draw_positions(total, self.fit_samples, self.seed + 1)

    def draw_rows_to_seed(self, rows: Sliceable, start: int, total: int) -> torch.Tensor:
        """Draw the rows that k-means++ seeds on, and take those of this process; arguments as for `init_centers`."""
        positions = draw_positions(total, min(total, self._seeding_samples()), self.seed)
        return rows.take(positions[(positions >= start) & (positions < start + len(rows))] - start)

    def _seeding_samples(self) -> int:
        """Size of the sample for k-means++, at least K; the work grows with its product with K."""
        size = SEEDING_SAMPLES_PER_CLUSTER * self.n_clusters
        return max(self.n_clusters, min(size, SEEDING_DISTANCES // self.n_clusters))
