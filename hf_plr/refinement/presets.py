"""Settings of `PseudoLabelRefiner` by name."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Our reading of arXiv 2410.14242: project, blend half and half, average linkage, as many clusters as now.
    "slr": {},
    # Both epochs side by side; only samples that agree in both stay together, groups under four become noise.
    "joint": {
        "space": "joint",
        "n_clusters": None,
        "distance_threshold": 0.0,
        "noise": "drop",
        "previous": "raw",
        "min_cluster_size": 4,
    },
    # Evidence accumulation (Fred and Jain, IEEE TPAMI 2005) over all labelings of three epochs: `refine` takes several
    # labelings an epoch, and average linkage of their co-association leaves as many clusters as the first of them has.
    "consensus": {
        "weight": None,
        "space": "joint",
        "generations": 3,
        "metric": "coassociation",
        "previous": "raw",
    },
    # The same on a clustering four times as fine, cut into three nested levels: training cuts the coarsest into
    # `num_clusters`, and trains on all of them. No labeling has clusters of that size to hold the coarsest cut in its
    # place, so five epochs vote, as far as they still agree.
    "nested": {
        "weight": "agreement",
        "space": "joint",
        "generations": 5,
        "metric": "coassociation",
        "previous": "raw",
        "n_levels": 3,
    },
    # Soft targets over the current clusters: mostly the current label, and as a smaller part the projection.
    "soft": {"assignment": "soft", "weight": 0.7, "min_cluster_size": 1},
    # Soft targets in the proportions of RLCC (Zhang et al., CVPR 2021). Its similarity of clusters needs the
    # `centroid_cosines` of `PseudoLabelRefiner.refine`, which training does not give.
    "rlcc": {"assignment": "soft", "weight": 0.9, "noise": "drop", "previous": "raw", "min_cluster_size": 1},
    # The baseline: the current clusters, through the same code.
    "none": {"assignment": "current", "min_cluster_size": 1},
}
