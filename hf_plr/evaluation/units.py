"""Scores of frame units against frame labels, such as phones."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.cooccurrence import CooccurrenceTable, cooccurrence

UNIT_SCORES = {
    "pnmi": "Phone-normalised mutual information",
    "cluster_purity": "Cluster purity",
    "class_purity": "Class purity",
}


def score_units(units: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score the information of units about labels (Hsu et al., HuBERT, 2021, on clustering quality).

    * "pnmi": mutual information of class and unit over the entropy of the classes; 1 if there is one class only.
    * "class_purity" (their phone purity): accuracy of predicting each unit's most frequent class.
    * "cluster_purity": accuracy of predicting each class's most frequent unit.

    Many units raise the class purity and lower the cluster purity. Frames are counted in chunks: memory maps are never
    read as a whole.

    Args:
        units: integers of shape (N,), -1 = none.
        labels: integers of shape (N,), -1 = unknown; frames with -1 in either are left out.

    Returns:
        The scores by the names in `UNIT_SCORES`, each in [0, 1].

    Raises:
        TypeError: if units or labels are not integers.
        ValueError: if they differ in length, or no frame has both.
    """
    return score_unit_table(cooccurrence(labels, units))


def score_unit_table(counted: CooccurrenceTable) -> dict[str, float]:
    """Score as `score_units` does, from the table of (labels, units); tables of parts of the frames add up.

    Raises:
        ValueError: if no frame has both a unit and a label.
    """
    table = counted.matrix()
    n_frames = int(table.sum())
    if n_frames == 0:
        raise ValueError(f"none of {counted.counts.sum()} frames has both a unit and a label")
    joint = table.tocoo()
    p_joint = joint.data / n_frames
    p_label, p_unit = (np.asarray(table.sum(axis=axis)).ravel() / n_frames for axis in (1, 0))
    entropy = -np.sum(p_label * np.log(p_label, where=p_label > 0, out=np.zeros_like(p_label)))
    independent = p_label[joint.row] * p_unit[joint.col]
    information = np.sum(p_joint * np.log(p_joint / independent))
    return {
        "pnmi": float(np.clip(information / entropy, 0.0, 1.0)) if np.count_nonzero(p_label) > 1 else 1.0,
        "cluster_purity": float(table.max(axis=1).sum() / n_frames),
        "class_purity": float(table.max(axis=0).sum() / n_frames),
    }
