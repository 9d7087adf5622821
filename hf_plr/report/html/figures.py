"""Logged figures as curves: what each is called, what it says, and its range."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

MAX_POINTS = 300  # of a curve
MAX_CURVES = 80
SHOWN_PREFIXES = ("plr/", "score/", "eval_")
NOT_SHOWN = ("_runtime", "_per_second", "eval_model_preparation_time")


class Figure(NamedTuple):
    """How a figure is shown.

    Attributes:
        title: its name for people.
        what: one line on what it says.
        low, high: its range, None for none.
    """

    title: str
    what: str = ""
    low: float | None = None
    high: float | None = None


KNOWN = {
    "loss": Figure("Training loss", "Mean loss since the last entry; comparable only between equal targets.", 0),
    "grad_norm": Figure("Gradient norm", "Length of the gradient before clipping.", 0),
    "learning_rate": Figure("Learning rate", "Of the optimizer.", 0),
    "plr/clusters": Figure("Clusters", "Clusters that the epoch trains on.", 0),
    "plr/clusters_raw": Figure("Clusters before refinement", "What the clusterer found.", 0),
    "plr/units": Figure("Units", "Clusters of frames that the round trains on.", 0),
    "plr/frames": Figure("Frames", "Frames that were clustered.", 0),
    "plr/round": Figure("Round", "Number of the round."),
    "plr/noise_share": Figure("Share in no cluster", "Samples that are noise.", 0, 1),
    "plr/left_out_share": Figure("Share left out", "Samples that the epoch does not train on.", 0, 1),
    "plr/changed_share": Figure(
        "Changed by refinement", "Samples whose cluster refinement changed, against this epoch's own clustering.", 0, 1
    ),
    "plr/soft_share": Figure(
        "Targets on other clusters", "What refinement puts on other clusters than a sample's own.", 0, 1
    ),
    "plr/churn": Figure("Churn", "Samples that are in another cluster than at the stage before.", 0, 1),
    "plr/agreement_ari": Figure(
        "Agreement with the stage before", "Adjusted Rand index: 1 = nothing has moved, 0 = chance.", 0, 1
    ),
    "plr/mean_confidence": Figure("Mean confidence", "Share of the soft label on the refined cluster.", 0, 1),
    "plr/effective_rank": Figure(
        "Effective rank of the features", "RankMe: how many dimensions are in use. A fall towards 1 is a collapse.", 0
    ),
    "plr/silhouette": Figure(
        "Silhouette", "How much closer samples are to their own cluster than to the next one.", -1, 1
    ),
    "plr/size_entropy": Figure(
        "Evenness of cluster sizes", "Entropy of the sizes: 1 = all alike, towards 0 = one holds nearly all.", 0, 1
    ),
    "plr/largest_share": Figure(
        "Share of the largest cluster", "Of the samples in clusters; above a half it looks like a collapse.", 0, 1
    ),
    "plr/labelings_ari": Figure(
        "Agreement between labelings", "Adjusted Rand index of the first labeling with the others.", 0, 1
    ),
    "plr/born": Figure("Clusters born", "Clusters that continue none of the stage before.", 0),
    "plr/died": Figure("Clusters died", "Clusters of the stage before that none continues.", 0),
    "plr/split": Figure("Clusters split", "Clusters of which several have become.", 0),
    "plr/merged": Figure("Clusters merged", "Clusters that several have become.", 0),
    "plr/kept": Figure("Clusters kept", "Clusters that continue one of the stage before.", 0),
    "plr/reshaped": Figure("Clusters reshaped", "Groups of clusters that were both split and merged.", 0),
    "plr/pnmi": Figure("PNMI of the units", "How much of the true labels the units tell.", 0, 1),
    "plr/cluster_purity": Figure("Cluster purity", "Share of each class's frames in its most frequent unit.", 0, 1),
    "plr/class_purity": Figure("Class purity", "Share of each unit's frames in its most frequent class.", 0, 1),
    "plr/seconds": Figure("Seconds of the stage", "Everything between two epochs.", 0),
    "plr/seconds_extract": Figure("Seconds of extraction", "Taking the features.", 0),
    "plr/seconds_cluster": Figure("Seconds of clustering", "", 0),
    "plr/seconds_refine": Figure("Seconds of refinement", "", 0),
    "plr/seconds_score": Figure("Seconds of label-free scores", "", 0),
    "plr/seconds_fit": Figure("Seconds of fitting centroids", "", 0),
    "plr/seconds_assign": Figure("Seconds of assigning frames", "", 0),
}
ORDER = {name: place for place, name in enumerate(KNOWN)}


def curves(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Curves of a log as `Trainer` writes it, known figures first; up to 300 points each.

    Returns:
        For each figure "name", "title", "what", "low", "high" and "points", pairs of epoch and value.
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


def _curve(name: str, found: list[tuple[float, float]]) -> dict[str, Any]:
    known = KNOWN.get(name.replace("eval_plr/", "plr/"), Figure(name.removeprefix("plr/").replace("_", " ")))
    figure = known._replace(title=f"{known.title}, evaluated") if name.startswith("eval_plr/") else known
    kept = np.unique(np.linspace(0, len(found) - 1, min(len(found), MAX_POINTS)).astype(np.int64))
    points = [[found[i][0], float(f"{found[i][1]:.6g}")] for i in kept.tolist()]
    return {"name": name, **figure._asdict(), "points": points}


def _group(name: str) -> int:
    """Scores first, then figures of the stage, of the training, and of time."""
    if "seconds" in name:
        return 3
    return 0 if name.startswith(("score/", "eval_")) else 1 if name.startswith("plr/") else 2


def _is_shown(name: str) -> bool:
    shown = name in ("loss", "grad_norm", "learning_rate") or name.startswith(SHOWN_PREFIXES)
    return shown and not name.endswith(NOT_SHOWN)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
