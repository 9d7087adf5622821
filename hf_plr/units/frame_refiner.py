"""The refiner of units, whose result is one unit per frame."""

from __future__ import annotations

from hf_plr.pseudo_labels.assembly import make_refiner
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.training_args import NESTED, UnitTrainingArguments
from hf_plr.training_args.ignored import BESIDE_OWN_REFINER, refuse_ignored

AUTO_FOR_FRAMES = "slr"  # what refinement="auto" stands for; soft targets are not for units


def choose_frame_refiner(args: UnitTrainingArguments, refiner: PseudoLabelRefiner | None = None) -> PseudoLabelRefiner:
    """Choose the refiner: the one that is passed in, or the preset, cut at the number of units where it clusters anew.

    Raises:
        ValueError: if its result is not one unit per frame, naming the argument or the setting.
    """
    if refiner is None and args.refinement == NESTED:
        raise ValueError(f"refinement={args.refinement!r} trains on several levels, frames on one: use consensus")
    if refiner is not None and refiner.n_levels > 1:
        raise ValueError(
            f"the refiner has n_levels={refiner.n_levels}, but frames are trained on one level: use n_levels=1"
        )
    chosen = make_refiner(args, auto=AUTO_FOR_FRAMES) if refiner is None else refiner
    if chosen.assignment == "soft":
        named = "the refiner" if refiner is not None else f"refinement={args.refinement!r}"
        instead = "another assignment than 'soft'" if refiner is not None else "slr or joint"
        raise ValueError(f"{named} gives soft targets, which frames do not take: use {instead}")
    if refiner is not None:
        refuse_ignored(args, BESIDE_OWN_REFINER)
        return refiner
    return PseudoLabelRefiner(**{**chosen.settings(), "n_clusters": "current", "distance_threshold": None})
