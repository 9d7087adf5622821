"""Objectives of peers: what is trained in place of pseudo-labels, written from the formulas of their papers.

Each takes the features of a batch, B rows, in which rows 2i and 2i + 1 are two augmented views of one sample (DIET: one
view of each). Heads and losses are in float32 and have nothing to do with the backbone's own arithmetic.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_plr.pseudo_labels.pair_term import nt_xent, vicreg_loss

HIDDEN, WIDTH = 512, 128  # of heads
TEMPERATURE = 0.1
FORWARD = 1 / 3  # image passes of a forward alone, where forward and backward are 1


@dataclass(frozen=True)
class Batch:
    """What an objective may know of a batch beside its features.

    Attributes:
        index: position of each row's sample in the training data, int64 of shape (B,).
        epoch: passes over the training data that have been completed.
        encode: computes the features (B, D) of the same views by another backbone, without gradients.
    """

    index: torch.Tensor
    epoch: int
    encode: Callable[[nn.Module], torch.Tensor]


class Objective(nn.Module, ABC):
    """A loss, and what is trained beside the backbone and thrown away at the end.

    Attributes:
        views: views of each sample in a batch.
        extra_passes: image passes of each row of a batch beside the one that trains it.
    """

    views = 2
    extra_passes = 0.0

    @abstractmethod
    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss of features (B, D), a mean over rows."""

    def follow(self, backbone: nn.Module, progress: float) -> None:
        """Follow an optimizer step, after which the fraction `progress` of all steps is done."""


def make_head(width: int) -> nn.Sequential:
    """Make a head: Linear - BN - ReLU - Linear, from `width` to 128 dimensions."""
    return nn.Sequential(
        nn.Linear(width, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, WIDTH)
    )


class SimCLR(Objective):
    """The same loss as the library's pair term for many small classes, alone and in a head of the size of peers'."""

    def __init__(self, width: int, temperature: float = TEMPERATURE):
        super().__init__()
        self.head = make_head(width)
        self.temperature = temperature

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        return nt_xent(self.head(features), self.temperature)


class VICReg(Objective):
    """The same loss as the library's pair term, alone and in a head of the size that peers have."""

    def __init__(self, width: int):
        super().__init__()
        self.head = make_head(width)

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        projections = self.head(features)
        return vicreg_loss(projections[0::2], projections[1::2])


class SwAV(Objective):
    """Prediction of one view's prototypes from the other, where a batch is spread evenly over all prototypes.

    Without crops of other sizes and without a queue. Prototypes stay as they are during the first epoch.

    Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020,
    arXiv:2006.09882, equations 2 to 5.
    """

    def __init__(self, width: int, n_prototypes: int, temperature: float = TEMPERATURE):
        super().__init__()
        self.head = make_head(width)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(n_prototypes, WIDTH), dim=1))
        self.temperature = temperature

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        prototypes = self.prototypes.detach() if batch.epoch == 0 else self.prototypes
        cosines = F.normalize(self.head(features), dim=1) @ F.normalize(prototypes, dim=1).T
        return swapped_prediction(cosines[0::2], cosines[1::2], self.temperature)


def swapped_prediction(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of each view's softmax against the other's codes; cosines with prototypes, each (B / 2, K)."""
    losses = [
        F.cross_entropy(predicting / temperature, sinkhorn(predicted.detach()))
        for predicting, predicted in ((first, second), (second, first))
    ]
    return (losses[0] + losses[1]) / 2.0


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, eps: float = 0.05, iterations: int = 3) -> torch.Tensor:
    """Spread samples over prototypes: from scores (n, K) to codes (n, K), whose rows sum to 1 and columns to n / K."""
    codes = torch.exp((scores - scores.max()) / eps)
    for _ in range(iterations):
        codes = codes / codes.sum(dim=0, keepdim=True).clamp(min=torch.finfo(codes.dtype).tiny)
        codes = codes / codes.sum(dim=1, keepdim=True)
    return codes


class BYOL(Objective):
    """Prediction of one view's projection by a slow copy of backbone and head from the other view.

    The copy keeps .99 of itself at first and all of it in the end, by a cosine.

    Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, arXiv:2006.07733, equations 1 and 2 and section 3.2.
    """

    extra_passes = FORWARD
    decay = 0.99

    def __init__(self, width: int, backbone: nn.Module):
        super().__init__()
        self.head = make_head(width)
        self.predictor = make_head(WIDTH)
        self.target_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.target_head = copy.deepcopy(self.head).requires_grad_(False)

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        predictions = self.predictor(self.head(features))
        with torch.no_grad():
            targets = self.target_head(batch.encode(self.target_backbone))
        return byol(predictions, targets)

    @torch.no_grad()
    def follow(self, backbone: nn.Module, progress: float) -> None:
        kept = 1.0 - (1.0 - self.decay) * (math.cos(math.pi * progress) + 1.0) / 2.0
        for target, online in ((self.target_backbone, backbone), (self.target_head, self.head)):
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - kept)


def byol(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Twice 1 - cosine of each row's prediction (B, d) to the target (B, d) of its other view."""
    other = targets.reshape(-1, 2, targets.shape[1]).flip(1).reshape(targets.shape)
    return 2.0 - 2.0 * F.cosine_similarity(predictions, other).mean()


class DIET(Objective):
    """Classification of every sample as a class of its own by a linear layer on the feature, with label smoothing .8.

    Source: Balestriero, Unsupervised Learning on a DIET: Datum IndEx as Target Free of Self-Supervision,
    Reconstruction, Projector Head, 2023, arXiv:2302.10260.
    """

    views = 1
    smoothing = 0.8

    def __init__(self, width: int, n_samples: int):
        super().__init__()
        self.head = nn.Linear(width, n_samples, bias=False)

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(self.head(features), batch.index, label_smoothing=self.smoothing)


PEERS = ("simclr", "vicreg", "swav", "byol", "diet")
WITH_TEMPERATURE = ("simclr", "swav")


def make_objective(
    name: str, backbone: Any, n_samples: int, n_clusters: int, temperature: float = TEMPERATURE
) -> Objective:
    """Make a peer's objective.

    Args:
        name: one of `PEERS`.
        backbone: what is trained; BYOL copies it.
        n_samples: training samples, DIET's classes.
        n_clusters: SwAV's prototypes.
        temperature: of SimCLR and SwAV.
    """
    width = int(backbone.config.hidden_size)
    makers: dict[str, Callable[[], Objective]] = {
        "simclr": lambda: SimCLR(width, temperature),
        "vicreg": lambda: VICReg(width),
        "swav": lambda: SwAV(width, n_clusters, temperature),
        "byol": lambda: BYOL(width, backbone),
        "diet": lambda: DIET(width, n_samples),
    }
    return makers[name]()
