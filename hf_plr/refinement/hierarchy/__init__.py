"""The tree of clusters, and cuts through it."""

from hf_plr.refinement.hierarchy.level import Level
from hf_plr.refinement.hierarchy.likeness import compare_clusters
from hf_plr.refinement.hierarchy.tree import ClusterTree, TreeError, make_tree

__all__ = ["ClusterTree", "Level", "TreeError", "compare_clusters", "make_tree"]
