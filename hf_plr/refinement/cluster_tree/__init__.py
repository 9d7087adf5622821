"""The tree of the clusters that a run ends with, cuts through it, and their levels; it refines nothing."""

from hf_plr.refinement.cluster_tree.level import Level
from hf_plr.refinement.cluster_tree.levels import KnownLevels, make_levels
from hf_plr.refinement.cluster_tree.likeness import compare_clusters
from hf_plr.refinement.cluster_tree.tree import ClusterTree, TreeError, make_tree

__all__ = ["ClusterTree", "KnownLevels", "Level", "TreeError", "compare_clusters", "make_levels", "make_tree"]
