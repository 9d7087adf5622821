"""Curves of logged metrics: title, description and range of each."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

MAX_POINTS = 300  # of a curve
MAX_CURVES = 80
SHOWN_PREFIXES = ("plr/", "score/", "eval_")
NOT_SHOWN = ("_runtime", "_per_second", "eval_model_preparation_time")


class Metric(NamedTuple):
    """Presentation of a metric.

    Attributes:
        title: name for people.
        what: description in one line.
        low, high: range of the values, None for no bound.
    """

    title: str
    what: str = ""
    low: float | None = None
    high: float | None = None


KNOWN = {
    "score/pseudo_label_accuracy": Metric("Accuracy of the labels", "Best match of clusters to true classes.", 0, 1),
    "score/pseudo_label_nmi": Metric("NMI of the labels", "Normalized mutual information with the true classes.", 0, 1),
    "score/pseudo_label_ari": Metric("ARI of the labels", "Adjusted Rand index against the true classes.", 0, 1),
    "score/pseudo_label_purity": Metric(
        "Purity of the labels", "Fraction of samples that are of the most frequent class of their cluster.", 0, 1
    ),
    "score/pseudo_label_pair_precision": Metric(
        "Pair precision of the labels", "Fraction of the pairs in one cluster that are of one class.", 0, 1
    ),
    "score/pseudo_label_pair_recall": Metric(
        "Pair recall of the labels", "Fraction of the pairs of one class that are in one cluster.", 0, 1
    ),
    "score/pseudo_label_pair_f1": Metric("Pair F1 of the labels", "Harmonic mean of pair precision and recall.", 0, 1),
    "score/pseudo_label_coverage": Metric("Coverage of the labels", "Fraction of samples with a label.", 0, 1),
    "loss": Metric("Training loss", "Mean loss since the last entry; comparable only between equal targets.", 0),
    "grad_norm": Metric("Gradient norm", "Length of the gradient before clipping.", 0),
    "learning_rate": Metric("Learning rate", "Of the optimizer.", 0),
    "plr/clusters": Metric("Clusters", "Clusters that the epoch trains on.", 0),
    "plr/clusters_raw": Metric("Clusters before refinement", "Clusters that the clusterer returned.", 0),
    "plr/units": Metric("Units", "Clusters of frames that the round trains on.", 0),
    "plr/frames": Metric("Frames", "Frames that were clustered.", 0),
    "plr/round": Metric("Round", "Number of the round."),
    "plr/noise_share": Metric("Fraction in no cluster", "Samples that are noise.", 0, 1),
    "plr/left_out_share": Metric("Fraction left out", "Samples that the epoch does not train on.", 0, 1),
    "plr/changed_share": Metric(
        "Changed by refinement", "Samples whose cluster refinement changed, against this epoch's own clustering.", 0, 1
    ),
    "plr/soft_share": Metric(
        "Targets on other clusters", "Fraction of the targets on other clusters than a sample's own.", 0, 1
    ),
    "plr/churn": Metric("Churn", "Samples that are in another cluster than at the stage before.", 0, 1),
    "plr/agreement_ari": Metric(
        "Agreement with the stage before", "Adjusted Rand index: 1 = nothing has moved, 0 = chance.", 0, 1
    ),
    "plr/mean_confidence": Metric(
        "Mean confidence", "Fraction of the soft label, or of clusterings, that agree.", 0, 1
    ),
    "plr/effective_rank": Metric(
        "Effective rank of the features", "RankMe: number of dimensions in use. A fall towards 1 is a collapse.", 0
    ),
    "plr/silhouette": Metric(
        "Silhouette", "Distance to the next cluster against the own one: 1 = far apart, 0 = on the border.", -1, 1
    ),
    "plr/size_entropy": Metric(
        "Evenness of cluster sizes", "Entropy of the sizes: 1 = all alike, towards 0 = one holds nearly all.", 0, 1
    ),
    "plr/largest_share": Metric(
        "Fraction in the largest cluster", "Of the samples in clusters; above a half it looks like a collapse.", 0, 1
    ),
    "plr/labelings_ari": Metric(
        "Agreement between labelings", "Adjusted Rand index of the first labeling with the others.", 0, 1
    ),
    "plr/born": Metric("Clusters born", "Clusters that continue none of the stage before.", 0),
    "plr/died": Metric("Clusters died", "Clusters of the stage before that none continues.", 0),
    "plr/split": Metric("Clusters split", "Clusters of which several have become.", 0),
    "plr/merged": Metric("Clusters merged", "Clusters that several have become.", 0),
    "plr/kept": Metric("Clusters kept", "Clusters that continue one of the stage before.", 0),
    "plr/reshaped": Metric("Clusters reshaped", "Groups of clusters that were both split and merged.", 0),
    "plr/pnmi": Metric("PNMI of the units", "Fraction of the entropy of the true labels that the units explain.", 0, 1),
    "plr/cluster_purity": Metric("Cluster purity", "Fraction of each class's frames in its most frequent unit.", 0, 1),
    "plr/class_purity": Metric("Class purity", "Fraction of each unit's frames in its most frequent class.", 0, 1),
    "plr/seconds": Metric("Seconds of the stage", "Everything between two epochs.", 0),
    "plr/seconds_extract": Metric("Seconds of extraction", "Computing the features.", 0),
    "plr/seconds_cluster": Metric("Seconds of clustering", "", 0),
    "plr/seconds_refine": Metric("Seconds of refinement", "", 0),
    "plr/seconds_score": Metric("Seconds of label-free scores", "", 0),
    "plr/seconds_fit": Metric("Seconds of fitting centroids", "", 0),
    "plr/seconds_assign": Metric("Seconds of assigning frames", "", 0),
}
ORDER = {name: place for place, name in enumerate(KNOWN)}


def metric_curves(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect the curves of a log as `Trainer` writes it, known metrics first; up to 300 points each.

    Returns:
        One dictionary per metric: "name", "title", "what", "low", "high" and "points", pairs of epoch and value.
    """
    points: dict[str, dict[float, float]] = {}
    for entry in log:
        epoch: Any = entry.get("epoch")
        if not _is_number(epoch):
            continue
        for name, value in entry.items():
            if _is_shown(name) and _is_number(value):
                points.setdefault(name, {})[round(float(epoch), 4)] = float(value)
    names = sorted(points, key=lambda name: (_group(name), ORDER.get(name, len(ORDER)), name))
    return [_curve(name, sorted(points[name].items())) for name in names[:MAX_CURVES]]


def _curve(name: str, points: list[tuple[float, float]]) -> dict[str, Any]:
    metric = KNOWN.get(name.replace("eval_plr/", "plr/"), Metric(_plain_title(name)))
    if name.startswith("eval_plr/"):
        metric = metric._replace(title=f"{metric.title}, evaluated")
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).astype(np.int64))
    rounded = [[points[i][0], float(f"{points[i][1]:.6g}")] for i in kept.tolist()]
    return {"name": name, **metric._asdict(), "points": rounded}


def _plain_title(name: str) -> str:
    """Make a title of the name of an unknown metric."""
    return name.removeprefix("plr/").removeprefix("score/").replace("_", " ")


def _group(name: str) -> int:
    """Order scores first, then metrics of the stage, of the training, and of time."""
    if "seconds" in name:
        return 3
    return 0 if name.startswith(("score/", "eval_")) else 1 if name.startswith("plr/") else 2


def _is_shown(name: str) -> bool:
    shown = name in ("loss", "grad_norm", "learning_rate") or name.startswith(SHOWN_PREFIXES)
    return shown and not name.endswith(NOT_SHOWN)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
