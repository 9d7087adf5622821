"""Whitening of features, which lets directions of little variance count in distances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from hf_plr.clustering.blocks import iterate_rows, pad_rows
from hf_plr.utils.distributed import gather_rows, locate_rows, run_on_main
from hf_plr.utils.precision import exact_products

FIT_ROWS = 16_384  # rows that a covariance is estimated from, or 16 per dimension
FIT_ROWS_PER_DIMENSION = 16
GRID_BITS = 16  # of a whitening's entries: the last bits of an eigendecomposition differ between machines
BLOCK_ROWS = 1 << 12  # rows that are mapped together


class Whitening:
    """Symmetric whitening (C + s (tr C / D) I)^(-1/2) of features with the covariance C and a shrinkage s.

    The symmetric root turns the axes as little as possible, so that the centers of one epoch's clusters are a good
    start in the whitened space of the next. Much shrinkage leaves the features as they are.

    Source: Coates, Lee and Ng, AISTATS 2011, who found it to matter most for k-means.

    Args:
        rows: float64 of shape (n, D).
    """

    def __init__(self, rows: torch.Tensor):
        centered = rows - rows.mean(dim=0)
        covariance = centered.T @ centered / len(rows)
        self._mean_variance = covariance.diagonal().mean().clamp(min=1e-30)
        values, self._vectors = torch.linalg.eigh(covariance / self._mean_variance)
        self._values = values.clamp(min=0.0)

    def matrix(self, shrinkage: float) -> torch.Tensor:
        """Compute the whitening for a shrinkage above 0, times a factor: float32 of shape (D, D), largest entry 1."""
        root = self._root(shrinkage)
        root = root / root.abs().max()
        return (torch.round(root * 2**GRID_BITS) / 2**GRID_BITS).float()

    def metric(self, shrinkage: float) -> torch.Tensor:
        """Compute the whitening itself, after which the mean variance is below 1: float32 of shape (D, D).

        For distances that are compared with those of another whitening, fitted on other rows.
        """
        return (self._root(shrinkage) / self._mean_variance.sqrt()).float()

    def _root(self, shrinkage: float) -> torch.Tensor:
        return (self._vectors / (self._values + shrinkage).sqrt()) @ self._vectors.T


def draw_rows_to_fit(rows: torch.Tensor, accelerator: Accelerator | None = None, seed: int = 0) -> torch.Tensor:
    """Draw rows that a whitening is fitted on, the same for any number of processes.

    Args:
        rows: this process's rows, shape (n, D).
        accelerator: connects processes that hold further rows.
        seed: seed of the draw.

    Returns:
        float64 of shape (m, D) on the CPU of every process, m at most 16,384 or 16 D.
    """
    start, total = locate_rows(accelerator, len(rows))
    positions = draw_positions_to_fit(total, rows.shape[1], seed)
    local = positions[(positions >= start) & (positions < start + len(rows))] - start
    return gather_rows(accelerator, rows[torch.from_numpy(local).to(rows.device)]).cpu().double()


def draw_positions_to_fit(total: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw the ascending positions of the rows, of `total` rows with `width` columns, that a whitening is fitted on."""
    size = min(total, max(FIT_ROWS, FIT_ROWS_PER_DIMENSION * width))
    positions: np.ndarray = np.sort(np.random.default_rng(seed).choice(total, size, replace=False))
    return positions


@torch.no_grad()
def whiten(
    rows: torch.Tensor, shrinkage: float, accelerator: Accelerator | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Whiten the rows of all processes, equally for any number of these.

    Args:
        rows: this process's rows, float32 of shape (n, D).
        shrinkage: above 0, see `Whitening`.
        accelerator: connects processes that hold further rows.
        out: float32 tensor of shape (n, D) for the result, on any device; not `rows` itself.

    Returns:
        Rows of unit length, float32 of shape (n, D); `out` if it is given.
    """
    return map_rows(rows, fit_whitening(rows, shrinkage, accelerator), out)


def fit_whitening(rows: torch.Tensor, shrinkage: float, accelerator: Accelerator | None = None) -> torch.Tensor:
    """Fit the matrix (D, D) of `whiten`, on the CPU; arguments as there."""
    drawn = draw_rows_to_fit(rows, accelerator)
    return run_on_main(accelerator, lambda: Whitening(drawn).matrix(shrinkage), "whitening the features")


def map_rows(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply rows (n, D) by a matrix (D, D) and scale them to unit length, block by block; `out` as in `whiten`."""
    mapped = torch.empty_like(rows) if out is None else out
    for span, product in iterate_products(rows, matrix.to(rows.device)):
        mapped[span] = F.normalize(product, dim=1).to(mapped.device)
    return mapped


def iterate_products(
    rows: torch.Tensor, matrix: torch.Tensor, origin: torch.Tensor | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Iterate over slices of rows (n, D), and these rows relative to an origin (D,) times a matrix (D, D), in float32.

    The same kernels multiply them, whatever the number of rows, see `pad_rows`.
    """
    for span in iterate_rows(len(rows), BLOCK_ROWS):
        block = rows[span].float() if origin is None else rows[span].float() - origin
        height = len(block)
        block = pad_rows(block, BLOCK_ROWS)
        with exact_products(rows.device):
            product = (block @ matrix)[:height]
        yield span, product
