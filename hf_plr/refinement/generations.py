"""How much each epoch counts where the labelings of several are side by side."""

from __future__ import annotations

import itertools

import numpy as np

from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, sum_entries
from hf_plr.refinement.correspondence import adjusted_rand_of_table

AGREEMENT = "agreement"  # weight of the epochs by how much they agree with the current one
POWER = 4  # an epoch that agrees by 0.84 counts half


def share_among_parts(table: CooccurrenceTable, weight: float | str | None, generations: int) -> np.ndarray:
    """Share of each part of the joint space, shape (parts,), adding up to one; the labelings of an epoch share alike.

    Args:
        table: the cells. With M labelings an epoch the M - 1 further ones come first, those of the oldest epoch before
            those of the next, and the current clusterings of all epochs last.
        weight: fraction of the current epoch, in [0, 1]; the others have equal parts of the rest. None for an equal
            part of every epoch; "agreement" for parts in proportion to `agree_with_current` to the power of four.
        generations: number of epochs.

    Returns:
        The shares of the current clusterings, the latest epoch first, then those of the further labelings.
    """
    n_members = table.codes.shape[1] // generations
    if weight == AGREEMENT:
        agreement = agree_with_current(table, generations) ** POWER
        of_epoch = agreement / agreement.sum()
    else:
        own = 1.0 / generations if weight is None else float(weight)
        of_epoch = np.array([own] + [(1.0 - own) / (generations - 1)] * (generations - 1))
    of_labeling = of_epoch / n_members
    return np.concatenate([of_labeling, np.repeat(of_labeling, n_members - 1)])


def agree_with_current(table: CooccurrenceTable, generations: int) -> np.ndarray:
    """Agreement of each epoch with the current one, in [0, 1], the latest first, shape (generations,).

    It is the mean adjusted Rand index of the further labelings with their counterparts in the current epoch, over the
    mean of the current epoch's further labelings among each other, since these differ even where nothing has changed.
    With fewer than two of them nothing tells how much, and the index is taken as it is; where there are none it is that
    of the current clusterings. Samples that are noise in either labeling are left out. The current epoch has 1.
    """
    codes = table.codes[:, ::-1]  # current clusterings, latest first, then the further ones of each epoch
    n_clusters = [len(ids) for ids in table.ids[::-1]]
    n_further = codes.shape[1] // generations - 1
    own = [
        range(generations + epoch * n_further, generations + (epoch + 1) * n_further) if n_further else [epoch]
        for epoch in range(generations)
    ]

    def agree(first: int, second: int) -> float:
        is_in_both = (codes[:, first] != NOISE) & (codes[:, second] != NOISE)
        if not is_in_both.any():
            return 0.0
        shape = (n_clusters[first], n_clusters[second])
        shared = sum_entries(table.counts, codes[:, first], codes[:, second], shape, is_in_both)
        return adjusted_rand_of_table(shared)

    among_each_other = [agree(*pair) for pair in itertools.combinations(own[0], 2)]
    highest = float(np.mean(among_each_other)) if among_each_other else 1.0
    means = [float(np.mean([agree(*pair) for pair in zip(own[0], each, strict=True)])) for each in own[1:]]
    return np.array([1.0, *(min(max(mean, 0.0) / highest, 1.0) if highest > 0 else 0.0 for mean in means)])
