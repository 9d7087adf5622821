"""The tree of the clusters as a page shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_plr.refinement.hierarchy import ClusterTree
from hf_plr.report.html.sheets import MAX_SIZES
from hf_plr.report.tree_file import TREE_FILE, read_tree

MAX_CLUSTERS = MAX_SIZES  # of a tree in a page


def describe_tree(tree: ClusterTree) -> dict[str, Any] | None:
    """Describe a tree as JSON can hold it; None for one of more than 2,000 clusters, which a page does not show.

    Returns:
        "labels", "sizes", "nodes" and "heights" as in `ClusterTree`, and "levels", numbers of clusters to cut it at.
    """
    if len(tree) > MAX_CLUSTERS:
        return None
    arrays = {"labels": tree.labels, "sizes": tree.sizes, "nodes": tree.nodes, "heights": tree.heights}
    return {name: array.tolist() for name, array in arrays.items()} | {"levels": tree.choose_levels()}


def find_tree(folder: str | os.PathLike[str], data: dict[str, Any]) -> dict[str, Any] | None:
    """Find the tree of the clusters that a report shows: that of the folder's `tree.json`, or else the report's own.

    A tree of other clusters, such as those of a run before in this folder, is not taken.

    Args:
        folder: output folder of the run.
        data: the report's data.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    shown = {label: size for label, size, *_ in data["sizes"]["clusters"]}
    if (Path(folder) / TREE_FILE).is_file():
        tree = read_tree(folder)
        if dict(zip(tree.labels.tolist(), tree.sizes.tolist(), strict=True)) == shown:
            return describe_tree(tree)
    own: dict[str, Any] | None = data.get("tree")
    return own if own is not None and set(own["labels"]) == set(shown) else None
