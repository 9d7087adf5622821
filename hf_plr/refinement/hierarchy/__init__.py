"""The tree of clusters, cuts through it, and the levels of a run."""

from hf_plr.refinement.hierarchy.level import Level
from hf_plr.refinement.hierarchy.levels import KnownLevels, make_levels
from hf_plr.refinement.hierarchy.likeness import compare_clusters
from hf_plr.refinement.hierarchy.tree import ClusterTree, TreeError, make_tree

__all__ = ["ClusterTree", "KnownLevels", "Level", "TreeError", "compare_clusters", "make_levels", "make_tree"]
