"""Features relative to their mean, with unit length, for clustering and for the loss.

The features of a transformer share a large common part, most of all before training. Without it their directions
distinguish samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.checks import NotFiniteError, find_nonfinite_rows
from hf_plr.clustering.exact_sums import average_rows
from hf_plr.utils.distributed import gather_objects, locate_rows
from hf_plr.utils.threads import share_blocks

BLOCK_ROWS = 1 << 14  # rows that are centered together


@dataclass(frozen=True)
class CenteredFeatures:
    """This process's part of the centered features of all N samples.

    Attributes:
        rows: unit length, float32 of shape (n, D).
        center: mean feature of all samples, shape (D,).
        part: positions of these rows among all samples.
    """

    rows: torch.Tensor
    center: torch.Tensor
    part: slice


def compute_directions(center: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Compute directions of features (B, D) from a center (D,): unit length, shape (B, D)."""
    return F.normalize(features - center.to(features), dim=1)


@torch.no_grad()
def center_features(
    features: torch.Tensor, accelerator: Accelerator | None = None, out: torch.Tensor | None = None
) -> CenteredFeatures:
    """Center features on the mean of all processes' rows.

    Args:
        features: float32, this process's rows, shape (n, D).
        accelerator: connects processes that hold further rows.
        out: tensor of the same shape for the result; may be `features` itself, which saves a copy.
    """
    start, _ = locate_rows(accelerator, len(features))
    center = average_rows(features, accelerator)
    rows = torch.empty_like(features) if out is None else out

    def compute(spans: Iterator[slice]) -> None:
        for span in spans:
            rows[span] = compute_directions(center, features[span])

    share_blocks(iterate_rows(len(features), BLOCK_ROWS), features.device, compute)
    return CenteredFeatures(rows, center, slice(start, start + len(features)))


def check_finite(features: torch.Tensor, epoch: int, rows: np.ndarray, accelerator: Accelerator) -> None:
    """Reject features that are not finite, on every process.

    Args:
        features: this process's rows, shape (n, D).
        epoch: the epoch, for the message.
        rows: rows of these samples in the data set, shape (n,).
        accelerator: connects the processes.

    Raises:
        NotFiniteError: naming the epoch and the rows.
    """
    parts = gather_objects(accelerator, (len(features), rows[find_nonfinite_rows(features).numpy()].tolist()))
    total, bad_rows = sum(n for n, _ in parts), [row for _, part in parts for row in part]
    if bad_rows:
        shown = ", ".join(map(str, bad_rows[:10])) + (", ..." if len(bad_rows) > 10 else "")
        raise NotFiniteError(
            f"epoch {epoch}: the features of {len(bad_rows)} of {total} samples are NaN or infinite "
            f"(samples {shown}). The weights have probably diverged: lower the learning rate."
        )
