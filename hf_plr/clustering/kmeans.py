"""k-means that starts where the last epoch's ended."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import kmeans_plusplus
from tqdm.auto import tqdm

CHUNK_ELEMENTS = 2**25  # entries of one block of the (samples, clusters) score matrix
SEEDING_SAMPLES_PER_CLUSTER = 64


class KMeans(ClusterMixin, BaseEstimator):
    """Lloyd's k-means on the device that holds the features, warm-started from call to call.

    Between two epochs the features move a little; starting from the last centroids takes a few iterations instead of
    some twenty and keeps the clusters of two epochs alike. The same input and seed give the same labels.

    Args:
        n_clusters: number of clusters K, at least 1 and at most the number of samples.
        init: "warm" starts from `cluster_centers_` if the estimator was fitted before, else as "k-means++";
            "k-means++" seeds on a sample of at least 64 points a cluster; or an array of shape (K, D).
        spherical: normalise features and centroids to unit length, so that the distance is the cosine's.
        max_iter: iterations at most.
        tol: stop when the centroids' mean squared move is below tol times the mean variance of the features.
        seed: seed of the k-means++ start.
        verbose: show a progress bar of the iterations.

    Attributes:
        cluster_centers_: float32 tensor of shape (K, D), on the device of the features.
        labels_: int64 array of shape (N,), 0 to K - 1.
        inertia_: sum of squared distances to the nearest centroid.
        n_iter_: iterations that were run.
    """

    def __init__(
        self,
        n_clusters: int,
        init: str | np.ndarray | torch.Tensor = "warm",
        spherical: bool = True,
        max_iter: int = 50,
        tol: float = 1e-4,
        seed: int = 0,
        verbose: bool = False,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.spherical = spherical
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed
        self.verbose = verbose

    def fit(self, features: np.ndarray | torch.Tensor, y: None = None) -> KMeans:
        """Cluster features of shape (N, D), a float numpy array or a tensor on any device.

        Raises:
            ValueError: if there are fewer samples than clusters, features are not finite, or `init` does not fit.
        """
        x = torch.as_tensor(features).to(torch.float32)
        if x.ndim != 2:
            raise ValueError(f"features must have shape (N, D), not {tuple(x.shape)}")
        if not 1 <= self.n_clusters <= len(x):
            raise ValueError(f"n_clusters={self.n_clusters} but there are {len(x)} samples")
        if not torch.isfinite(x).all():
            raise ValueError("features contain NaN or infinite values")
        if self.spherical:
            x = torch.nn.functional.normalize(x, dim=1)
        centers = self._start(x)
        enough = self.tol * x.var(dim=0, correction=0).mean().item()
        steps = range(1, self.max_iter + 1)
        for step in tqdm(steps, desc="Clustering", unit="pass", leave=False, disable=not self.verbose):
            self.n_iter_ = step
            labels, distance = assign(x, centers)
            moved = self._means(x, labels, distance)
            shift = (moved - centers).square().sum(dim=1).mean().item()
            centers = moved
            if shift <= enough:
                break
        labels, distance = assign(x, centers)
        self.cluster_centers_ = centers
        self.labels_ = labels.cpu().numpy()
        self.inertia_ = float(distance.double().sum())
        return self

    def predict(self, features: np.ndarray | torch.Tensor) -> np.ndarray:
        """Nearest centroid of each row of features (N, D): int64 array of shape (N,)."""
        x = torch.as_tensor(features).to(self.cluster_centers_)
        if self.spherical:
            x = torch.nn.functional.normalize(x, dim=1)
        return assign(x, self.cluster_centers_)[0].cpu().numpy()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The centroids that the next warm start needs; empty before the first fit."""
        return {"cluster_centers": self.cluster_centers_} if hasattr(self, "cluster_centers_") else {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` gave."""
        if "cluster_centers" in state:
            self.cluster_centers_ = torch.as_tensor(state["cluster_centers"])

    def _start(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.init, str):
            if self.init not in ("warm", "k-means++"):
                raise ValueError(f"init={self.init!r} is unknown: use 'warm', 'k-means++' or an array (K, D)")
            last = getattr(self, "cluster_centers_", None)
            if self.init == "warm" and last is not None and tuple(last.shape) == (self.n_clusters, x.shape[1]):
                return last.to(x)
            return self._seed_centers(x)
        centers = torch.as_tensor(self.init).to(x)
        if tuple(centers.shape) != (self.n_clusters, x.shape[1]):
            wanted = (self.n_clusters, x.shape[1])
            raise ValueError(f"init has shape {tuple(centers.shape)} but the centroids have shape {wanted}")
        return torch.nn.functional.normalize(centers, dim=1) if self.spherical else centers.clone()

    def _seed_centers(self, x: torch.Tensor) -> torch.Tensor:
        rng = np.random.default_rng(self.seed)
        sample_size = min(len(x), SEEDING_SAMPLES_PER_CLUSTER * self.n_clusters)
        chosen = np.sort(rng.choice(len(x), sample_size, replace=False))
        sample = x[torch.from_numpy(chosen).to(x.device)].cpu().numpy()
        centers, _ = kmeans_plusplus(sample, self.n_clusters, random_state=self.seed)
        return torch.from_numpy(centers).to(x)

    def _means(self, x: torch.Tensor, labels: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """Mean of each cluster; an empty cluster takes the farthest point that the largest clusters can spare."""
        counts = torch.bincount(labels, minlength=self.n_clusters)
        if (counts == 0).any():
            labels = labels.clone()
            for empty in torch.nonzero(counts == 0).flatten().tolist():
                largest = int(counts.argmax())
                members = torch.nonzero(labels == largest).flatten()
                labels[members[distance[members].argmax()]] = empty
                counts[largest] -= 1
                counts[empty] += 1
        centers = cluster_sums(x, labels, self.n_clusters) / counts[:, None]
        return torch.nn.functional.normalize(centers, dim=1) if self.spherical else centers


def assign(x: torch.Tensor, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest center of each row of x (N, D) among centers (K, D): labels (N,) and squared distances (N,)."""
    half_norms = 0.5 * centers.square().sum(dim=1)
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    best = torch.empty(len(x), dtype=x.dtype, device=x.device)
    rows = max(1, CHUNK_ELEMENTS // len(centers))
    for start in range(0, len(x), rows):
        chunk = slice(start, start + rows)
        scores = torch.addmm(half_norms, x[chunk], centers.T, beta=-1)
        best[chunk], labels[chunk] = scores.max(dim=1)
    distance = (x.square().sum(dim=1) - 2.0 * best).clamp_(min=0.0)
    return labels, distance


def cluster_sums(x: torch.Tensor, labels: torch.Tensor, n_clusters: int) -> torch.Tensor:
    """Sum of the rows of x (N, D) by label: shape (n_clusters, D); rows with label -1 are left out."""
    if x.device.type == "cpu":
        member = labels >= 0
        return x.new_zeros(n_clusters, x.shape[1]).index_add_(0, labels[member], x[member])
    # On a GPU index_add_ adds in any order; a product with one-hot rows is as fast and repeats exactly.
    sums = x.new_zeros(n_clusters, x.shape[1])
    rows = max(1, CHUNK_ELEMENTS // n_clusters)
    ids = torch.arange(n_clusters, device=x.device)
    for start in range(0, len(x), rows):
        chunk = slice(start, start + rows)
        sums += (labels[chunk, None] == ids).to(x.dtype).T @ x[chunk]
    return sums
