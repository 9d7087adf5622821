"""Clusterers, refiners and labelings that the training arguments name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hf_plr.clustering import Clusterer, as_clusterer, can_be_finer, make_clusterers, make_ensemble
from hf_plr.clustering.protocol import describe_clusterer, unwrap
from hf_plr.clustering.reciprocal import share_neighborhoods
from hf_plr.pseudo_labels.given_stage import GivenStage
from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.pseudo_labels.nested import LevelStage
from hf_plr.pseudo_labels.stage import RefinementStage, default_num_clusters
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.training_args import (
    AUTO,
    AUTO_FOR_DBSCAN,
    AUTO_LABELINGS,
    AUTO_PRESET,
    CONSENSUS,
    FINER_PRESET,
    NESTED,
    BaseTrainingArguments,
    PLRTrainingArguments,
)
from hf_plr.training_args.ignored import BESIDE_OWN_REFINER, beside_clusterer, refuse_ignored
from hf_plr.utils.argument_checks import check_levels
from hf_plr.utils.parameters import default_parameters
from hf_plr.utils.words import count_noun


def resolve_preset(args: BaseTrainingArguments, auto: str | None = None) -> str:
    """Resolve the preset that the arguments name.

    Args:
        args: the arguments.
        auto: the meaning of "auto"; None for what suits the clusterer: with dbscan, a third of whose samples may be
            noise, soft targets by projection take that back in, which no consensus of its labels does.
    """
    if args.refinement != AUTO:
        return args.refinement
    if auto is not None:
        return auto
    return AUTO_FOR_DBSCAN if getattr(args, "clusterer", None) == "dbscan" else AUTO_PRESET


def make_refiner(args: BaseTrainingArguments, auto: str | None = None, **overrides: Any) -> PseudoLabelRefiner:
    """Make the refiner that the arguments name, with other settings; `auto` as for `resolve_preset`."""
    if args.refinement_weight is not None:
        overrides["weight"] = args.refinement_weight
    return PseudoLabelRefiner.from_preset(resolve_preset(args, auto), **overrides)


def _make_further_refiner(args: PLRTrainingArguments, number: int) -> PseudoLabelRefiner:
    """Make the refiner of a labeling by its number; beside a consensus, finer labelings are taken as they are."""
    if number > 0 and resolve_preset(args) == CONSENSUS:
        return PseudoLabelRefiner.from_preset(FINER_PRESET)
    return make_refiner(args)


def count_sought(labelings: Sequence[Labeling], n_samples: int) -> int:
    """The number of clusters that the first labeling seeks among N samples; by default where its clusterer has none."""
    return labelings[0].stage.n_sought or default_num_clusters(n_samples)


def select_clusterers(
    args: PLRTrainingArguments, n_samples: int, clusterer: Any = None, refiner: PseudoLabelRefiner | None = None
) -> list[Clusterer]:
    """Select one clusterer per labeling.

    Args:
        args: arguments with the clusterer, its settings, and the number of labelings.
        n_samples: number of training samples N.
        clusterer: the user's own, which replaces the named one; gives a single labeling.
        refiner: the user's own, which replaces the named preset; "auto" then gives a single labeling.

    Returns:
        The clusterers; none where the labels are given. Where the labelings are levels of one hierarchy, the last one
        clusters.

    Raises:
        ValueError: if there are fewer samples than clusters, the clusterer cannot be made finer, or arguments have no
            effect on the user's own.
        TypeError: if the user's own has no `fit_predict`.
    """
    if args.labels is not None:
        if clusterer is not None or refiner is not None:
            raise ValueError(f"labels={args.labels!r} are neither clustered nor refined: pass no clusterer or refiner")
        return []
    if refiner is not None:
        refuse_ignored(args, BESIDE_OWN_REFINER)
    is_nested = args.refinement == NESTED and refiner is None
    if is_nested and (clusterer is not None or args.clusterer != "kmeans"):
        chosen = args.clusterer if clusterer is None else "one of your own"
        raise ValueError(f"refinement={NESTED!r} needs clusterer='kmeans', which can be made finer, not {chosen}")
    if clusterer is not None:
        own = as_clusterer(clusterer)
        refuse_ignored(args, beside_clusterer(own.get_params().get("n_clusters")))
        return [own]
    num_clusters = args.num_clusters or default_num_clusters(n_samples)
    if num_clusters > n_samples > 0:
        raise ValueError(f"num_clusters={num_clusters} but the data set has {n_samples} samples")

    def make(n: int) -> list[Any]:
        return make_clusterers(
            n,
            args.clusterer,
            num_clusters,
            args.clusterer_kwargs,  # type: ignore[arg-type]  # read as JSON by now
            n_samples=n_samples,
            seed=args.seed,
            verbose=not args.disable_tqdm and args.process_index == 0,
        )

    n_levels = 1 if refiner is None else refiner.n_levels
    if n_levels > 1 and args.num_labelings not in (None, n_levels):
        raise ValueError(f"num_labelings={args.num_labelings}, but the refiner has n_levels={n_levels}: leave it out")
    clusterers = make(args.num_labelings or (AUTO_LABELINGS if is_nested else n_levels))
    is_auto = args.num_labelings is None and args.refinement == AUTO and refiner is None
    if is_auto and can_be_finer(clusterers[0]):
        clusterers = make(AUTO_LABELINGS)
    return [as_clusterer(each) for each in clusterers]


def make_labelings(
    args: PLRTrainingArguments,
    clusterers: Sequence[Clusterer],
    refiner: PseudoLabelRefiner | None,
    n_samples: int,
    holder: AllLabels,
    given: GivenStage | None = None,
) -> list[Labeling]:
    """Make one labeling per clusterer, each with a refiner of its own; or one of given labels.

    Args:
        args: settings of refinement and objective.
        clusterers: output of `select_clusterers`.
        refiner: the user's own, which replaces the named preset; copies of it refine further labelings.
        n_samples: number of training samples N.
        holder: knows whose labels each process holds, and connects the processes.
        given: stage of given labels; None where clusterers make them.

    Raises:
        ValueError: if there are fewer samples than clusters, or than two, fewer clusters than a level is to have, or
            the refiner's soft labels are no targets.
    """
    if n_samples < 2:
        raise ValueError(f"{n_samples} sample cannot be clustered: give two or more, better hundreds")
    if given is not None:
        check_levels(args.levels, given.n_clusters)
        return [Labeling(given, args.confidence_power)]
    n_clusters = clusterers[0].get_params().get("n_clusters")
    if isinstance(n_clusters, int) and n_clusters > n_samples:
        raise ValueError(f"num_clusters={n_clusters} but only {n_samples} samples can be read")
    if isinstance(n_clusters, int) and refiner is None:
        check_levels(args.levels, n_clusters)
    nested = _make_levels(args, clusterers, refiner, n_samples, holder)
    if nested is not None:
        return nested
    labelings = []
    # The last labels of a run before are those of an epoch before the first. Only the first labeling has them, but
    # where it has soft targets, all have.
    continues = args.continue_from is not None
    for i, clusterer in enumerate(clusterers):
        further = _make_further_refiner(args, i) if refiner is None else copy.deepcopy(refiner)
        stage = RefinementStage(
            clusterer,
            refiner if refiner is not None and i == 0 else further,
            refine_start_epoch=args.refine_start_epoch - int(continues),
            accelerator=holder.accelerator,
            min_confidence=args.min_confidence,
            may_be_empty=i > 0,
            ensemble=make_ensemble(clusterer, n_samples, args.seed + i) if further.takes_members else None,
            holder=holder,
        )
        labelings.append(Labeling(stage, args.confidence_power))
    share_neighborhoods([each for labeling in labelings for each in labeling.stage.clusterers])
    return labelings


def _make_levels(
    args: PLRTrainingArguments,
    clusterers: Sequence[Clusterer],
    refiner: PseudoLabelRefiner | None,
    n_samples: int,
    holder: AllLabels,
) -> list[Labeling] | None:
    """Make a labeling per level of one refinement, as `make_labelings`; None where it has one level.

    The finest clustering is the current one of the refinement. Its ensemble is that of the coarsest.
    """
    coarsest, finest = clusterers[0], clusterers[-1]
    if refiner is None and args.refinement == NESTED:
        n_clusters = coarsest.get_params()["n_clusters"]
        refiner = make_refiner(args, n_clusters=n_clusters, n_levels=len(clusterers))
    elif refiner is None or refiner.n_levels == 1:
        return None
    stage = RefinementStage(
        finest,
        refiner,
        refine_start_epoch=args.refine_start_epoch - int(args.continue_from is not None),
        accelerator=holder.accelerator,
        min_confidence=args.min_confidence,
        ensemble=make_ensemble(coarsest, n_samples, args.seed) if refiner.takes_members else None,
        holder=holder,
    )
    stages = [stage, *(LevelStage(stage, level) for level in range(1, refiner.n_levels))]
    return [Labeling(each, args.confidence_power) for each in stages]


def describe_settings(labelings: Sequence[Labeling], args: PLRTrainingArguments) -> dict[str, Any]:
    """Describe clusterers and refiner, for the settings that a resumed run must share."""
    clusterers = [describe_clusterer(each) for labeling in labelings for each in labeling.stage.clusterers[:1]]
    return {
        "clusterer's parameters": clusterers[0] if len(clusterers) == 1 else clusterers,
        "refiner": labelings[0].stage.refiner.settings(),
        "refinement": resolve_preset(args),
        "num_labelings": len(labelings),
    }


def describe_default_settings(labelings: Sequence[Labeling]) -> dict[str, Any]:
    """Describe clusterers and refiner as `describe_settings` does, as they are where nothing is given."""
    found = [each for labeling in labelings for each in labeling.stage.clusterers[:1]]
    parameters = [default_parameters(unwrap(each)) for each in found]
    return {
        "clusterer's parameters": parameters[0] if len(parameters) == 1 else parameters,
        "refiner": default_parameters(labelings[0].stage.refiner),
    }


def describe_labelings(
    labelings: Sequence[Labeling], space: str, args: PLRTrainingArguments, has_own_refiner: bool = False
) -> str:
    """Describe what is clustered into what, and how it is refined, in a line.

    Args:
        labelings: the labelings.
        space: the space in which clusters are sought, in words.
        args: the arguments, with the refinement.
        has_own_refiner: True if a refiner was passed in, and not made by the arguments.
    """
    stage = labelings[0].stage
    if isinstance(stage, GivenStage):
        return stage.describe()
    numbers = [labeling.stage.n_sought for labeling in labelings]
    sizes = [f"{number:,}" for number in numbers if number is not None]
    words = " and ".join(", ".join(sizes).rsplit(", ", 1)) if sizes else count_noun(len(labelings), "labeling")
    kind = describe_clusterer(stage.clusterer)["class"]
    refinement = "by a refiner of your own" if has_own_refiner else resolve_preset(args)
    return f"{words} by {kind} in {space}, refinement {refinement}"
