"""Exact nearest neighbours by blocked matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.utils.distributed import gather_rows
from hf_plr.utils.precision import exact_products

BLOCK_ELEMENTS = 1 << 24  # similarities in memory at once, 64 MiB
SEARCHES = ("torch", "faiss")


def find_nearest_neighbors(
    features: torch.Tensor, k: int, accelerator: Accelerator | None = None, search: str = "torch"
) -> np.ndarray:
    """Find the k nearest neighbours of every sample by cosine, itself first.

    Args:
        features: float32 of unit length, shape (N, D), on any device; all samples, on every process.
        k: number of neighbours, the sample itself included, 1 to N.
        accelerator: shares the search with other processes. Each searches for its part of the samples, in blocks that
            are equal for any number of processes.
        search: "torch" on the device that holds the features, or "faiss" on the CPU, which must be installed. Both are
            exact; equally near samples may have another order.

    Returns:
        int32 of shape (N, k), nearest first, on every process.

    Raises:
        ValueError: if search is "faiss" and faiss is not installed.
    """
    n = len(features)
    height = max(1, BLOCK_ELEMENTS // n)
    starts = range(0, n, height)
    if accelerator is not None:
        n_per_process = -(-len(starts) // accelerator.num_processes)
        starts = starts[accelerator.process_index * n_per_process :][:n_per_process]
    nearest = torch.empty(0, k, dtype=torch.int32)
    if len(starts):
        nearest = torch.empty(min(starts[-1] + height, n) - starts[0], k, dtype=torch.int32)
    search_rows = _prepare_faiss(features, k) if search == "faiss" else _prepare_torch(features, k)
    for start in starts:
        stop = min(start + height, n)
        nearest[start - starts[0] : stop - starts[0]] = search_rows(start, stop)
    return gather_rows(accelerator, nearest).numpy()


def _prepare_torch(features: torch.Tensor, k: int) -> Callable[[int, int], torch.Tensor]:
    def search_rows(start: int, stop: int) -> torch.Tensor:
        with exact_products(features.device):
            similarities = features[start:stop] @ features.T
        rows = torch.arange(stop - start, device=features.device)
        similarities[rows, rows + start] = torch.inf  # ahead of its duplicates
        return similarities.topk(k, dim=1).indices.to("cpu", torch.int32)

    return search_rows


def _prepare_faiss(features: torch.Tensor, k: int) -> Callable[[int, int], torch.Tensor]:
    faiss = _import_faiss()
    rows = np.ascontiguousarray(features.cpu().numpy())
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)

    def search_rows(start: int, stop: int) -> torch.Tensor:
        nearest = index.search(rows[start:stop], k)[1].astype(np.int32)
        own = np.arange(start, stop)[:, None]
        order = np.argsort(nearest != own, axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, axis=1)
        nearest[:, 0] = own[:, 0]  # k duplicates may hide the sample itself
        return torch.from_numpy(nearest)

    return search_rows


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "search='faiss' but faiss is not installed: pip install faiss-cpu, or search='torch'"
        ) from error
    return faiss
