"""Pseudo-label refinement as arithmetic on label vectors: numpy and scipy only."""

from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, cooccurrence
from hf_plr.refinement.linkage import weighted_linkage
from hf_plr.refinement.projection import project
from hf_plr.refinement.refiner import PRESETS, PseudoLabelRefiner, RefinementResult

__all__ = [
    "NOISE",
    "PRESETS",
    "CooccurrenceTable",
    "PseudoLabelRefiner",
    "RefinementResult",
    "cooccurrence",
    "project",
    "weighted_linkage",
]
