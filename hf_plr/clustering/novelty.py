"""Known clusters, as new samples are compared with them: which one is nearest, and whether the sample fits any.

A sample is novel if the members of the known clusters nearest to it are far away. Distances are taken in a whitened
space (see `hf_plr.clustering.whitening`), where a defect that varies little against the rest of an image still counts.
What is far depends on the cluster: scores are standardised by the spread of the nearest cluster's own members, small
clusters by that of all. Every member is scored as if it were not known (leave-one-out), and the scores of all members
turn a new one into a p-value: the share of known samples that are at least as novel (conformal outlier detection, Bates
et al., Annals of Statistics 2023). Of known samples of the same source, a share p has a p-value of p or less.

The score is the mean distance to the nearest samples, as in Angiulli and Pizzuti, PKDD 2002.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.numpy import save_file

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.whitening import Whitening, iterate_products, map_rows
from hf_plr.utils.distributed import gather_rows, locate_rows
from hf_plr.utils.precision import exact_products
from hf_plr.utils.serialization import name_file_in_errors, read_tensors, validate_array

KNOWN_CLUSTERS_FILE = "known_clusters.safetensors"
FORMAT = "hf-plr-known-clusters-1"
REFERENCES = 8_192  # known samples that new ones are compared with
NEIGHBORS = 5  # whose mean distance is the score
SHRINKAGE = 0.1  # of the whitening
PRIOR_MEMBERS = 10.0  # weight of all clusters in the spread of each
LEAST_SPREAD = 1e-6  # of scores, where members are all alike
BLOCK_ROWS = 1 << 11  # rows that are compared together
NONE = -1


@dataclass(frozen=True)
class Assignment:
    """What new samples are, in terms of the known clusters.

    Attributes:
        label: nearest cluster, int64 of shape (n,).
        similarity: cosine to its prototype, relative to the center of the known samples, float32 of shape (n,).
        second_label: second nearest cluster, int64 of shape (n,); -1 where there is only one cluster.
        second_similarity: cosine to that one's prototype, float32 of shape (n,); NaN where there is only one cluster.
        novelty: how little a sample fits the known ones, in standard deviations of the nearest cluster's members,
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
        references: drawn known samples in the whitened space, unit length, float32 of shape (R, D).
        location, spread: median of the scores of each cluster's members, and their spread, float32 of shape (K,).
        known_scores: standardised scores of the references, ascending, float32 of shape (R,).
    """

    labels: np.ndarray
    sizes: np.ndarray
    nearest_counts: np.ndarray
    center: torch.Tensor
    prototypes: torch.Tensor
    whitening: torch.Tensor
    references: torch.Tensor
    location: torch.Tensor
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
            drawn: centered features of `draw_references`, unit length, shape (R, D), R at least 2.
            center: mean feature of all samples, shape (D,).
            prototypes: mean direction of each cluster, unit length, shape (K, D), K at least 1.
            labels: the clusters' labels, ascending, integers of shape (K,).
            sizes: their members, integers of shape (K,).

        Raises:
            ValueError: if there are no clusters, or fewer than two samples.
        """
        if len(labels) == 0 or len(drawn) < 2:
            raise ValueError(f"{len(labels)} clusters and {len(drawn)} samples are too few to compare new samples with")
        rows, prototypes = drawn.float().cpu(), prototypes.float().cpu()
        whitening = Whitening(rows.double()).matrix(SHRINKAGE)
        references = map_rows(rows, whitening).half().float()  # as they are stored
        scores = torch.cat(
            [_score(references[span], references, span.start) for span in iterate_rows(len(references), BLOCK_ROWS)]
        )
        nearest = torch.cat([similarities.argmax(dim=1) for _, similarities in _compare(rows, prototypes)])
        location, spread = _measure_clusters(scores.numpy(), nearest.numpy(), len(labels))
        known = np.sort(((scores - location[nearest]) / spread[nearest]).numpy())
        return cls(
            np.asarray(labels, np.int64),
            np.asarray(sizes, np.int64),
            np.bincount(nearest.numpy(), minlength=len(labels)),
            center.float().cpu(),
            prototypes,
            whitening,
            references,
            location,
            spread,
            known,
        )

    def to(self, device: torch.device | str) -> KnownClusters:
        """Move what features are compared with to a device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return dataclasses.replace(self, **moved)

    @torch.no_grad()
    def assign(self, features: torch.Tensor) -> Assignment:
        """Compare new samples with the known clusters.

        Args:
            features: features of the backbone, float of shape (n, D), on the device of these clusters.

        Raises:
            ValueError: if they have another width.
        """
        directions = self._directions(features)
        mapped = map_rows(directions, self.whitening)
        n = len(features)
        best, code = np.empty((n, 2), np.float32), np.empty((n, 2), np.int64)
        novelty = np.empty(n, np.float32)
        for span, similarities in _compare(directions, self.prototypes):
            values, columns = _find_two_largest(similarities)
            scores = _score(mapped[span], self.references)
            nearest = columns[:, 0]
            best[span], code[span] = values.cpu().numpy(), columns.cpu().numpy()
            novelty[span] = ((scores - self.location[nearest]) / self.spread[nearest]).cpu().numpy()
        return Assignment(
            label=self.labels[code[:, 0]],
            similarity=best[:, 0],
            second_label=np.append(self.labels, NONE)[code[:, 1]],
            second_similarity=best[:, 1],
            novelty=novelty,
            p_value=self._p_values(novelty),
        )

    def map(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (n, D) into the whitened space, to group the new ones: unit length, float32 (n, D)."""
        return map_rows(self._directions(features), self.whitening)

    def _directions(self, features: torch.Tensor) -> torch.Tensor:
        if features.ndim != 2 or features.shape[1] != len(self.center):
            raise ValueError(f"features have shape {tuple(features.shape)}, known ones a width of {len(self.center)}")
        return F.normalize(features.float() - self.center, dim=1)

    def _p_values(self, novelty: np.ndarray) -> np.ndarray:
        n_known = len(self.known_scores)
        at_least = n_known - np.searchsorted(self.known_scores, novelty, side="left")
        return ((1 + at_least) / (n_known + 1)).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, completely or not at all; references in half precision."""
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items()}
        arrays["references"] = arrays["references"].astype(np.float16)
        save_file(arrays, f"{path}.tmp", metadata={"format": FORMAT})
        os.replace(f"{path}.tmp", path)

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
                floats("location", n_clusters),
                floats("spread", n_clusters),
                arrays["known_scores"],
            )


def draw_references(rows: torch.Tensor, accelerator: Accelerator | None = None, seed: int = 0) -> torch.Tensor:
    """Draw the known samples that new ones are compared with, the same for any number of processes.

    Args:
        rows: this process's centered features, shape (n, D).
        accelerator: connects processes that hold further rows.
        seed: seed of the draw.

    Returns:
        float32 of shape (R, D) on the CPU of every process, R at most 8,192.
    """
    start, total = locate_rows(accelerator, len(rows))
    positions = np.sort(np.random.default_rng([seed, 3]).choice(total, min(total, REFERENCES), replace=False))
    local = positions[(positions >= start) & (positions < start + len(rows))] - start
    return gather_rows(accelerator, rows[torch.from_numpy(local).to(rows.device)].float()).cpu()


def _compare(rows: torch.Tensor, prototypes: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Iterate over slices of rows (n, D) and their cosines (m, K) to the prototypes (K, D)."""
    for span in iterate_rows(len(rows), BLOCK_ROWS):
        for _, similarities in iterate_products(rows[span], prototypes.T):
            yield span, similarities


def _find_two_largest(similarities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns (n, 2) of the largest two of each row (n, K); of a single column NaN and -1 are the second."""
    values, columns = similarities.topk(min(2, similarities.shape[1]), dim=1)
    missing = 2 - values.shape[1]
    return F.pad(values, (0, missing), value=torch.nan), F.pad(columns, (0, missing), value=NONE)


def _score(rows: torch.Tensor, references: torch.Tensor, first: int | None = None) -> torch.Tensor:
    """Mean cosine distance (n,) of rows (n, D) to their nearest references (R, D).

    Args:
        rows: unit length.
        references: unit length.
        first: position of the first row among the references, if the rows are such: each is not its own neighbour.
    """
    with exact_products(rows.device):
        similarities = rows @ references.T
    n_neighbors = min(NEIGHBORS, len(references))
    if first is not None:
        own = torch.arange(len(rows), device=rows.device)
        similarities[own, first + own] = -torch.inf
        n_neighbors = min(NEIGHBORS, len(references) - 1)
    return 1.0 - similarities.topk(n_neighbors, dim=1).values.mean(dim=1)


def _measure_clusters(scores: np.ndarray, cluster: np.ndarray, n_clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Location and spread of the scores of each cluster's members, (K,) each, drawn towards those of all.

    Medians and median absolute deviations, so that a few strange members do not let everything strange pass.
    """
    center = np.median(scores)
    spread_of_all = max(float(np.median(np.abs(scores - center))), LEAST_SPREAD)
    location, spread = np.full(n_clusters, center), np.full(n_clusters, spread_of_all)
    order = np.argsort(cluster, kind="stable")
    codes, starts = np.unique(cluster[order], return_index=True)
    for code, members in zip(codes.tolist(), np.split(scores[order], starts[1:]), strict=True):
        weight = len(members) / (len(members) + PRIOR_MEMBERS)
        location[code] = weight * np.median(members) + (1 - weight) * center
        own = max(float(np.median(np.abs(members - location[code]))), LEAST_SPREAD)
        spread[code] = own**weight * spread_of_all ** (1 - weight)
    normal = 1.4826  # median absolute deviations in a standard deviation
    return torch.from_numpy(location).float(), torch.from_numpy(spread * normal).float()
