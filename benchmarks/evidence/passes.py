"""Image passes, the price of training: a forward and backward pass of one image is 1, a forward alone a third."""

from __future__ import annotations

from typing import Any

import torch

from hf_plr import PLRTrainingArguments
from hf_plr.features.cluster_space import TRIAL_SAMPLES
from hf_plr.modality import Modality
from hf_plr.pseudo_labels.sampler import count_samples_per_epoch, count_samples_per_step


class PassCounter:
    """Counter of the image passes of a trainer's features, in thirds, so that the sum is exact.

    Args:
        modality: the trainer's; from now on its features are counted.
    """

    def __init__(self, modality: Modality):
        self._features = modality.features
        self._thirds = 0
        modality.features = self._count  # type: ignore[assignment, method-assign]

    @property
    def passes(self) -> float:
        """Image passes so far."""
        return self._thirds / 3

    def _count(self, *args: Any) -> torch.Tensor:
        features = self._features(*args)
        self._thirds += len(features) * (3 if features.requires_grad else 1)
        return features


def count_plr_passes(args: PLRTrainingArguments, n_samples: int) -> float:
    """Image passes of a `PLRTrainer`.

    The rows of its batches, a third of N for each stage's extraction, and a third of the samples of the first stage's
    trial, where the space of the clusters is open.
    """
    has_trial = args.cluster_space != "centered" and args.whitening_shrinkage is None
    trial = min(n_samples, TRIAL_SAMPLES) / 3 if has_trial else 0.0
    return args.num_train_epochs * (count_samples_per_epoch(args, n_samples) + n_samples / 3) + trial


def count_peer_steps(args: PLRTrainingArguments, n_samples: int, extra_passes: float) -> int:
    """Optimizer steps of a peer that spend as many image passes as a `PLRTrainer` with these arguments.

    Args:
        args: arguments of both, whose batches have equally many rows.
        n_samples: training samples N.
        extra_passes: passes of each row beside the one that trains it.
    """
    a_step = count_samples_per_step(args) * (1.0 + extra_passes)
    return max(1, round(count_plr_passes(args, n_samples) / a_step))
