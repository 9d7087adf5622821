"""`tree.json`: the tree of a run's clusters and its levels, beside its labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_plr.refinement.cluster_tree import ClusterTree, Level
from hf_plr.report.names import read_level_names
from hf_plr.utils.files import write_text

TREE_FILE = "tree.json"
FORMAT = "hf-plr-tree-1"


def read_tree(folder: str | os.PathLike[str]) -> ClusterTree:
    """Read the tree of the clusters in a run's output folder.

    The tree needs neither the model nor the data: `read_tree("out").cut(10).apply(labels)` gives the labels of a level.

    Raises:
        FileNotFoundError: if there is none, as in folders of older releases.
        ValueError: if the file is damaged, naming it and the fault.
    """
    return _read(folder)[0]


def read_levels(folder: str | os.PathLike[str]) -> dict[int, Level]:
    """Read the levels of a run: the cuts through its tree that are the columns level_N of `pseudo_labels.parquet`.

    They are nested: clusters of the run that are together in one are together in all of fewer clusters.

    Args:
        folder: the run's output folder.

    Returns:
        Level by its number of clusters N, the fewest first; empty where the run has none. Of a run with K clusters,
        `level.labels` and `level.numbers`, int64 (K,), are the run's clusters and the level's cluster that each is in,
        `level.members` lists the first by the second, and `level.apply(labels)` gives the level's cluster of samples
        from their labels, int64 (n,), -1 where these are -1. `level.own_names` are names that people gave to clusters
        of the level.

    Raises:
        FileNotFoundError: if there is no tree, as in folders of older releases.
        ValueError: if the file is damaged, naming it and the fault.

    Example:
        >>> import hf_plr
        >>> levels = hf_plr.read_levels("out")  # doctest: +SKIP
        >>> levels[8].members  # doctest: +SKIP
        {3: (3, 17, 5), 9: (9, 12), ...}
    """
    _, levels = _read(folder)
    names = read_level_names(folder)
    return {n: replace(level, own_names=names.get(n, {})) for n, level in levels.items()}


def _read(folder: str | os.PathLike[str]) -> tuple[ClusterTree, dict[int, Level]]:
    path = Path(folder) / TREE_FILE
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        tree = _parse(content)
        return tree, _parse_levels(content.get("levels", []), tree)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no {TREE_FILE}: give the output folder of a finished run of hf-plr 0.2 or later that "
            "labels samples"
        ) from None
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} cannot be read as a tree of clusters: {reason}") from error


def write_tree(folder: str | os.PathLike[str], tree: ClusterTree, levels: Mapping[int, Level] | None = None) -> None:
    """Write the tree into a run's output folder; the file is complete or as it was before.

    Its fields are "format"; "clusters", the most senior first (see `ClusterTree`), each with "label" and "size";
    "merges", the lowest first, each with its two "nodes", its "height" (from 0), and its "size" (samples); and
    "levels", the fewest clusters first, each with its number of "clusters" and with "numbers": that of the level's
    cluster which each of the clusters is in, as these are listed. Nodes are numbered from 0: first the clusters as they
    are listed, then the merges.

    Args:
        folder: the folder.
        tree: the tree.
        levels: cuts through it, by their number of clusters.

    Raises:
        OSError: if it cannot be written.
    """
    clusters = [
        {"label": label, "size": size} for label, size in zip(tree.labels.tolist(), tree.sizes.tolist(), strict=True)
    ]
    sizes = tree.node_sizes[len(tree) :]
    merges = [
        {"nodes": nodes, "height": height, "size": size}
        for nodes, height, size in zip(tree.nodes.tolist(), tree.heights.tolist(), sizes.tolist(), strict=True)
    ]
    cuts = [{"clusters": n, "numbers": level.numbers.tolist()} for n, level in sorted((levels or {}).items())]
    parts = (("clusters", clusters), ("merges", merges), ("levels", cuts))
    lists = (f'"{name}": {_list(rows)}' for name, rows in parts)
    fields = (f'"format": "{FORMAT}"', *lists)
    write_text(Path(folder) / TREE_FILE, "{" + ",\n ".join(fields) + "}\n")


def _list(rows: list[dict[str, Any]]) -> str:
    """One row a line, for people who look into the file."""
    return "[" + ",\n  ".join(json.dumps(row, allow_nan=False) for row in rows) + "]"


def _parse(content: dict[str, Any]) -> ClusterTree:
    clusters, merges = content["clusters"], content["merges"]
    tree = ClusterTree(
        labels=np.array([_integer(each["label"], "label") for each in clusters], np.int64),
        sizes=np.array([_integer(each["size"], "size") for each in clusters], np.int64),
        nodes=np.array([[_integer(node, "node") for node in each["nodes"]] for each in merges], np.int64).reshape(
            -1, 2
        ),
        heights=np.array([_number(each["height"]) for each in merges], np.float64),
    )
    if [_integer(each["size"], "size") for each in merges] != tree.node_sizes[len(tree) :].tolist():
        raise ValueError("the size of a merge is not that of its two nodes")
    return tree


def _parse_levels(content: list[dict[str, Any]], tree: ClusterTree) -> dict[int, Level]:
    levels: dict[int, Level] = {}
    for each in content:
        level = tree.cut(_integer(each["clusters"], "number of clusters"))
        numbers = np.array([_integer(number, "number") for number in each["numbers"]], np.int64)
        if len(level) <= max(levels, default=0):
            raise ValueError("its levels do not ascend")
        if len(numbers) != len(tree):
            raise ValueError(f"its level of {len(level):,} clusters has {len(numbers):,} numbers")
        pairs = set(zip(level.numbers.tolist(), numbers.tolist(), strict=True))  # the same parts, by other numbers
        if numbers.min() < 0 or not len(pairs) == len(level) == len(set(numbers.tolist())):
            raise ValueError(f"the numbers of its level of {len(level):,} clusters are not those of a cut")
        levels[len(level)] = replace(level, numbers=numbers)
    return levels


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a {name} is not a whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a height is not a number")
    return float(value)
