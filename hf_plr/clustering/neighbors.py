"""Exact nearest neighbours by blocked matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.utils.distributed import gather_rows, locate_rows
from hf_plr.utils.precision import exact_products

BLOCK_ELEMENTS = 1 << 24  # similarities in memory at once, 64 MiB
FULL_ROWS = 1 << 14  # samples up to which each is compared with all others at once
TILE_COLUMNS = 1 << 13  # samples of a larger gallery that a block of queries is compared with at once
CHUNK_COLUMNS = 1 << 5  # of a tile, of which only the best chunks are searched
SEARCHES = ("torch", "faiss")


@torch.no_grad()
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
            exact. Of equally near samples, "torch" takes those that come first, "faiss" may take others.

    Returns:
        int32 of shape (N, k), nearest first, on every process.

    Raises:
        ValueError: if search is "faiss" and faiss is not installed.
    """
    n = len(features)
    height = max(1, BLOCK_ELEMENTS // (n if n <= FULL_ROWS else TILE_COLUMNS))
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


@torch.no_grad()
def search_gallery(
    queries: torch.Tensor, gallery: torch.Tensor, k: int, accelerator: Accelerator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k samples of a gallery that are most similar to each query, by inner product.

    The gallery is shared out by rows and stays where it is: processes exchange their nearest samples only. Products are
    of tiles of one shape, which does not depend on the number of processes. Neither does the result: of equally similar
    samples the first come first.

    Args:
        queries: float32, shape (M, D); the same on every process.
        gallery: float32, this process's rows, shape (n, D), on the device of the queries; n may be 0.
        k: number of samples to find, at least 1; more than the gallery has count as all.
        accelerator: connects processes that hold further rows of the gallery.

    Returns:
        Similarities, float32, nearest first, and positions among the rows of all processes in process order, int64;
        both of shape (M, k), on the device of the queries, on every process.

    Raises:
        ValueError: if k is below 1, or no process has a row.
    """
    start, total = locate_rows(accelerator, len(gallery))
    if k < 1 or total < 1:
        raise ValueError(f"k={k} and the {total} samples of the gallery must be at least 1")
    k = min(k, total)
    width = min(TILE_COLUMNS, -(-total // CHUNK_COLUMNS) * CHUNK_COLUMNS)
    similarities = queries.new_empty(len(queries), k)
    positions = queries.new_empty(len(queries), k, dtype=torch.int64)
    for block in iterate_rows(len(queries), max(1, BLOCK_ELEMENTS // width)):
        found, columns = _search_tiles(queries[block], gallery, k, width)
        all_found = gather_rows(accelerator, found.T.contiguous()).T
        all_positions = gather_rows(accelerator, (columns + start).T.contiguous()).T
        similarities[block], positions[block] = _take_best(all_found, all_positions, k)
    return similarities, positions


def _search_tiles(
    queries: torch.Tensor, gallery: torch.Tensor, k: int, width: int, first_own: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search all rows of a gallery for a block of queries, tile by tile.

    Args:
        queries: shape (B, D).
        gallery: shape (n, D); n may be 0.
        k: number of rows to find.
        width: rows of a tile. The last tile is padded, as a product's last bits depend on its shape.
        first_own: the queries are rows of the gallery themselves, from this one on: each finds itself first.

    Returns:
        Similarities and positions, shape (B, min(k, n)), the first of equally similar rows first.
    """
    found = queries.new_empty(len(queries), 0)
    positions = queries.new_empty(len(queries), 0, dtype=torch.int64)
    similarities = queries.new_empty(len(queries), width)
    for rows in iterate_rows(len(gallery), width):
        tile, n_rows = gallery[rows], rows.stop - rows.start
        if n_rows < width:
            tile = torch.cat([tile, tile.new_zeros(width - n_rows, tile.shape[1])])
        with exact_products(queries.device):
            torch.mm(queries, tile.T, out=similarities)
        similarities[:, n_rows:] = -torch.inf
        if first_own is not None:
            own = range(max(first_own, rows.start), min(first_own + len(queries), rows.stop))
            own_rows = torch.arange(own.start, max(own.start, own.stop), device=queries.device)
            similarities[own_rows - first_own, own_rows - rows.start] = torch.inf
        nearest, columns = _search_chunks(similarities, min(k, n_rows))
        found, positions = _take_best(
            torch.cat([found, nearest], dim=1), torch.cat([positions, columns + rows.start], dim=1), k
        )
    return found, positions


def _search_chunks(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as `_take_largest`, reading most values once: the k largest are in the k chunks with the largest maxima."""
    n_chunks = values.shape[1] // CHUNK_COLUMNS
    if n_chunks <= k or values.shape[1] % CHUNK_COLUMNS:
        return _take_largest(values, k)
    chunks = values.view(len(values), n_chunks, CHUNK_COLUMNS)
    best = _take_largest(chunks.amax(dim=2), k)[1].sort(dim=1).values
    columns = (best[:, :, None] * CHUNK_COLUMNS + torch.arange(CHUNK_COLUMNS, device=values.device)).flatten(1)
    largest, order = _take_largest(values.gather(1, columns), k)
    return largest, columns.gather(1, order)


def _take_largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the k largest of each row (B, W), or all W; returns them and their columns, the first of equal ones first.

    `topk` takes any of equal values. Where that matters, the last value that is taken occurs once more.
    """
    if k >= values.shape[1]:
        return values.sort(dim=1, descending=True, stable=True)
    largest, columns = values.topk(k + 1, dim=1)
    is_tied = largest[:, k - 1] == largest[:, k]
    columns = columns[:, :k]
    if is_tied.any():
        tied, least = values[is_tied], largest[is_tied, k - 1 : k]
        is_larger, is_equal = tied > least, tied == least
        n_equal = k - is_larger.sum(dim=1, keepdim=True)
        is_taken = is_larger | (is_equal & (is_equal.cumsum(dim=1, dtype=torch.int32) <= n_equal))
        columns[is_tied] = is_taken.nonzero()[:, 1].view(-1, k)
    columns = columns.sort(dim=1).values
    return _take_best(values.gather(1, columns), columns, k)


def _take_best(values: torch.Tensor, positions: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the k largest values of each row and their positions; of equal ones those that stand first, in order."""
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], positions.gather(1, order[:, :k])


def _prepare_torch(features: torch.Tensor, k: int) -> Callable[[int, int], torch.Tensor]:
    def search_rows(start: int, stop: int) -> torch.Tensor:
        if len(features) > FULL_ROWS:
            nearest = _search_tiles(features[start:stop], features, k, TILE_COLUMNS, first_own=start)[1]
            return nearest.to("cpu", torch.int32)
        with exact_products(features.device):
            similarities = features[start:stop] @ features.T
        rows = torch.arange(stop - start, device=features.device)
        similarities[rows, rows + start] = torch.inf  # ahead of its duplicates
        return _search_chunks(similarities, k)[1].to("cpu", torch.int32)

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
