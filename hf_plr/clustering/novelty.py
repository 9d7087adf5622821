"""Known clusters, as new samples are compared with them: which one is nearest, and whether the sample fits any.

A sample is novel if the known samples nearest to it are far away (Angiulli and Pizzuti, PKDD 2002), in two ways that
count alike: by the angle in a whitened space (see `hf_plr.clustering.whitening`), where a defect that varies little
against the rest of an image still counts, and by the Euclidean distance of the features as they are, since what a
backbone has not seen often has another length. Both are means over the nearest samples, standardised by those of the
known ones.

Known samples are scored as if they were new, by a whitening and neighbours without their fifth of the samples. Their
scores turn a new one into a p-value: the share of known samples that are at least as novel (conformal outlier
detection, Bates et al., Annals of Statistics 2023). Of known samples of the same source, a share p has a p-value of p
or less, about.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.numpy import save_file

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.whitening import Whitening, iterate_products
from hf_plr.utils.distributed import gather_rows, locate_rows
from hf_plr.utils.files import replacing
from hf_plr.utils.precision import exact_products
from hf_plr.utils.serialization import name_file_in_errors, read_tensors, validate_array

KNOWN_CLUSTERS_FILE = "known_clusters.safetensors"
FORMAT = "hf-plr-known-clusters-1"
REFERENCES = 8_192  # known samples that new ones are compared with
NEIGHBORS = 3  # whose distances are averaged
SHRINKAGE = 1.0  # of the whitening
FOLDS = 5  # of the known samples, each scored by the others
LEAST_SPREAD = 1e-6  # of scores, where all samples are alike
BLOCK_ROWS = 1 << 11  # rows that are compared together
DEVIATIONS = 1.4826  # standard deviation of normal values, in median absolute deviations
NONE = -1


@dataclass(frozen=True)
class Assignment:
    """What new samples are, in terms of the known clusters.

    Attributes:
        label: nearest cluster, int64 of shape (n,).
        similarity: cosine to its prototype, relative to the center of the known samples, float32 of shape (n,).
        second_label: second nearest cluster, int64 of shape (n,); -1 where there is only one cluster.
        second_similarity: cosine to that one's prototype, float32 of shape (n,); NaN where there is only one cluster.
        novelty: how little a sample fits the known ones, in standard deviations of their distances from the median,
            float32 of shape (n,).
        p_value: share of known samples that are at least as novel, in (0, 1], float32 of shape (n,).
    """

    label: np.ndarray
    similarity: np.ndarray
    second_label: np.ndarray
    second_similarity: np.ndarray
    novelty: np.ndarray
    p_value: np.ndarray


@dataclass(frozen=True)
class KnownClusters:
    """The clusters of a run, and a sample of what they were made of.

    Attributes:
        labels: the clusters' labels, ascending, int64 of shape (K,).
        sizes: their members in training, int64 of shape (K,).
        nearest_counts: references that are nearest to each cluster's prototype, int64 of shape (K,): what shares in
            other data are compared with, since the refined label is not always the nearest cluster.
        center: mean feature, float32 of shape (D,).
        prototypes: mean direction of each cluster from the center, unit length, float32 of shape (K, D).
        whitening: float32 of shape (D, D).
        references: features of drawn known samples relative to the center, float32 of shape (R, D).
        median, spread: of angles and distances of the references as if they were new, float32 of shape (2,).
        known_scores: novelty of the references as if they were new, ascending, float32 of shape (R,).
    """

    labels: np.ndarray
    sizes: np.ndarray
    nearest_counts: np.ndarray
    center: torch.Tensor
    prototypes: torch.Tensor
    whitening: torch.Tensor
    references: torch.Tensor
    median: torch.Tensor
    spread: torch.Tensor
    known_scores: np.ndarray

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        drawn: torch.Tensor,
        center: torch.Tensor,
        prototypes: torch.Tensor,
        labels: np.ndarray,
        sizes: np.ndarray,
    ) -> KnownClusters:
        """Fit on drawn samples.

        Args:
            drawn: features of `draw_references`, float of shape (R, D), R at least 2.
            center: mean feature of all samples, shape (D,).
            prototypes: mean direction of each cluster from the center, unit length, shape (K, D), K at least 1.
            labels: the clusters' labels, ascending, integers of shape (K,).
            sizes: their members, integers of shape (K,).

        Raises:
            ValueError: if there are no clusters, or fewer than two samples.
        """
        if len(labels) == 0 or len(drawn) < 2:
            raise ValueError(f"{len(labels)} clusters and {len(drawn)} samples are too few to compare new samples with")
        center, prototypes = center.float().cpu(), prototypes.float().cpu()
        rows = drawn.float().cpu() - center
        nearest = _multiply(F.normalize(rows, dim=1), prototypes.T).argmax(dim=1)
        distances = _measure_folds(rows)
        median = distances.median(dim=0).values
        spread = (DEVIATIONS * (distances - median).abs().median(dim=0).values).clamp(min=LEAST_SPREAD)
        return cls(
            labels=np.asarray(labels, np.int64),
            sizes=np.asarray(sizes, np.int64),
            nearest_counts=np.bincount(nearest.numpy(), minlength=len(labels)),
            center=center,
            prototypes=prototypes,
            whitening=Whitening(rows.double()).metric(SHRINKAGE),
            references=rows,
            median=median,
            spread=spread,
            known_scores=np.sort(((distances - median) / spread).mean(dim=1).numpy()),
        )

    def to(self, device: torch.device | str) -> KnownClusters:
        """Move what features are compared with to a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in self._arrays().items() if torch.is_tensor(value)
        }
        return dataclasses.replace(self, **moved)

    @torch.no_grad()
    def assign(self, features: torch.Tensor) -> Assignment:
        """Compare new samples with the known clusters.

        Args:
            features: features of the backbone, float of shape (n, D), on the device of these clusters.

        Raises:
            ValueError: if they have another width.
        """
        rows = self._center(features)
        n = len(rows)
        similarity, code = np.empty((n, 2), np.float32), np.empty((n, 2), np.int64)
        novelty = np.empty(n, np.float32)
        for span in iterate_rows(n, BLOCK_ROWS):
            block = rows[span]
            values, columns = _find_two_largest(_multiply(F.normalize(block, dim=1), self.prototypes.T))
            similarity[span], code[span] = values.cpu().numpy(), columns.cpu().numpy()
            distances = _measure(block, self.references, self.whitening, self._reference_directions)
            novelty[span] = ((distances - self.median) / self.spread).mean(dim=1).cpu().numpy()
        return Assignment(
            label=self.labels[code[:, 0]],
            similarity=similarity[:, 0],
            second_label=np.append(self.labels, NONE)[code[:, 1]],
            second_similarity=similarity[:, 1],
            novelty=novelty,
            p_value=self._p_values(novelty),
        )

    def map(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (n, D) into the whitened space, to group the new ones: unit length, float32 (n, D)."""
        return _whiten(self._center(features), self.whitening)

    @cached_property
    def _reference_directions(self) -> torch.Tensor:
        return _whiten(self.references, self.whitening)

    def _center(self, features: torch.Tensor) -> torch.Tensor:
        if features.ndim != 2 or features.shape[1] != len(self.center):
            raise ValueError(f"features have shape {tuple(features.shape)}, known ones a width of {len(self.center)}")
        return features.float() - self.center

    def _p_values(self, novelty: np.ndarray) -> np.ndarray:
        n_known = len(self.known_scores)
        at_least = n_known - np.searchsorted(self.known_scores, novelty, side="left")
        return ((1 + at_least) / (n_known + 1)).astype(np.float32)

    def _arrays(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, completely or not at all; of at most 13 MiB at a width of 384."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self._arrays().items()}
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata={"format": FORMAT})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KnownClusters:
        """Read a file of `save`.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, naming it.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path} does not exist")
        arrays = read_tensors(path, FORMAT)
        with name_file_in_errors(path):
            width = len(validate_array(arrays, "center", "floats", (None,)))
            n_clusters = len(validate_array(arrays, "labels", "integers", (None,), 0))
            n_known = len(validate_array(arrays, "known_scores", "floats", (None,)))

            def floats(name: str, *shape: int) -> torch.Tensor:
                return torch.from_numpy(validate_array(arrays, name, "floats", shape)).float()

            if n_clusters == 0 or n_known < 2:
                raise ValueError(f"it has {n_clusters} clusters and {n_known} samples")
            return cls(
                arrays["labels"],
                validate_array(arrays, "sizes", "integers", (n_clusters,), 0),
                validate_array(arrays, "nearest_counts", "integers", (n_clusters,), 0),
                floats("center", width),
                floats("prototypes", n_clusters, width),
                floats("whitening", width, width),
                floats("references", n_known, width),
                floats("median", 2),
                floats("spread", 2).clamp(min=LEAST_SPREAD),
                arrays["known_scores"],
            )


def draw_references(rows: torch.Tensor, accelerator: Accelerator | None = None, seed: int = 0) -> torch.Tensor:
    """Draw the known samples that new ones are compared with, the same for any number of processes.

    Args:
        rows: this process's features, shape (n, D).
        accelerator: connects processes that hold further rows.
        seed: seed of the draw.

    Returns:
        float32 of shape (R, D) on the CPU of every process, R at most 8,192.
    """
    start, total = locate_rows(accelerator, len(rows))
    positions = np.sort(np.random.default_rng([seed, 3]).choice(total, min(total, REFERENCES), replace=False))
    local = positions[(positions >= start) & (positions < start + len(rows))] - start
    return gather_rows(accelerator, rows[torch.from_numpy(local).to(rows.device)].float()).cpu()


def _multiply(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply rows (n, D) by a matrix (D, k), in float32."""
    products = [product for _, product in iterate_products(rows, matrix)]
    return torch.cat(products) if products else rows.new_empty(0, matrix.shape[1])


def _find_two_largest(similarities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns (n, 2) of the largest two of each row (n, K); of a single column NaN and -1 are the second."""
    values, columns = similarities.topk(min(2, similarities.shape[1]), dim=1)
    missing = 2 - values.shape[1]
    return F.pad(values, (0, missing), value=torch.nan), F.pad(columns, (0, missing), value=NONE)


def _whiten(rows: torch.Tensor, whitening: torch.Tensor) -> torch.Tensor:
    """Directions of centered rows (n, D) in the whitened space: unit length, (n, D)."""
    return F.normalize(_multiply(rows, whitening), dim=1)


def _measure_folds(rows: torch.Tensor) -> torch.Tensor:
    """Measure each of the centered rows (R, D) by a whitening and neighbours from the other folds; see `_measure`."""
    fold = torch.arange(len(rows)) % min(FOLDS, len(rows))
    distances = torch.empty(len(rows), 2)
    for number in range(int(fold.max()) + 1):
        is_inside = fold == number
        others = rows[~is_inside]
        whitening = Whitening(others.double()).metric(SHRINKAGE)
        distances[is_inside] = _measure(rows[is_inside], others, whitening, _whiten(others, whitening))
    return distances


def _measure(
    rows: torch.Tensor, references: torch.Tensor, whitening: torch.Tensor, reference_directions: torch.Tensor
) -> torch.Tensor:
    """Mean cosine distance in the whitened space, and mean Euclidean distance, to the nearest references: (n, 2).

    Args:
        rows: centered features, shape (n, D).
        references: those of known samples, shape (R, D).
        whitening: shape (D, D).
        reference_directions: the references in the whitened space, unit length, shape (R, D).
    """
    directions = _whiten(rows, whitening)
    squares, reference_squares = rows.square().sum(dim=1), references.square().sum(dim=1)
    n_neighbors = min(NEIGHBORS, len(references))
    distances = rows.new_empty(len(rows), 2)
    for span in iterate_rows(len(rows), BLOCK_ROWS):
        with exact_products(rows.device):
            cosines = directions[span] @ reference_directions.T
            relative = reference_squares - 2.0 * (rows[span] @ references.T)
        distances[span, 0] = 1.0 - cosines.topk(n_neighbors, dim=1).values.mean(dim=1)
        nearest = relative.topk(n_neighbors, dim=1, largest=False).values + squares[span, None]
        distances[span, 1] = nearest.clamp(min=0.0).sqrt().mean(dim=1)
    return distances
