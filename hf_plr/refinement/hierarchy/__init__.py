"""The tree of clusters, and cuts through it."""

from hf_plr.refinement.hierarchy.level import Level
from hf_plr.refinement.hierarchy.tree import ClusterTree, TreeError, order_by_seniority

__all__ = ["ClusterTree", "Level", "TreeError", "order_by_seniority"]
