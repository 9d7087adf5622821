"""The space in which a job seeks clusters: features relative to their mean, of unit length, or these whitened.

The arithmetic is the trainer's (`hf_plr.features.centering`, `hf_plr.clustering.whitening`), by blocks of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hf_plr.clustering.blocks import find_largest_entry
from hf_plr.clustering.checks import NotFiniteError, as_features, find_nonfinite_rows, find_too_long_rows
from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.clustering.whitening import Whitening, draw_positions_to_fit, map_rows
from hf_plr.features.centering import compute_directions
from hf_plr.jobs.feature_files import FeatureFiles


@dataclass(frozen=True)
class FeatureSpace:
    """A map of features into the space of the clusters.

    Attributes:
        center: mean feature, float32 of shape (D,).
        matrix: of the whitening, float32 of shape (D, D); None for centered features.
    """

    center: torch.Tensor
    matrix: torch.Tensor | None = None

    @classmethod
    def fit(cls, features: FeatureFiles, shrinkage: float | None, device: torch.device) -> FeatureSpace:
        """Fit the space to features, by two passes over them and one more that draws rows for the whitening.

        Args:
            features: the features.
            shrinkage: of the whitening, above 0; None for centered features.
            device: device of the arithmetic.

        Raises:
            NotFiniteError: if features are NaN or infinite, naming the file and the first such row.
        """
        largest = _find_largest(features)
        sums = ClusterSums(1, features.width, len(features), largest, device)
        for block in features:
            sums.add(as_features(block).to(device), torch.zeros(len(block), dtype=torch.int64, device=device))
        space = cls(sums.means()[0].float().to(device))
        if shrinkage is None:
            return space
        positions = draw_positions_to_fit(len(features), features.width)
        drawn = space.map(torch.from_numpy(features.take(positions)).to(device))
        return cls(space.center, Whitening(drawn.cpu().double()).matrix(shrinkage).to(device))

    def map(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (n, D) into the space: unit length, float32 of shape (n, D)."""
        rows = compute_directions(self.center, features)
        return rows if self.matrix is None else map_rows(rows, self.matrix)


class MappedFeatures:
    """Features of files in the space of the clusters: a stream of rows for k-means.

    Attributes:
        width: columns D.
        device: device of the blocks.
    """

    def __init__(self, features: FeatureFiles, space: FeatureSpace):
        self._features = features
        self._space = space
        self.width = features.width
        self.device = space.center.device

    def __len__(self) -> int:
        return len(self._features)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.map(self._features)

    def map(self, blocks: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        """Map blocks (n, D) of features into the space."""
        for block in blocks:
            yield self._space.map(as_features(block).to(self.device))

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        """Read the rows at these ascending positions."""
        return self._space.map(torch.from_numpy(self._features.take(positions.numpy())).to(self.device))


def _find_largest(features: FeatureFiles) -> float:
    """Find the largest absolute value of finite features."""
    largest = 0.0
    for file in features.files:
        for start, block in file.blocks():
            rows = as_features(block)
            bad = find_nonfinite_rows(rows)
            if len(bad):
                raise NotFiniteError(f"{file.path}: the feature in row {start + int(bad[0])} is NaN or infinite")
            too_long = find_too_long_rows(rows)
            if len(too_long):
                raise NotFiniteError(
                    f"{file.path}: the feature in row {start + int(too_long[0])} is too large for float32"
                )
            largest = max(largest, find_largest_entry(rows))
    return largest
