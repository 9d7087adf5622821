"""Greedy k-means++: seeds for k-means among the rows of all processes, on the rows' device."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.blocks import find_largest_entry, iterate_rows
from hf_plr.clustering.exact_sums import average_rows, to_exact
from hf_plr.utils.distributed import gather_objects, locate_rows, max_all, sum_all
from hf_plr.utils.precision import exact_products
from hf_plr.utils.threads import block_threads, share_blocks

POOL_ROWS = 128  # candidates whose distances one product computes; with few of them it would wait for memory
POOL_DISTANCES = 1 << 26  # distances of a pool that are held at once, 256 MiB
BLOCK_ROWS = {"cpu": 1 << 11}  # rows in one product: always as many, so that a device always rounds alike
OTHER_BLOCK_ROWS = 1 << 13
LARGEST_SCALE = 2.0**126  # float32 has no larger power of two than the next
SUM_ROWS = {"cpu": 1 << 13}  # distances per candidate that are summed at once; they stay in a CPU's cache
OTHER_SUM_ROWS = 1 << 20


def draw_seeds(rows: torch.Tensor, n_clusters: int, seed: int, accelerator: Accelerator | None) -> torch.Tensor:
    """Draw seeds among the rows of all processes by greedy k-means++.

    A candidate is drawn in proportion to its squared distance to the closest seed so far (Arthur and Vassilvitskii,
    "k-means++: the advantages of careful seeding", SODA 2007). Of 2 + log K candidates, that one becomes a seed which
    lowers the sum of these distances most, as in scikit-learn.

    One matrix product serves several seeds: candidates are drawn ahead into a pool. A candidate that has come closer to
    a seed since is rejected with the probability that makes its draw one by the present distances (rejection sampling;
    Cohen-Addad et al., "Fast and accurate k-means++ via rejection sampling", NeurIPS 2020).

    Sums of distances are exact, so that the seeds do not depend on the number of processes. Where no distance is left,
    because all rows equal seeds, the other seeds are drawn uniformly among the unused rows.

    Args:
        rows: this process's rows, finite float32 of shape (n, D); n may be 0.
        n_clusters: number of seeds K, at least 1 and at most the number of all rows.
        seed: seed of the draws; the same on every process.
        accelerator: connects the processes, all of which call this; None for one alone.

    Returns:
        float32 tensor of shape (K, D) on the device of `rows`: K different ones of the rows, the same on every process.

    Raises:
        ValueError: if there are fewer rows than clusters.
    """
    return _draw_seeds(rows, n_clusters, seed, accelerator, rows[:0])


def add_seeds(
    rows: torch.Tensor, first: torch.Tensor, n_clusters: int, seed: int, accelerator: Accelerator | None
) -> torch.Tensor:
    """Draw seeds as `draw_seeds` does, beside some that are there.

    Args:
        rows: as for `draw_seeds`.
        first: the first seeds, such as clusters of an earlier run, float32 of shape (K', D), the same on every process.
        n_clusters: number of all seeds K, at least K'.
        seed, accelerator: as for `draw_seeds`.

    Returns:
        float32 tensor of shape (K, D): `first`, then rows.

    Raises:
        ValueError: if there are fewer rows than further seeds.
    """
    if len(first) == n_clusters:
        return first
    return torch.cat([first, _draw_seeds(rows, n_clusters - len(first), seed, accelerator, first)])


def _draw_seeds(
    rows: torch.Tensor, n_clusters: int, seed: int, accelerator: Accelerator | None, first: torch.Tensor
) -> torch.Tensor:
    start, total = locate_rows(accelerator, len(rows))
    if not 1 <= n_clusters <= total:
        raise ValueError(f"n_clusters={n_clusters} but there are {total} rows")
    with block_threads(rows.device), exact_products(rows.device):
        sample = _Sample(rows, start, total, accelerator)
        sample.take_seeds(first)
        positions = _draw_positions(sample, n_clusters, seed, accelerator)
    seeds = rows.new_zeros(n_clusters, rows.shape[1])
    own = np.flatnonzero((positions >= start) & (positions < start + len(rows)))
    seeds[torch.from_numpy(own).to(rows.device)] = rows[torch.from_numpy(positions[own] - start).to(rows.device)]
    return sum_all(accelerator, seeds)


def _draw_positions(sample: _Sample, n_clusters: int, seed: int, accelerator: Accelerator | None) -> np.ndarray:
    """Draw the positions of the seeds among all rows, int64 of shape (K,)."""
    generator = np.random.default_rng(seed)
    n_trials = 2 + int(math.log(n_clusters))
    most_seeds = max(1, min(POOL_ROWS, POOL_DISTANCES // sample.total) // n_trials)
    positions: list[int] = []
    n_seeds = 1  # the first seed changes all distances
    while len(positions) < n_clusters:
        pool = sample.draw_pool(n_trials * min(n_seeds, n_clusters - len(positions)), generator)
        if pool is None:
            unused = np.setdiff1d(np.arange(sample.total), positions)
            positions += generator.choice(unused, n_clusters - len(positions), replace=False).tolist()
            break
        slots = _choose_seeds(pool, sample.closest, n_trials, accelerator)
        chosen = pool.positions[slots[slots < len(pool.positions)]].tolist()
        positions += chosen
        n_seeds = max(1, min(2 * len(chosen), most_seeds))
    return np.array(positions, dtype=np.int64)


@dataclass
class _Pool:
    """Candidates for the next seeds, in the order of their draw. The same on every process, but for `distances`.

    Attributes:
        positions: positions among all rows, int64 of shape (C,).
        closest: squared distances to the closest seed, float32 of shape (C,).
        chances: uniform in [0, 1), float32 of shape (C,); decide on rejection.
        between: squared distances between candidates, float32 of shape (C + 1, C); the last row is infinite.
        distances: squared distances to this process's rows, float32 of shape (C + 1, n); the last row is infinite.
        shift: adding and subtracting it rounds distances to whole multiples of shift / 2**23.
    """

    positions: torch.Tensor
    closest: torch.Tensor
    chances: torch.Tensor
    between: torch.Tensor
    distances: torch.Tensor
    shift: float


class _Sample:
    """This process's rows and their squared distances to the closest seed.

    Rows are centered and scaled by a power of two, which keeps float32 precise. Zeros fill them up to whole blocks; a
    distance of 0 keeps the zeros out of draws and sums.

    Attributes:
        total: number of rows of all processes.
        closest: squared distance to the closest seed, float32 of shape (n,); a bound before there is a seed.
    """

    def __init__(self, rows: torch.Tensor, start: int, total: int, accelerator: Accelerator | None):
        self.total = total
        self._start = start
        self._accelerator = accelerator
        self._device = rows.device
        self._block_rows = BLOCK_ROWS.get(rows.device.type, OTHER_BLOCK_ROWS)
        height = -(-len(rows) // self._block_rows) * self._block_rows
        self._rows = rows.new_zeros(height, rows.shape[1])
        self._mean = average_rows(rows, accelerator)
        torch.sub(rows, self._mean, out=self._rows[: len(rows)])
        largest = max_all(accelerator, find_largest_entry(self._rows))
        self._scale = min(1 / _power_above(largest), LARGEST_SCALE)
        self._rows.mul_(self._scale)
        # A product's rounding error must not part equal rows: distances are lowered by more than that.
        self._factor = 1.0 - (4.0 + math.sqrt(rows.shape[1])) * 2.0**-23
        self._norms = rows.new_empty(height)
        for span in iterate_rows(height, self._block_rows):
            self._norms[span] = self._rows[span].square().sum(dim=1).mul_(self._factor)
        self.closest = rows.new_zeros(height)
        self.closest[: len(rows)] = 4.0 * max_all(accelerator, float(self._norms.max()) if height else 0.0)
        self._distances = rows.new_empty(0, height)

    def take_seeds(self, seeds: torch.Tensor) -> None:
        """Take seeds (K', D) that are there already, also such as are no rows."""
        scaled = (seeds.to(self._rows) - self._mean) * self._scale
        for part in (scaled[span] for span in iterate_rows(len(scaled), POOL_ROWS)):
            torch.minimum(self.closest, self._compute_distances(part)[: len(part)].amin(dim=0), out=self.closest)

    def draw_pool(self, size: int, generator: np.random.Generator) -> _Pool | None:
        """Draw candidates of all processes by their distances to the closest seed; None if these are all 0."""
        largest = max_all(self._accelerator, float(self.closest.max()) if len(self.closest) else 0.0)
        if largest == 0:
            return None
        shift = _power_above(largest)
        # In whole units: sums of floats in order have no deterministic algorithm on GPUs.
        sums = to_exact(_round(self.closest, shift)).div_(shift * 2.0**-23).long().cumsum(dim=0)
        own_sum = int(sums[-1]) if len(sums) else 0
        all_sums = gather_objects(self._accelerator, own_sum)
        before = sum(all_sums[: 0 if self._accelerator is None else self._accelerator.process_index])
        targets = generator.integers(sum(all_sums), size=size) - before
        chances = torch.from_numpy(generator.random(size, dtype=np.float32)).to(self._device)

        own = np.flatnonzero((targets >= 0) & (targets < own_sum))
        local = torch.searchsorted(sums, torch.as_tensor(targets[own], device=sums.device), right=True)
        local = local.to(self._device)
        slots = torch.from_numpy(own).to(self._device)
        positions = torch.zeros(size, dtype=torch.int64, device=self._device)
        positions[slots] = self._start + local
        shared = self._rows.new_zeros(size, self._rows.shape[1] + 1)
        shared[slots, :-1] = self._rows[local]
        shared[slots, -1] = self.closest[local]
        shared = sum_all(self._accelerator, shared)
        distances = self._compute_distances(shared[:, :-1].contiguous())
        distances[slots, local] = 0.0  # whatever rounding makes of it
        between = distances.new_zeros(size + 1, size)
        between[:, slots] = distances[:, local]
        return _Pool(
            positions=sum_all(self._accelerator, positions),
            closest=shared[:, -1].clone(),
            chances=chances,
            between=sum_all(self._accelerator, between),
            distances=distances,
            shift=shift,
        )

    def _compute_distances(self, candidates: torch.Tensor) -> torch.Tensor:
        """Squared distances from candidates (C, D) to the rows, shape (C + 1, n), and a row of infinity."""
        size = len(candidates)
        if len(self._distances) <= size:
            self._distances = self._rows.new_empty(size + 1, len(self._rows))
        distances = self._distances[: size + 1]
        norms = candidates.square().sum(dim=1, keepdim=True).mul_(self._factor)
        factors = -2.0 * candidates

        def compute(spans: Iterator[slice]) -> None:
            products = self._rows.new_empty(size, self._block_rows)
            for span in spans:
                torch.mm(factors, self._rows[span].T, out=products).add_(self._norms[span]).add_(norms)
                torch.clamp(products, min=0.0, out=distances[:size, span])

        share_blocks(iterate_rows(len(self._rows), self._block_rows), self._device, compute)
        distances[size] = math.inf
        return distances


def _choose_seeds(pool: _Pool, closest: torch.Tensor, n_trials: int, accelerator: Accelerator | None) -> torch.Tensor:
    """Choose seeds, each among the next `n_trials` candidates that are not rejected. The host does not wait.

    Args:
        pool: candidates, at least `n_trials` per seed; `pool.closest` is updated.
        closest: squared distances of this process's rows to the closest seed, shape (n,); updated.
        n_trials: number of candidates per seed.
        accelerator: connects the processes; None for one alone.

    Returns:
        int64 tensor: where in the pool the seeds are; C, the number of candidates, for those that ran out of them.
    """
    size = len(pool.closest)
    slots = torch.arange(size, device=closest.device)
    ranks = torch.arange(1, n_trials + 1, device=closest.device)
    next_slot = torch.zeros(1, dtype=torch.int64, device=closest.device)
    thresholds = pool.chances * _round(pool.closest, pool.shift)
    chosen = []
    for _ in range(size // n_trials):
        accepted = (slots >= next_slot) & (thresholds < _round(pool.closest, pool.shift))
        tried = torch.searchsorted(accepted.cumsum(dim=0), ranks)  # C, the infinite row, for those that are missing
        potentials = sum_all(accelerator, _sum_potentials(pool, closest, tried))
        lowest = potentials.argmin(dim=0, keepdim=True).to(closest.device)
        best = tried.index_select(0, lowest)  # an index in brackets would wait
        best = torch.where(tried[-1:] < size, best, size)
        torch.minimum(closest, pool.distances.index_select(0, best)[0], out=closest)
        torch.minimum(pool.closest, pool.between.index_select(0, best)[0], out=pool.closest)
        next_slot = tried[-1:] + 1
        chosen.append(best)
    return torch.cat(chosen)


def _sum_potentials(pool: _Pool, closest: torch.Tensor, tried: torch.Tensor) -> torch.Tensor:
    """Sum the rows' distances to the closest seed, if a candidate became one: exact sums of shape (T,)."""
    potentials = to_exact(closest.new_zeros(len(tried)))
    lock = threading.Lock()

    def add(spans: Iterator[slice]) -> None:
        for span in spans:
            distances = pool.distances[:, span].index_select(0, tried)
            torch.minimum(distances, closest[span], out=distances)
            sums = to_exact(distances.add_(pool.shift).sub_(pool.shift)).sum(dim=1)
            with lock:
                potentials.add_(sums)

    share_blocks(iterate_rows(len(closest), SUM_ROWS.get(closest.device.type, OTHER_SUM_ROWS)), closest.device, add)
    return potentials


def _round(distances: torch.Tensor, shift: float) -> torch.Tensor:
    """Round distances to multiples of shift / 2**23: their sums in float64 are exact."""
    return (distances + shift) - shift


def _power_above(value: float) -> float:
    """Smallest power of two above a value that is not negative; 1 for 0."""
    return math.ldexp(1.0, math.frexp(value)[1])


def draw_positions(total: int, size: int, seed: int) -> torch.Tensor:
    """Draw positions without replacement, ascending."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).choice(total, size, replace=False)))
