"""Exact nearest neighbours by blocked matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.utils.distributed import gather_rows
from hf_plr.utils.precision import fast_fp32_products

BLOCK_ELEMENTS = 1 << 24  # similarities that are held at once, 64 MiB
SEARCHES = ("torch", "faiss")


def find_nearest_neighbors(
    features: torch.Tensor, k: int, accelerator: Accelerator | None = None, search: str = "torch"
) -> np.ndarray:
    """The k nearest neighbours of every sample by cosine, itself first.

    Args:
        features: float32 of unit length, shape (N, D), on any device; all samples, on every process.
        k: neighbours, the sample itself included, 1 to N.
        accelerator: shares the search with other processes: each looks for its part of the samples, in blocks that are
            the same for any number of processes.
        search: "torch" on the device that holds the features, or "faiss" on the CPU, which must be installed. Both are
            exact; samples that are equally near may come in another order.

    Returns:
        int32 of shape (N, k), nearest first, on every process.

    Raises:
        ValueError: if faiss is wanted and not installed.
    """
    n = len(features)
    height = max(1, BLOCK_ELEMENTS // n)
    starts = range(0, n, height)
    if accelerator is not None:
        share = -(-len(starts) // accelerator.num_processes)
        starts = starts[accelerator.process_index * share :][:share]
    found = torch.empty(0, k, dtype=torch.int32)
    if len(starts):
        found = torch.empty(min(starts[-1] + height, n) - starts[0], k, dtype=torch.int32)
    neighbors_of = _faiss_search(features, k) if search == "faiss" else _torch_search(features, k)
    for start in starts:
        stop = min(start + height, n)
        found[start - starts[0] : stop - starts[0]] = neighbors_of(start, stop)
    return gather_rows(accelerator, found).numpy()


def _torch_search(features: torch.Tensor, k: int) -> Callable[[int, int], torch.Tensor]:
    def neighbors_of(start: int, stop: int) -> torch.Tensor:
        with fast_fp32_products():
            similarities = features[start:stop] @ features.T
        rows = torch.arange(stop - start, device=features.device)
        similarities[rows, rows + start] = torch.inf  # before its duplicates
        return similarities.topk(k, dim=1).indices.to("cpu", torch.int32)

    return neighbors_of


def _faiss_search(features: torch.Tensor, k: int) -> Callable[[int, int], torch.Tensor]:
    faiss = _import_faiss()
    rows = np.ascontiguousarray(features.cpu().numpy())
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)

    def neighbors_of(start: int, stop: int) -> torch.Tensor:
        found = index.search(rows[start:stop], k)[1].astype(np.int32)
        itself = np.arange(start, stop)[:, None]
        itself_first = np.argsort(found != itself, axis=1, kind="stable")
        found = np.take_along_axis(found, itself_first, axis=1)
        found[:, 0] = itself[:, 0]  # where k duplicates came before it, it was not found: it takes the place of one
        return torch.from_numpy(found)

    return neighbors_of


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "search='faiss' but faiss is not installed: pip install faiss-cpu, or search='torch'"
        ) from error
    return faiss
