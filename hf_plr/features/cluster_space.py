"""Space in which the clusters are sought: the centered features, or these whitened.

A few directions hold most of the variance of a transformer's features, and k-means and nearest neighbours see little
else. Whitening gives the other directions a say, but too much of it lets noise speak. How much is decided without
labels: a good space puts a sample and its augmented view into one cluster.

The loss stays in the centered space. Labels that carry what this space hides teach the weights to show it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.clustering.whitening import Whitening, draw_rows_to_fit, fit_whitening, map_rows, whiten
from hf_plr.features.centering import CenteredFeatures, compute_directions
from hf_plr.models.initial_weights import is_untrained
from hf_plr.training_args import PLRTrainingArguments
from hf_plr.utils.distributed import gather_rows, locate_rows, run_on_main
from hf_plr.utils.mapped_arrays import allocate_array
from hf_plr.utils.serialization import validate_array

logger = logging.getLogger(__name__)

CENTERED = float("inf")  # the shrinkage that leaves features as they are
SHRINKAGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # that a trial compares
SMALL_SHRINKAGES = SHRINKAGES[-3:]
TRIAL_SAMPLES = 2048
SAMPLES_PER_CLUSTER = 16  # of a trial's clusters, at least


class ClusterSpace:
    """Space in which the clusters of a run are sought, the same in all its stages.

    Args:
        name: "centered"; "white"; or "auto" for the one of both that a trial at the first stage finds better.
        shrinkage: of the whitening, above 0; None lets the trial decide.
        folder: folder of a memory-mapped file for whitened features; None keeps them on the device.
        seed: seed of the trial's clusters.
        is_untrained: the model has random weights, so that only small shrinkages are tried: what its features vary in
            most, such as the brightness, an augmentation leaves as it is, and so the trial would choose it.

    Attributes:
        shrinkage: of the whitening, infinite for the centered features; None before the trial.
    """

    def __init__(self, name: str, shrinkage: float | None, folder: str | None, seed: int, is_untrained: bool = False):
        self._given = self.shrinkage = CENTERED if name == "centered" else shrinkage
        self.folder = folder
        self.seed = seed
        if is_untrained:
            self._candidates: tuple[float, ...] = SMALL_SHRINKAGES
        else:
            self._candidates = SHRINKAGES if name == "white" else (CENTERED, *SHRINKAGES)

    def begin_anew(self) -> None:
        """Let a trial decide again, where one did."""
        self.shrinkage = self._given

    def decide(
        self,
        features: CenteredFeatures,
        extract_view: Callable[[torch.Tensor], torch.Tensor],
        n_clusters: int,
        accelerator: Accelerator,
    ) -> None:
        """Decide the shrinkage, where it is open, by a trial with up to 2,048 samples, evenly spaced.

        Args:
            features: all samples without augmentation.
            extract_view: extracts features (n, D) of one augmented view of samples of this process, at these positions.
            n_clusters: number of clusters that is sought among all samples.
            accelerator: connects the processes.
        """
        if self.shrinkage is not None:
            return
        _, n_samples = locate_rows(accelerator, len(features.rows))
        positions = torch.linspace(0, n_samples - 1, min(n_samples, TRIAL_SAMPLES), dtype=torch.float64).long()
        own = positions[(positions >= features.part.start) & (positions < features.part.stop)]
        clean = features.rows[(own - features.part.start).to(features.rows.device)]
        clean, views = (
            gather_rows(accelerator, rows).cpu()
            for rows in (clean, compute_directions(features.center, extract_view(own)))
        )
        drawn = draw_rows_to_fit(features.rows, accelerator)
        self.shrinkage = run_on_main(
            accelerator,
            lambda: find_stable_shrinkage(Whitening(drawn), self._candidates, clean, views, n_clusters, self.seed),
            "looking for the space of the clusters",
        )
        logger.info("Clusters are sought in %s", self.describe())

    def map(self, features: CenteredFeatures, accelerator: Accelerator) -> torch.Tensor:
        """Map this process's features into the space: unit length, float32 of shape (n, D)."""
        assert self.shrinkage is not None
        if self.shrinkage == CENTERED:
            return features.rows
        out = None
        if self.folder is not None:
            out = torch.from_numpy(allocate_array(tuple(features.rows.shape), np.float32, self.folder))
        return whiten(features.rows, self.shrinkage, accelerator, out)

    def map_means(self, means: torch.Tensor, features: CenteredFeatures, accelerator: Accelerator) -> torch.Tensor:
        """Map directions of means (K, D) by the same matrix: unit length, (K, D), without a pass over the features.

        Where labels are given, and no space was decided, they stay as they are.
        """
        if self.shrinkage is None or self.shrinkage == CENTERED:
            return means
        return map_rows(means, fit_whitening(features.rows, self.shrinkage, accelerator))

    def describe(self) -> str:
        """Describe the space in words."""
        if self.shrinkage is None:
            return "a space that a trial finds"
        return (
            "centered features"
            if self.shrinkage == CENTERED
            else f"features whitened with shrinkage {self.shrinkage:g}"
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name."""
        if self.shrinkage is None:
            return {}
        return {"space.shrinkage": np.array([0.0 if self.shrinkage == CENTERED else self.shrinkage])}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore the output of `state_dict`; other entries are ignored.

        Raises:
            ValueError: if it is missing or damaged.
        """
        shrinkage = float(validate_array(state, "space.shrinkage", "floats", (1,), 0.0)[0])
        self.shrinkage = shrinkage or CENTERED


def make_cluster_space(
    args: PLRTrainingArguments, has_views: bool, model: torch.nn.Module, from_scratch: bool = False
) -> ClusterSpace:
    """Make the space that the arguments ask for.

    Args:
        args: the arguments.
        has_views: True if samples are augmented; without it a trial has nothing to compare, and "auto" is "centered".
        model: the backbone before training.
        from_scratch: True if it goes back to random weights: a run that continues another one then tries what that one
            tried, since numbers of clusters suffer where the space becomes another.

    Raises:
        ValueError: if a trial is needed and cannot be held.
    """
    if not has_views and args.cluster_space == "white" and args.whitening_shrinkage is None:
        raise ValueError("cluster_space='white' needs whitening_shrinkage where nothing is augmented to find one by")
    is_sought = args.labels is None and (has_views or args.cluster_space == "white")
    name = args.cluster_space if is_sought else "centered"
    return ClusterSpace(
        name, args.whitening_shrinkage, args.feature_dir, args.seed, from_scratch or is_untrained(model)
    )


def find_stable_shrinkage(
    whitening: Whitening,
    candidates: Sequence[float],
    clean: torch.Tensor,
    views: torch.Tensor,
    n_clusters: int,
    seed: int,
) -> float:
    """Find the shrinkage whose clusters hold most samples together with their augmented views.

    Args:
        whitening: of all samples.
        candidates: shrinkages, infinite for none.
        clean: centered features of the trial's samples, unit length, float32 of shape (m, D).
        views: those of an augmented view of each.
        n_clusters: number of clusters; fewer are sought where each would have less than 16 samples.
        seed: seed of the clusters.

    Returns:
        The best candidate, the first of equally good ones.
    """
    n_clusters = max(2, min(n_clusters, len(clean) // SAMPLES_PER_CLUSTER))
    shares = []
    for shrinkage in candidates:
        rows, augmented = clean, views
        if shrinkage != CENTERED:
            matrix = whitening.matrix(shrinkage)
            rows, augmented = map_rows(clean, matrix), map_rows(views, matrix)
        kmeans = KMeans(min(n_clusters, len(rows)), seed=seed).fit(rows)
        nearest = (augmented @ kmeans.cluster_centers_.T).argmax(dim=1).numpy()
        shares.append(float((nearest == kmeans.labels_).mean()))
    return candidates[int(np.argmax(shares))]
