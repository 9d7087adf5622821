"""Choices of arguments, as types, and the names that more than one part needs."""

from __future__ import annotations

from typing import Literal

CONSENSUS = "consensus"
AUTO = "auto"  # this preset, and so many labelings where the clusterer allows it
AUTO_PRESET = CONSENSUS
AUTO_FOR_DBSCAN = "soft"
AUTO_LABELINGS = 3
NESTED = "nested"  # the preset whose labelings are levels of one hierarchy, so many as auto has labelings
FINER_PRESET = "none"  # of finer labelings beside a consensus

# Everything may import this file, so that it imports hardly anything of ours. A test holds these equal to registries.
Augmentation = Literal["affine", "photo", "reid", "none", "waveform"]
ClusterSpace = Literal["auto", "white", "centered"]
Clusterer = Literal["kmeans", "dbscan", "reciprocal_hdbscan", "hdbscan", "agglomerative"]
FeatureDtype = Literal["auto", "float32", "bfloat16"]
FeatureSource = Literal["extract", "epoch"]
PairLoss = Literal["auto", "vicreg", "simclr"]
Pooling = Literal["cls", "mean", "cls+mean", "pooler"]
Refinement = Literal["auto", "consensus", "nested", "slr", "joint", "soft", "rlcc", "none"]
LOWER_IS_BETTER = (
    *("churn", "noise_share", "left_out_share", "changed_share", "soft_share", "largest_share", "born", "died"),
)
