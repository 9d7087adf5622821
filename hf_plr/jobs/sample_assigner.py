"""Assignment of a store's samples to known clusters, batch by batch, and groups of the new ones."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hf_plr.clustering.checks import find_nonfinite_rows
from hf_plr.clustering.new_patterns import BACKGROUND, group_new_samples
from hf_plr.clustering.novelty import KnownClusters
from hf_plr.data.sample_store import Finding, SampleStore
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.report.assigned import AssignedSamples
from hf_plr.utils.mapped_arrays import PREFIX

BLOCK_ROWS = 4_096  # features that are assigned together


class SpilledRows:
    """Rows (m, D) in a file without a name, in the order in which they were added."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix=PREFIX)  # noqa: SIM115  # lives as long as this object
        self._n_rows = 0
        self._width = 0

    def add(self, rows: torch.Tensor) -> None:
        """Append rows, float32 (n, D)."""
        if len(rows):
            self._file.write(np.ascontiguousarray(rows.cpu().numpy(), np.float32).data)
            self._n_rows, self._width = self._n_rows + len(rows), rows.shape[1]

    def read(self) -> torch.Tensor:
        """Map all rows into memory: float32 (m, D), or (0, 0) without any."""
        if self._n_rows == 0:
            return torch.empty(0, 0)
        self._file.flush()
        return torch.from_numpy(np.memmap(self._file, np.float32, "r+", shape=(self._n_rows, self._width)))


class SampleAssigner:
    """Assigns the samples of a store that nobody has decoded yet.

    Each sample is decoded once. Of its feature nothing is kept, but for new samples and for some that fit, which new
    ones are grouped beside.

    Args:
        known: the clusters, on the device of the features.
        false_alarms: a sample is new if its p-value is at most this.
        store: the samples.
        skip_unreadable: True where the store leaves unreadable samples out.
    """

    def __init__(self, known: KnownClusters, false_alarms: float, store: SampleStore, skip_unreadable: bool):
        self.known = known
        self.false_alarms = false_alarms
        self.store = store
        self.skip_unreadable = skip_unreadable
        self._found: dict[int, Finding] = {}
        self._parts: list[AssignedSamples] = []
        self._new = SpilledRows()
        self._background = SpilledRows()
        is_background = np.zeros(len(store), bool)
        # Twice as many as are needed: some are new.
        drawn = np.random.default_rng(0).choice(len(store), min(len(store), 2 * BACKGROUND), replace=False)
        is_background[drawn] = True
        self._is_background = is_background

    def run(self, extractor: FeatureExtractor) -> AssignedSamples:
        """Assign all samples, and group the new ones.

        Raises:
            UnreadableSample: naming the first that cannot be read, unless these are left out.
            ValueError: if the features do not fit the clusters or are not finite.
        """
        store = self.store
        self._assign(extractor, np.arange(len(store)))
        found = self._found
        if not store.is_checked:
            store.settle(found)
        # A fault that did not come again, or another length than the header says.
        again = [row for row, finding in found.items() if not isinstance(finding, str)]
        first = sum(map(len, self._parts))
        if again:
            self._assign(extractor, np.flatnonzero(np.isin(store.rows, again)), is_repetition=True)
        return self._finish(first, again)

    def _assign(self, extractor: FeatureExtractor, positions: np.ndarray, is_repetition: bool = False) -> None:
        """Assign the samples at these positions of the store as it is now."""
        rows = self.store.rows[positions]
        spans = None if self.store.segments is None else self.store.segments[positions]
        is_background = np.zeros(len(positions), bool) if is_repetition else self._is_background
        pending: list[torch.Tensor] = []
        start = 0

        def flush() -> None:
            nonlocal start
            features = torch.cat(pending).float()
            pending.clear()
            block = slice(start, start + len(features))
            start = block.stop
            self._add(features, rows[block], None if spans is None else spans[block], is_background[block])

        def consume(features: torch.Tensor) -> None:
            pending.append(features)
            if sum(map(len, pending)) >= BLOCK_ROWS:
                flush()

        extractor.stream(self.store, torch.from_numpy(positions), consume)
        if pending:
            flush()

    def _add(
        self, features: torch.Tensor, rows: np.ndarray, spans: np.ndarray | None, is_background: np.ndarray
    ) -> None:
        """Assign samples by their features (n, D); those that could not be decoded, which are zeros, are left out."""
        if not self.store.is_checked:
            self._found |= self.store.examine()
            if not self.skip_unreadable and any(isinstance(finding, str) for finding in self._found.values()):
                self.store.settle(self._found)  # raises
            keep = ~np.isin(rows, list(self._found))
            if not keep.all():
                rows, is_background = rows[keep], is_background[keep]
                features, spans = _take(features, keep), None if spans is None else spans[keep]
        bad = find_nonfinite_rows(features)
        if len(bad):
            raise ValueError(
                f"the feature of row {rows[int(bad[0])]} is NaN or infinite: check that sample, and the weights of the "
                "model"
            )
        if len(features) == 0:
            return
        found = self.known.assign(features)
        is_new = found.p_value <= self.false_alarms
        for spilled, chosen in ((self._new, is_new), (self._background, is_background & ~is_new)):
            if chosen.any():
                spilled.add(self.known.map(_take(features, chosen)))
        self._parts.append(
            AssignedSamples(
                row=rows,
                is_new=is_new,
                nearest=found.label,
                similarity=found.similarity,
                second=found.second_label,
                second_similarity=found.second_similarity,
                novelty=found.novelty,
                p_value=found.p_value,
                group=np.full(len(rows), -1, np.int64),
                spans=spans,
            )
        )

    def _finish(self, first: int, again: list[int]) -> AssignedSamples:
        """Put everything together; of the first samples those of the rows that were assigned again do not count."""
        samples = _combine(self._parts, np.concatenate)
        new = self._new.read()
        # A recording that turned out to be damaged is left out as a whole, also what was assigned of it before.
        kept = ~np.isin(samples.row, self.store.unreadable)
        kept[:first] &= ~np.isin(samples.row[:first], again)  # segments of a block before that of the fault
        new = new[torch.from_numpy(kept[samples.is_new])]
        samples = _select(samples, np.flatnonzero(kept))
        background, n_known = self._background.read(), int(np.count_nonzero(~samples.is_new))
        if len(background) == 0:
            background = new[:0]
        samples.group[samples.is_new] = group_new_samples(new, background, n_known)
        keys = (samples.row,) if samples.spans is None else (samples.spans[:, 0], samples.row)
        samples = _select(samples, np.lexsort(keys))  # recordings are stored by length
        return dataclasses.replace(samples, files=self._list_files(samples.row))

    def _list_files(self, rows: np.ndarray) -> list[str] | None:
        files = self.store.files()
        if files is None:
            return None
        by_row = dict(zip(self.store.rows.tolist(), files, strict=True))
        return [by_row[row] for row in rows.tolist()]


def _take(features: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
    return features[torch.from_numpy(chosen).to(features.device)]


def _combine(parts: list[AssignedSamples], function: Callable[[list[np.ndarray]], np.ndarray]) -> AssignedSamples:
    """Apply a function to each column of several parts."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(AssignedSamples):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if values[0] is None else function(values)
    return AssignedSamples(**columns)


def _select(samples: AssignedSamples, positions: np.ndarray) -> AssignedSamples:
    return _combine([samples], lambda values: values[0][positions])
