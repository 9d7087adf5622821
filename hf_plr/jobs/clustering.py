"""Cluster feature files of any size: fit centroids, then write the labels of each file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from hf_plr.clustering import KMeans
from hf_plr.clustering.checks import as_features
from hf_plr.clustering.streamed_kmeans import fit_stream
from hf_plr.jobs.feature_files import FeatureFile, FeatureFiles
from hf_plr.jobs.feature_space import FeatureSpace, MappedFeatures
from hf_plr.pseudo_labels.label_files import LABEL_COLUMN
from hf_plr.utils.files import replacing
from hf_plr.utils.serialization import name_file_in_errors, read_formatted, validate_array

CENTROIDS_FILE = "centroids.safetensors"
CENTROIDS_FORMAT = "hf-plr-cluster-centroids-1"
EARLIER_FORMAT = "hf-plr-centroids-1"  # of the same arrays; that of units, too


@dataclass(frozen=True)
class Centroids:
    """Centroids of clusters, and the space that they are in.

    Attributes:
        centers: float32 of shape (K, D), of unit length.
        space: map of features into their space.
        iterations: number of iterations of the fit.
    """

    centers: torch.Tensor
    space: FeatureSpace
    iterations: int

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `centroids.safetensors` into a folder, which is made; the file is complete or does not exist."""
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, CENTROIDS_FILE)
        arrays = {"cluster_centers": self.centers, "center": self.space.center}
        if self.space.matrix is not None:
            arrays["matrix"] = self.space.matrix
        stored = {name: np.ascontiguousarray(array.cpu().numpy()) for name, array in arrays.items()}
        with replacing(path) as temporary:
            save_file(stored | {"iterations": np.array([self.iterations])}, temporary, {"format": CENTROIDS_FORMAT})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device) -> Centroids:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, naming it.
        """
        path = os.path.join(folder, CENTROIDS_FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{folder} has no {CENTROIDS_FILE}: fit centroids into it first")
        _, arrays = read_formatted(path, (CENTROIDS_FORMAT, EARLIER_FORMAT))
        with name_file_in_errors(path):
            if "centroids" in arrays:
                raise ValueError("it holds the centroids of units: give the folder of an earlier `hf-plr cluster`")
            centers = validate_array(arrays, "cluster_centers", "floats", (None, None))
            width = centers.shape[1]
            center = validate_array(arrays, "center", "floats", (width,))
            matrix = validate_array(arrays, "matrix", "floats", (width, width)) if "matrix" in arrays else None
            iterations = int(validate_array(arrays, "iterations", "integers", (1,), 0)[0])
        as_tensor = [None if each is None else torch.from_numpy(each).to(device) for each in (centers, center, matrix)]
        assert as_tensor[0] is not None
        assert as_tensor[1] is not None
        return cls(as_tensor[0], FeatureSpace(as_tensor[1], as_tensor[2]), iterations)


def fit_centroids(
    features: FeatureFiles,
    kmeans: KMeans,
    shrinkage: float | None = None,
    start: Centroids | None = None,
    device: torch.device | None = None,
) -> Centroids:
    """Fit centroids to features that may be larger than memory, with the results of one call with all in memory.

    Args:
        features: the features.
        kmeans: the clusterer.
        shrinkage: of the whitening of the features, above 0; None for centered features.
        start: centroids of the epoch before, from which k-means goes on; None draws new ones.
        device: device of the arithmetic; None takes the CPU.

    Raises:
        ValueError: if the features are not finite, or number or width of the clusters do not fit.
    """
    if start is not None:
        expected = (kmeans.n_clusters, features.width)
        if tuple(start.centers.shape) != expected:
            raise ValueError(
                f"the centroids to start from have shape {tuple(start.centers.shape)}, but {expected} are sought"
            )
        kmeans.cluster_centers_ = start.centers
    space = FeatureSpace.fit(features, shrinkage, torch.device("cpu") if device is None else device)
    fit_stream(kmeans, MappedFeatures(features, space))
    return Centroids(kmeans.cluster_centers_, space, kmeans.n_iter_)


def assign_file(file: FeatureFile, centroids: Centroids, output: str) -> int:
    """Write the label of the nearest centroid of every feature of a file; returns the number of labels.

    Args:
        file: the features.
        centroids: the centroids.
        output: a .npy file for int32 labels (N,), or a .parquet file for the columns label, index and of segments start
            and end, as the features have them. It is complete or does not exist.

    Raises:
        ValueError: if the features are of another width, or not finite.
    """
    n_clusters, width = centroids.centers.shape
    if file.width != width and file.n_rows:
        raise ValueError(f"{file.path} has features of {file.width} numbers, but the centroids have {width}")
    kmeans = KMeans(n_clusters, device=centroids.centers.device)
    kmeans.cluster_centers_ = centroids.centers

    def predict(features: np.ndarray, start: int) -> np.ndarray:
        is_finite = np.isfinite(features).all(axis=1)
        if not is_finite.all():
            raise ValueError(f"{file.path}: the feature in row {start + int(np.argmin(is_finite))} is NaN or infinite")
        rows = centroids.space.map(as_features(features).to(centroids.centers.device))
        return kmeans.predict(rows).astype(np.int32)

    with replacing(output) as temporary:
        if file.is_parquet:
            _write_parquet(temporary, file, predict)
        else:
            labels = np.empty(file.n_rows, np.int32)
            for start, features in file.blocks():
                labels[start : start + len(features)] = predict(features, start)
            with open(temporary, "wb") as stream:
                np.save(stream, labels)
    return file.n_rows


def _write_parquet(path: Path, file: FeatureFile, predict: Callable[[np.ndarray, int], np.ndarray]) -> None:
    """Write labels beside the columns that tell which samples they are of."""
    schema = pa.schema([*file.identity, pa.field(LABEL_COLUMN, pa.int32())])
    schema = schema.with_metadata(None if file.record is None else file.record.metadata())
    start = 0
    with pq.ParquetWriter(path, schema) as writer:
        for identity, features in file.blocks_with_identity():
            labels = pa.array(predict(features, start))
            writer.write_batch(pa.record_batch([*identity, labels], schema=schema))
            start += len(features)
