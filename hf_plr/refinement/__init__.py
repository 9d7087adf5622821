"""Pseudo-label refinement as arithmetic on label vectors: numpy and scipy only."""

from hf_plr.refinement.agglomeration import weighted_linkage
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, cooccurrence
from hf_plr.refinement.correspondence import ClusterEvent, ClusterEvents, adjusted_rand
from hf_plr.refinement.projection import project
from hf_plr.refinement.refiner import PRESETS, PseudoLabelRefiner
from hf_plr.refinement.result import CellRefinement, RefinementResult

__all__ = [
    "NOISE",
    "PRESETS",
    "CellRefinement",
    "ClusterEvent",
    "ClusterEvents",
    "CooccurrenceTable",
    "PseudoLabelRefiner",
    "RefinementResult",
    "adjusted_rand",
    "cooccurrence",
    "project",
    "weighted_linkage",
]
