"""Re-identification: a trainer that scores retrieval, and identities that are known in place of clusters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from hf_plr.data.sample_store import SampleStore
from hf_plr.evaluation.intervals import Scored
from hf_plr.evaluation.retrieval import assess_retrieval
from hf_plr.reid.reid_data import ReidData, ReidSplit
from hf_plr.report.summary import RunSummary
from hf_plr.trainer.plr_trainer import PLRTrainer
from hf_plr.utils.distributed import on_main


class KnownLabels:
    """A clusterer that gives labels which are known: supervised training by the same trainer.

    Args:
        labels: integers of shape (N,), -1 = none.
    """

    def __init__(self, labels: np.ndarray):
        self.labels = labels

    def fit_predict(self, features: Any) -> np.ndarray:
        """The labels, for features of shape (N, D)."""
        return self.labels


class ReidTrainer(PLRTrainer):
    """`PLRTrainer` on a re-identification data set: trained on its images alone, scored by retrieval.

    Args:
        model: see `PLRTrainer`.
        args: the arguments; columns are not theirs to name, the data have them.
        target: the data set that is scored, and whose training images are trained on unless there is a source.
        source: images to train on with their identities, in place of the target's.
        source_name: what `source` is called, or what the model was trained on before; for reports.
        **kwargs: further arguments of `PLRTrainer`.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        target: ReidData,
        source: ReidSplit | None = None,
        source_name: str = "",
        **kwargs: Any,
    ):
        self.target = target
        self.source_name = source_name
        self.on_target = source is None
        if source is None:
            # A ReidSplit keeps identities apart from images: nothing of a target's identities gets into the trainer.
            super().__init__(model, args, target.train.images, **kwargs)
        else:
            known = KnownLabels(source.identities)
            super().__init__(model, args, source.images, clusterer=known, **kwargs)
            known.labels = source.identities[self.train_dataset.rows]
        self._scored: list[tuple[SampleStore, ReidSplit]] = []

    @property
    def can_score(self) -> bool:
        return True

    def assess(self) -> Scored:
        """Score the features as they are now on the target; every process must call it.

        Features are compared by cosine, relative to the mean feature of the gallery (on Omniglot, after a source, mAP
        0.370 against 0.347 without; the mean of the last stage gives the same). Identities and cameras are used for
        nothing else.

        Returns:
            What `assess_retrieval` returns, and after adaptation "cluster_ari" and "cluster_nmi": agreement of the last
            pseudo-labels with the identities of the training images, without noise and junk.

        Raises:
            ValueError: if no query has a match.
        """
        return super().assess()

    def true_labels(self) -> np.ndarray | None:
        return self.target.train.identities[self.train_dataset.rows] if self.on_target else None

    def _assess(self) -> Scored:
        if not self._scored:
            self._scored = self._open_scored()
        features = [self.extract_features(store) for store, _ in self._scored]
        splits = [split for _, split in self._scored]

        def retrieval() -> Scored:
            center = features[-1].mean(dim=0)
            embedded = [torch.nn.functional.normalize(each - center, dim=1) for each in features]
            return assess_retrieval(
                embedded[0],
                embedded[-1],
                splits[0].identities,
                splits[-1].identities,
                splits[0].cameras,
                splits[-1].cameras,
            )

        found: Scored = on_main(self.accelerator, retrieval)
        clusters = {} if self.pseudo_labels is None else self.score_labels()
        agreement = {f"cluster_{name}": clusters[name] for name in ("ari", "nmi") if name in clusters}
        return Scored(found.values | agreement, found.intervals)

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        queries = self.target.query is not None
        return dataclasses.replace(super().summary(), scored_on_test=queries, source=self.source_name)

    def _open_scored(self) -> list[tuple[SampleStore, ReidSplit]]:
        """Query and gallery, or the training images for both, with what is known of the images that can be read."""
        if self.target.query is not None and self.target.gallery is not None:
            pairs = [(self._open(split), split) for split in (self.target.query, self.target.gallery)]
        else:
            store = self.train_dataset if self.on_target else self._open(self.target.train)
            pairs = [(store, self.target.train)]
        return [(store, split.select(store.rows)) for store, split in pairs]

    def _open(self, split: ReidSplit) -> SampleStore:
        return self._store(split.images, label_column=None)
