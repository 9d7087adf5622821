"""The tree of the clusters as a page shows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_plr.refinement.cluster_tree import ClusterTree, Level
from hf_plr.report.html.run_facts import as_line
from hf_plr.report.html.sheets import MAX_SIZES
from hf_plr.report.tree_file import TREE_FILE, read_levels, read_tree

MAX_CLUSTERS = MAX_SIZES  # of a tree in a page


def describe_tree(tree: ClusterTree, levels: Mapping[int, Level] | None = None) -> dict[str, Any] | None:
    """Describe a tree as JSON can hold it; None for one of more than 2,000 clusters, which a page does not show.

    Args:
        tree: the tree.
        levels: the levels of the run by number of clusters, if it has any.

    Returns:
        "labels", "sizes", "nodes" and "heights" as in `ClusterTree`; "levels", numbers of clusters to cut it at, those
        of the run if it has any; and of these "numbers", the number of the level's cluster that each cluster is in, and
        "names" that people gave to clusters of the level, by number.
    """
    if len(tree) > MAX_CLUSTERS:
        return None
    arrays = {"labels": tree.labels, "sizes": tree.sizes, "nodes": tree.nodes, "heights": tree.heights}
    return {
        **{name: array.tolist() for name, array in arrays.items()},
        "levels": sorted(levels) if levels else tree.choose_levels(),
        "numbers": {str(n): level.numbers.tolist() for n, level in (levels or {}).items()},
        "names": {
            str(n): {str(number): as_line(name) for number, name in level.own_names.items()}
            for n, level in (levels or {}).items()
        },
    }


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
            return describe_tree(tree, read_levels(folder))
    own: dict[str, Any] | None = data.get("tree")
    return own if own is not None and set(own["labels"]) == set(shown) else None
