"""What steps 2 to 4 work on: the co-occurrence table of the labels of successive epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

NOISE = -1
CHUNK = 1 << 16  # samples that are located together
BLOCK = 1 << 16  # entries that are summed together
WALKED = 4  # with more labelings each sample's cell so far is held in memory, in place of being located again
TABLE_SIZE = 1 << 20  # keys below this are looked up in a table, others by bisection
COUNT_CHUNK = 1 << 18  # samples that are counted together, into a table of up to a million cells


@dataclass(frozen=True)
class CooccurrenceTable:
    """The occupied cells of the co-occurrence (contingency) table of two or more labelings of the same samples.

    A *cell* is one tuple of labels (oldest, ..., previous, current) that at least one sample has. Everything that
    refinement computes for a sample depends on its cell alone, so that the cells, with their counts as weights, stand
    for all samples. Tables of shards add up: `cooccurrence(a, b) + cooccurrence(c, d, offset=len(a))`, or
    `sum(tables)`.

    Attributes:
        ids: cluster ids of each labeling as the caller wrote them, ascending, without noise; oldest labeling first.
        codes: positions of each cell's clusters in `ids`, -1 for noise; int32 of shape (cells, labelings), rows
            ascending.
        counts: samples per cell, at least 1; shape (cells,).
        first_member: smallest sample index per cell; shape (cells,).

    Example:
        >>> table = cooccurrence([0, 0, 1, 1], [5, 5, 5, 7])
        >>> table.matrix().toarray().tolist()  # rows are the previous clusters 0 and 1, columns the current 5 and 7
        [[2.0, 0.0], [1.0, 1.0]]
    """

    ids: tuple[np.ndarray, ...]
    codes: np.ndarray
    counts: np.ndarray
    first_member: np.ndarray

    @classmethod
    def from_cells(cls, labels: npt.ArrayLike, counts: npt.ArrayLike, first_member: npt.ArrayLike) -> CooccurrenceTable:
        """Make the table that `cooccurrence` gives from its cells, as a database counts them.

        Args:
            labels: integer labels of each cell, oldest labeling first, -1 = noise, shape (cells, labelings); each cell
                once, in any order.
            counts: samples per cell, at least 1, shape (cells,).
            first_member: smallest sample index per cell, shape (cells,).

        Raises:
            TypeError: if labels are not integers.
            ValueError: if shapes do not fit, a label is below -1, a count below 1, or a cell occurs again.
        """
        cells, counts, first = np.asarray(labels), np.asarray(counts), np.asarray(first_member)
        if cells.ndim != 2 or cells.shape[1] < 2 or counts.shape != first.shape or counts.shape != cells.shape[:1]:
            raise ValueError(
                f"labels of shape {cells.shape} need shape (cells, labelings), counts {counts.shape} and first_member "
                f"{first.shape} as many"
            )
        if len(counts) and counts.min() < 1:
            raise ValueError(f"counts must be at least 1, but {counts.min()} is among them")
        ids = tuple(list_cluster_ids(column) for column in cells.T)
        codes = [np.where(c == NOISE, NOISE, np.searchsorted(i, c)) for i, c in zip(ids, cells.T, strict=True)]
        order = np.lexsort(codes[::-1])
        table = cls(ids, np.stack(codes, axis=1)[order].astype(np.int32), counts[order], first[order])
        if not (np.diff(table.codes, axis=0) != 0).any(axis=1).all():
            raise ValueError("a cell occurs more than once: count all its samples together")
        return table

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def current(self) -> np.ndarray:
        """Position of each cell's current cluster in `current_ids`, -1 for noise; shape (cells,)."""
        return self.codes[:, -1]

    @property
    def previous(self) -> np.ndarray:
        """Position of each cell's previous cluster in `previous_ids`, -1 for noise; shape (cells,)."""
        return self.codes[:, -2]

    @property
    def current_ids(self) -> np.ndarray:
        """Ids of the K current clusters, ascending; shape (K,)."""
        return self.ids[-1]

    @property
    def previous_ids(self) -> np.ndarray:
        """Ids of the K' previous clusters, ascending; shape (K',)."""
        return self.ids[-2]

    def sizes(self, labeling: int) -> np.ndarray:
        """Samples per cluster of one labeling (-1 is the current one), noise in the others included: shape (K,)."""
        return count_samples(self.codes[:, labeling], self.counts, len(self.ids[labeling]))

    def matrix(self) -> sp.csr_array:
        """Counts of (previous, current) without noise, as a sparse matrix of shape (K', K)."""
        is_labelled = (self.previous != NOISE) & (self.current != NOISE)
        shape = (len(self.previous_ids), len(self.current_ids))
        return sum_entries(self.counts, self.previous, self.current, shape, is_labelled)

    def locate(self, *labelings: npt.ArrayLike) -> np.ndarray:
        """Locate the cell of every sample.

        Args:
            labelings: labels of the same samples, oldest first, each of shape (n,): any part of the counted samples.

        Returns:
            Positions among the cells, shape (n,).

        Raises:
            ValueError: if a sample has labels that were not counted together.
        """
        arrays = [np.asanyarray(labels) for labels in labelings]
        cell = self._locator(*arrays)
        if len(cell) and cell.min() < 0:
            labels = tuple(int(array[int(np.argmin(cell))]) for array in arrays)
            raise ValueError(f"no counted sample has the labels {labels} (oldest first): locate counted samples only")
        return cell

    def __getstate__(self) -> dict[str, object]:
        """The cells alone: what locates samples is larger than they are, and made anew where it is needed."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __add__(self, other: CooccurrenceTable) -> CooccurrenceTable:
        if len(self.ids) != len(other.ids):
            raise ValueError(f"a table of {len(self.ids)} labelings and one of {len(other.ids)} do not add up")
        ids = tuple(np.union1d(a, b) for a, b in zip(self.ids, other.ids, strict=True))
        codes = np.concatenate([self._recode(ids), other._recode(ids)])
        counts = np.concatenate([self.counts, other.counts])
        first_member = np.concatenate([self.first_member, other.first_member])
        order = np.lexsort(codes.T[::-1])
        is_new = np.ones(len(order), dtype=bool)
        is_new[1:] = (np.diff(codes[order], axis=0) != 0).any(axis=1)
        starts = np.flatnonzero(is_new)
        if len(starts) == 0:
            return self
        return CooccurrenceTable(
            ids,
            codes[order][starts],
            np.add.reduceat(counts[order], starts),
            np.minimum.reduceat(first_member[order], starts),
        )

    def __radd__(self, other: object) -> CooccurrenceTable:
        if other == 0:  # the start of sum()
            return self
        return NotImplemented

    def _recode(self, ids: tuple[np.ndarray, ...]) -> np.ndarray:
        """Recode the cells as positions in other, larger lists of ids."""
        columns = [
            np.append(np.searchsorted(new_ids, old_ids), NOISE).astype(np.int32)[column]
            for new_ids, old_ids, column in zip(ids, self.ids, self.codes.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    @cached_property
    def _locator(self) -> _Locator:
        """Locator of the cells, rebuilt from the codes, so that a table alone is enough to locate samples."""
        locator = _Locator(self.ids)
        prefix = self.codes[:, 0].astype(np.int64) + 1
        for column in self.codes.T[1:-1]:
            pairs, prefix = np.unique(locator.pair(prefix, column), return_inverse=True)
            locator.add_level(pairs)
        locator.add_level(locator.pair(prefix, self.current))  # rows ascend and are distinct, and so are these
        return locator


def cooccurrence(*labelings: npt.ArrayLike, offset: int = 0) -> CooccurrenceTable:
    """Count the cells of two or more labelings of the same samples: `cooccurrence(previous, current)`.

    Samples are read in chunks: memory-mapped labels are never read as a whole.

    Args:
        labelings: integer labels of shape (N,) each, -1 = noise, oldest labeling first. Ids may be any integers from 0.
        offset: index of the first sample, where these labels are a shard.

    Raises:
        TypeError: if labels are not integers.
        ValueError: if there are fewer than two labelings, or they differ in length.
    """
    if len(labelings) < 2:
        raise ValueError(f"{len(labelings)} labelings given: co-occurrence needs two or more")
    arrays = [np.asanyarray(labels) for labels in labelings]
    lengths = [len(labels) for labels in arrays]
    if len(set(lengths)) > 1:
        names = ["previous", "current"] if len(labelings) == 2 else [f"labeling {i}" for i in range(len(labelings))]
        listed = ", ".join(f"{name} has {length}" for name, length in zip(names, lengths, strict=True))
        raise ValueError(f"labelings differ in length: {listed}; they must label the same samples")
    locator = _Locator(tuple(list_cluster_ids(labels) for labels in arrays))
    counts, first_member = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    codes = np.arange(NOISE, len(locator.ids[0]), dtype=np.int32)[:, None]
    located = np.empty(lengths[0] if len(labelings) > WALKED else 0, dtype=np.int32)
    for level in range(1, len(labelings)):
        counter = PairCounter(locator.n_cells * (len(locator.ids[level]) + 1))
        for span in iterate_blocks(lengths[0], COUNT_CHUNK):
            shard = [labels[span] for labels in arrays[: level + 1]]
            if level == 1 or len(located) == 0:
                prefix = locator(*shard[:-1])
            else:
                prefix = locator.locate_next(located[span].astype(np.int64), level - 1, shard[-2])
            if len(located):
                located[span] = prefix
            counter.add(locator.pair(prefix, locator.encode(level, shard[-1])), offset + span.start)
        pairs, counts, first_member = counter.result()
        n_codes = len(locator.ids[level]) + 1
        codes = np.column_stack([codes[pairs // n_codes], (pairs % n_codes - 1).astype(np.int32)])
        locator.add_level(pairs)
    table = CooccurrenceTable(locator.ids, codes, counts, first_member)
    vars(table)["_locator"] = locator  # it has just been made
    return table


class _Locator:
    """Map from tuples of labels to cells, one labeling after another: (oldest) -> (oldest, next) -> ..."""

    def __init__(self, ids: tuple[np.ndarray, ...]):
        self.ids = ids
        self.n_cells = len(ids[0]) + 1
        self._codes = [Positions(i) for i in ids]
        self._levels: list[Positions] = []

    def encode(self, labeling: int, labels: np.ndarray) -> np.ndarray:
        """Encode labels as positions among the ids of their labeling, -1 for noise, -2 where there is no such id."""
        labels = as_int64(labels)
        code = self._codes[labeling](labels)
        unknown = code < 0
        if unknown.any():
            code[unknown] = np.where(labels[unknown] == NOISE, NOISE, -2)
        return code

    def pair(self, prefix: np.ndarray, code: np.ndarray) -> np.ndarray:
        """Pair the cell of the labelings so far with a code in the next labeling, as one integer."""
        return prefix * (len(self.ids[len(self._levels) + 1]) + 1) + (code + 1)

    def add_level(self, pairs: np.ndarray) -> None:
        """Add a labeling whose cells are these pairs, ascending."""
        self._levels.append(Positions(pairs))
        self.n_cells = len(pairs)

    def __call__(self, *labelings: np.ndarray) -> np.ndarray:
        """Cell of each sample under the first labelings, -1 where there is none."""
        cell = self.encode(0, labelings[0]) + 1  # -1 where there is no such id
        for level, labels in enumerate(labelings[1:], start=1):
            cell = self.locate_next(cell, level, labels)
        return cell

    def locate_next(self, cell: np.ndarray, labeling: int, labels: np.ndarray) -> np.ndarray:
        """Cell of each sample under the labelings up to this one, from its cell under those before."""
        code = self.encode(labeling, labels)
        pair = cell * (len(self.ids[labeling]) + 1) + code + 1
        pair[(cell < 0) | (code < NOISE)] = -1
        return self._levels[labeling - 1](pair)


def list_cluster_ids(labels: np.ndarray) -> np.ndarray:
    """List the cluster ids that occur in labels of shape (N,), ascending, without noise.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if one is below -1.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be integers (-1 = noise), not {labels.dtype}")
    ids = np.empty(0, dtype=np.int64)
    is_seen = np.zeros(COUNT_CHUNK, dtype=bool)  # small ids, which are nearly always all
    for span in iterate_chunks(len(labels)):
        chunk = as_int64(labels[span])
        lowest, highest = chunk.min(), chunk.max()
        if lowest < NOISE:
            raise ValueError(f"labels must be -1 (noise) or above, but {lowest} is among them")
        if highest < len(is_seen):
            is_seen[chunk[chunk >= 0] if lowest < 0 else chunk] = True
        else:
            ids = np.union1d(ids, chunk)
    ids = np.union1d(ids, np.flatnonzero(is_seen))
    return ids[ids != NOISE]


def as_int64(labels: np.ndarray) -> np.ndarray:
    """Convert labels to int64, without a copy where they are int64 already.

    Raises:
        ValueError: if one is too large.
    """
    if labels.dtype == np.uint64 and len(labels) and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"label {labels.max()} is above {np.iinfo(np.int64).max}, the largest that is possible")
    return labels.astype(np.int64, copy=False)


def iterate_chunks(n_samples: int) -> Iterator[slice]:
    """Iterate over slices that cover the samples, `CHUNK` at a time."""
    return iterate_blocks(n_samples, CHUNK)


# ---- counts, positions and sums by integer keys, in little memory ----------------------------------------------------


class Positions:
    """Positions of keys in an ascending array.

    Args:
        keys: distinct integers from 0, ascending, shape (n,).
    """

    def __init__(self, keys: np.ndarray):
        self._keys: np.ndarray | None = None
        self._table: np.ndarray | None = None
        if len(keys) and keys[-1] >= TABLE_SIZE:
            self._keys = keys
        else:
            size = int(keys[-1]) + 1 if len(keys) else 0
            self._table = np.full(size + 1, -1, dtype=np.int32)  # the last entry is for all keys out of range
            self._table[keys] = np.arange(len(keys), dtype=np.int32)

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """Look up positions, int64 of the same shape, -1 for a key that is not there."""
        if self._table is not None:
            out_of_range = len(self._table) - 1
            clipped = np.minimum(keys.view(np.uint64), np.uint64(out_of_range))  # negative keys are huge as unsigned
            return self._table[clipped].astype(np.int64)
        assert self._keys is not None
        order = np.argsort(keys)  # bisection for neighbours in turn stays in the processor's cache: six times as fast
        ascending = keys[order]
        found = np.minimum(np.searchsorted(self._keys, ascending), len(self._keys) - 1)
        found[self._keys[found] != ascending] = -1
        position = np.empty_like(found)
        position[order] = found
        return position


class PairCounter:
    """Counter of integer keys in chunks, with the sample where each key occurs first.

    Args:
        n_keys: number of possible keys, which are 0 to n_keys - 1.
    """

    def __init__(self, n_keys: int):
        self._dense = n_keys <= TABLE_SIZE
        self._keys = np.empty(0, dtype=np.int64)  # of the entries of the other two; unused where dense
        self._counts = np.zeros(n_keys if self._dense else 0, dtype=np.int64)
        self._first = np.zeros_like(self._counts)

    def add(self, keys: np.ndarray, start: int) -> None:
        """Count the keys of the samples start, start + 1, ...; chunks come in ascending order."""
        if self._dense:
            counts = np.bincount(keys, minlength=len(self._counts))
            is_new = (self._counts == 0) & (counts > 0)
            self._counts += counts
            if is_new.any():
                sample = np.flatnonzero(is_new[keys])[::-1]  # reversed: the earliest is written last
                self._first[keys[sample]] = start + sample
            return
        chunk_keys, counts = np.unique(keys, return_counts=True)
        position = np.searchsorted(self._keys, chunk_keys)
        known = position < len(self._keys)
        known[known] = self._keys[position[known]] == chunk_keys[known]
        self._counts[position[known]] += counts[known]
        if known.all():
            return
        unknown_keys = chunk_keys[~known]
        sample = np.flatnonzero(Positions(unknown_keys)(keys) >= 0)
        new_keys, first = np.unique(keys[sample], return_index=True)
        self._keys = np.insert(self._keys, position[~known], new_keys)
        self._counts = np.insert(self._counts, position[~known], counts[~known])
        self._first = np.insert(self._first, position[~known], start + sample[first])

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys that occur, ascending, their counts, and the first sample of each."""
        if not self._dense:
            return self._keys, self._counts, self._first
        present = np.flatnonzero(self._counts)
        return present, self._counts[present], self._first[present]


def sum_entries(
    values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], mask: np.ndarray | None = None
) -> sp.csr_array:
    """Sum values by (row, column) into a sparse matrix; with a mask only those where it is True."""
    total = sp.csr_array(shape)
    for block in iterate_blocks(len(values)):
        chosen = slice(None) if mask is None else mask[block]
        entries = (values[block][chosen].astype(np.float64), (rows[block][chosen], columns[block][chosen]))
        total = total + sp.coo_array(entries, shape=shape).tocsr()
    return sp.csr_array(total)


def count_samples(cluster: np.ndarray, counts: np.ndarray, n_clusters: int) -> np.ndarray:
    """Count samples per cluster, shape (n_clusters,), from the cluster per cell, -1 = noise, and its samples."""
    total = np.zeros(n_clusters + 1)
    for block in iterate_blocks(len(cluster)):
        total += np.bincount(cluster[block] + 1, counts[block], n_clusters + 1)
    return total[1:].astype(np.int64)


def iterate_blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Iterate over slices that cover n entries, `size` at a time."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
