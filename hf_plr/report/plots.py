"""The plot of the model card."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

PLOT_FILE = "clusters.png"
AGREEMENT, NOISE_SHARE = "plr/agreement_ari", "plr/noise_share"


def plot_clusters(path: str | os.PathLike[str], sizes: np.ndarray, stages: list[dict[str, float]], noun: str) -> None:
    """Draw how large the last clusters are, and how the labels settled from stage to stage.

    Args:
        path: a .png file, which is complete or not there at all.
        sizes: members of each cluster, shape (K,).
        stages: the logged figures of every stage.
        noun: what a member is called, in the plural.
    """
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(np.arange(len(sizes)), np.sort(sizes)[::-1], width=1.0)
    left.set(xlabel="cluster, largest first", ylabel=noun, title="Sizes of the last clusters")
    for name, label in ((AGREEMENT, "agreement with the stage before (ARI)"), (NOISE_SHARE, "share in no cluster")):
        points = [(entry["epoch"], entry[name]) for entry in stages if name in entry]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=label)
    right.set(xlabel="epoch", ylim=(-0.02, 1.02), title="How the labels settled")
    if right.lines:
        right.legend()
    temporary = Path(f"{os.fspath(path)}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)
