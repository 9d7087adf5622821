"""Metrics of a stage: of its labels, and of their changes since the stage before."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator

from hf_plr.evaluation.label_free import size_entropy
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.holding import AllLabels, add_tables
from hf_plr.refinement import NOISE, ClusterEvents, CooccurrenceTable, adjusted_rand, cooccurrence


def compute_stage_metrics(
    before: PseudoLabels | None,
    after: PseudoLabels,
    part: slice,
    accelerator: Accelerator,
    holder: AllLabels | None = None,
) -> dict[str, float]:
    """Compute metrics of new labels, for the log; called on every process.

    Args:
        before: labels of the epoch before; None at the first.
        after: labels of the stage, with at least one cluster.
        part: positions of this process's samples.
        accelerator: connects the processes, each of which counts its own pairs of labels.
        holder: knows whose labels each process holds; None for those of all samples.

    Returns:
        "clusters" and "clusters_raw" after and before refinement; "noise_share" and "left_out_share", fractions of the
        samples without a cluster and without a target; "changed_share", fraction whose cluster refinement changed;
        "mean_confidence"; "size_entropy" and "largest_share" of the clusters; with soft targets "soft_share", the
        fraction of the targets on other clusters; and against the labels before, "agreement_ari", "churn" and the
        number of clusters by event.
    """
    holder = AllLabels(accelerator) if holder is None else holder
    n_samples = after.n_samples
    counts = holder.add(np.bincount(after.targets.astype(np.int64) + 1, minlength=after.n_clusters + 1))
    left_out, sizes = counts[0], counts[1:]
    metrics = {
        "clusters": float(after.n_clusters),
        "noise_share": after.noise_share,
        "left_out_share": float(left_out / n_samples),
        "size_entropy": size_entropy(sizes),
        "largest_share": float(sizes.max() / sizes.sum()),
    }
    metrics |= {name: value for name, value in after.refinement.items() if name not in ClusterEvents.KINDS}
    if before is not None:
        pairs = count_pairs(before.labels, after.labels, holder.own(part), accelerator)
        metrics["agreement_ari"] = adjusted_rand(pairs.previous, pairs.current, pairs.counts)
        label_before, label_after = (
            np.append(ids, NOISE)[codes]
            for ids, codes in ((pairs.previous_ids, pairs.previous), (pairs.current_ids, pairs.current))
        )
        metrics["churn"] = float(pairs.counts[label_before != label_after].sum() / n_samples)
        metrics |= {kind: after.refinement[kind] for kind in ClusterEvents.KINDS}
    return metrics


def compare_labelings(
    labelings: list[PseudoLabels], part: slice, accelerator: Accelerator, holder: AllLabels
) -> dict[str, float]:
    """Compare labelings: mean adjusted Rand index of the first with the others, as "labelings_ari"."""
    first, *others = labelings
    tables = [count_pairs(first.labels, other.labels, holder.own(part), accelerator) for other in others]
    agreements = [adjusted_rand(table.previous, table.current, table.counts) for table in tables]
    return {"labelings_ari": float(np.mean(agreements))} if agreements else {}


def count_pairs(one: np.ndarray, other: np.ndarray, part: slice, accelerator: Accelerator) -> CooccurrenceTable:
    """Count the co-occurrences of two labelings on every process; each counts its own part of those that it holds."""
    return add_tables(accelerator, cooccurrence(one[part], other[part]))
