"""The stage of a run that trains on given labels."""

from __future__ import annotations

import dataclasses
import functools
import logging

import numpy as np

from hf_plr.data.content_digest import digest_samples
from hf_plr.data.sample_store import SampleStore
from hf_plr.pseudo_labels.data_digest import record_data
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.given_labels import GivenLabels
from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.pseudo_labels.soft_targets import SoftTargets
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.training_args import PLRTrainingArguments

logger = logging.getLogger(__name__)


class GivenStage(RefinementStage):
    """Stage that hands out given labels as they are.

    Args:
        given: the labels.
        holder: knows whose labels each process holds, and connects the processes.
        min_confidence: samples of less confident labels keep these, but have no loss.
    """

    def __init__(self, given: GivenLabels, holder: AllLabels, min_confidence: float = 0.0):
        super().__init__(given, PseudoLabelRefiner.from_preset("none"), 1, holder.accelerator, holder=holder)
        self.given = given
        self.targets, self.n_clusters, self.soft_targets = given.make_targets(min_confidence)
        if self.n_clusters == 0:
            raise ValueError(f"{given.source}: no sample has a label (min_confidence={min_confidence:g})")

    def refine(self, clusters: np.ndarray, epoch: int, part: slice, previous: PseudoLabels | None) -> PseudoLabels:
        """Make targets of the labels, which keep their numbers."""
        self.refiner.load_state_dict(self.refiner.state_dict() | {"refined": clusters})  # whose numbers are continued
        labels = super().refine(clusters, epoch, part, previous)
        soft = self.soft_targets
        return dataclasses.replace(
            labels,
            confidence=self.holder.hold(self.given.confidence[part]),
            targets=self.holder.hold(self.targets[part]),
            n_clusters=self.n_clusters,
            soft_targets=None if soft is None else SoftTargets(soft.cells, self.holder.hold(soft.cell[part])),
        )

    @property
    def source(self) -> str:
        """File or folder of the labels."""
        return self.given.source

    def describe(self) -> str:
        """Describe the labels in a line."""
        return f"{self.n_clusters:,} as given by {self.source}"


def open_given_stage(
    args: PLRTrainingArguments, store: SampleStore, column: str, holder: AllLabels
) -> GivenStage | None:
    """Open the labels that the arguments name.

    Args:
        args: arguments with `labels` and `min_confidence`.
        store: the samples to train on.
        column: their column in the data set.
        holder: knows whose labels each process holds, and connects the processes.

    Returns:
        None where the arguments name none.

    Raises:
        FileNotFoundError, ValueError, TypeError: if the labels do not fit, naming their files.
    """
    if args.labels is None:
        return None
    data = store.undecoded_column
    record, digest = record_data(data, column), functools.partial(digest_samples, store)
    given = GivenLabels.read(args.labels, store.rows, store.segments, len(data), record, digest, store.files)
    if given.n_missing and args.process_index == 0:
        counts = f"{given.n_missing:,} of the {len(store):,}"
        logger.warning("%s has no label of %s samples, which have no loss.", args.labels, counts)
    return GivenStage(given, holder, args.min_confidence)
