"""Metrics of a stage: of its labels, and of their changes since the stage before."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator

from hf_plr.evaluation.label_free import size_entropy
from hf_plr.pseudo_labels.stage import PseudoLabels
from hf_plr.refinement import NOISE, ClusterEvents, CooccurrenceTable, adjusted_rand, cooccurrence
from hf_plr.utils.distributed import gather_objects


def compute_stage_metrics(
    before: PseudoLabels | None, after: PseudoLabels, part: slice, accelerator: Accelerator
) -> dict[str, float]:
    """Compute metrics of new labels, for the log; called on every process.

    Args:
        before: labels of the epoch before; None at the first.
        after: labels of the stage, with at least one cluster.
        part: positions of this process's samples.
        accelerator: connects the processes, each of which counts its own pairs of labels.

    Returns:
        "clusters" and "clusters_raw" after and before refinement; "noise_share" and "left_out_share", fractions of the
        samples without a cluster and without a target; "changed_share", fraction whose cluster refinement changed;
        "mean_confidence"; "size_entropy" and "largest_share" of the clusters; with soft targets "soft_share", the
        fraction of the targets on other clusters; and against the labels before, "agreement_ari", "churn" and the
        number of clusters by event.
    """
    n_samples = len(after.labels)
    sizes = np.bincount(after.targets[after.targets != NOISE], minlength=after.n_clusters)
    metrics = {
        "clusters": float(after.n_clusters),
        "noise_share": float(np.count_nonzero(after.labels == NOISE) / n_samples),
        "left_out_share": float(np.count_nonzero(after.targets == NOISE) / n_samples),
        "size_entropy": size_entropy(sizes),
        "largest_share": float(sizes.max() / sizes.sum()),
    }
    metrics |= {name: value for name, value in after.refinement.items() if name not in ClusterEvents.KINDS}
    if before is not None:
        pairs = count_pairs(before.labels, after.labels, part, accelerator)
        metrics["agreement_ari"] = adjusted_rand(pairs.previous, pairs.current, pairs.counts)
        label_before, label_after = (
            np.append(ids, NOISE)[codes]
            for ids, codes in ((pairs.previous_ids, pairs.previous), (pairs.current_ids, pairs.current))
        )
        metrics["churn"] = float(pairs.counts[label_before != label_after].sum() / n_samples)
        metrics |= {kind: after.refinement[kind] for kind in ClusterEvents.KINDS}
    return metrics


def compare_labelings(labelings: list[PseudoLabels], part: slice, accelerator: Accelerator) -> dict[str, float]:
    """Compare labelings: mean adjusted Rand index of the first with the others, as "labelings_ari"."""
    first, *others = labelings
    tables = [count_pairs(first.labels, other.labels, part, accelerator) for other in others]
    agreements = [adjusted_rand(table.previous, table.current, table.counts) for table in tables]
    return {"labelings_ari": float(np.mean(agreements))} if agreements else {}


def count_pairs(one: np.ndarray, other: np.ndarray, part: slice, accelerator: Accelerator) -> CooccurrenceTable:
    """Count the co-occurrences of two labelings (N,), on every process; each counts its own part."""
    table: CooccurrenceTable = sum(gather_objects(accelerator, cooccurrence(one[part], other[part])))
    return table


def describe_labels(labels: PseudoLabels, samples: str, agreement: float | None, further: list[int]) -> str:
    """Describe the labels of a stage in words.

    Args:
        labels: the labels.
        samples: what samples are called, in the plural.
        agreement: adjusted Rand index with the epoch before; None in the first.
        further: numbers of clusters of the other labelings.
    """
    words = f"{labels.n_clusters} clusters, {(labels.labels == NOISE).mean():.1%} of the {samples} in none"
    if agreement is not None:
        words += f", adjusted Rand index {agreement:.2f} with the epoch before"
    return (
        f"{words}; trained together with labelings of {' and '.join(map(str, further))} clusters" if further else words
    )
