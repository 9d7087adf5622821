"""`tree.json`: the tree of a run's clusters, beside its labels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_plr.refinement.hierarchy import ClusterTree
from hf_plr.utils.text_files import write_text

TREE_FILE = "tree.json"
FORMAT = "hf-plr-tree-1"


def read_tree(folder: str | os.PathLike[str]) -> ClusterTree:
    """Read the tree of the clusters in a run's output folder.

    The tree needs neither the model nor the data: `read_tree("out").cut(10).apply(labels)` gives the labels of a level.

    Raises:
        FileNotFoundError: if there is none, as in folders of older releases.
        ValueError: if the file is damaged, naming it and the fault.
    """
    path = Path(folder) / TREE_FILE
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        return _parse(content)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no {TREE_FILE}: give the output folder of a finished run of hf-plr 0.2 or later that "
            "labels samples"
        ) from None
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} cannot be read as a tree of clusters: {reason}") from error


def write_tree(folder: str | os.PathLike[str], tree: ClusterTree) -> None:
    """Write the tree into a run's output folder; the file is complete or as it was before.

    Its fields are "format"; "clusters", the most senior first (see `ClusterTree`), each with "label" and "size"; and
    "merges", the lowest first, each with its two "nodes", its "height" (from 0), and its "size" (samples). Nodes are
    numbered from 0: first the clusters as they are listed, then the merges.

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
    lists = (f'"{name}": {_list(rows)}' for name, rows in (("clusters", clusters), ("merges", merges)))
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


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a {name} is not a whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a height is not a number")
    return float(value)
