"""Which labels a process holds: those of all samples, or those of its own."""

from __future__ import annotations

import os
import re

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.refinement import NOISE, CooccurrenceTable
from hf_plr.utils.distributed import collect_on_main, gather_objects, gather_rows, locate_rows

OF_SAMPLES = re.compile(
    r"(labeling\.\d+\.)?(labels|previous_labels|raw_labels|confidence|targets|soft\.cell|refiner\.refined"
    r"|refiner\.anchor|refiner\.finer\.\d+|refiner\.history\.[\d.]+)|continued\.last|features\.(rows|seen)|units|raw_units"
)


def is_of_samples(name: str) -> bool:
    """True if an array of this name in the state of a run has an entry for each sample, or frame, of a process."""
    return OF_SAMPLES.fullmatch(name) is not None


def add_tables(accelerator: Accelerator | None, table: CooccurrenceTable) -> CooccurrenceTable:
    """Add the tables of all processes, on every process: their cells travel, and nothing per sample."""
    total: CooccurrenceTable = sum(gather_objects(accelerator, table))
    return total


class AllLabels:
    """Every process holds the labels of all samples, so that any process may train on any sample.

    A process's own samples are those whose features it extracts, the held ones those whose labels it has.

    Args:
        accelerator: connects the processes.
    """

    def __init__(self, accelerator: Accelerator | None):
        self.accelerator = accelerator

    def hold(self, values: np.ndarray) -> np.ndarray:
        """Values of the held samples, from every process's values of its own: (n, ...) to (N, ...)."""
        return gather_rows(self.accelerator, torch.from_numpy(values)).numpy()

    def first(self, part: slice) -> int:
        """Position of the first held sample, if those at `part` are the own ones."""
        return 0

    def own(self, part: slice) -> slice:
        """Where the own samples, at the positions `part`, are among the held ones."""
        return part

    def add_shards(self, table: CooccurrenceTable) -> CooccurrenceTable:
        """Table of all samples, from that of the held ones."""
        return table

    def add(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of all samples, from those counted among the held ones; of one shape on every process."""
        return numbers

    def count(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the distinct values of all samples, from those of the held ones: values, ascending, and counts."""
        return np.unique(values, return_counts=True)

    def mean(self, values: np.ndarray) -> float:
        """Mean over all samples of the values of held ones, any number on each process; 0 without any."""
        return values.mean() if len(values) else 0.0

    def collect(self, values: np.ndarray) -> np.ndarray | None:
        """Values of all samples on the main process, from those of the held ones; None on the others."""
        return values if self.accelerator is None or self.accelerator.is_main_process else None


class OwnLabels(AllLabels):
    """Each process holds the labels of its own samples, and nothing per sample travels but to the main one's files.

    What is computed of all samples comes from tables and counts, which add up. Every method is called on all processes.

    Args:
        accelerator: connects the processes.
        folder: folder of the files without a name in which the main process collects; None takes the system's
            temporary folder.
    """

    def __init__(self, accelerator: Accelerator, folder: str | os.PathLike[str] | None = None):
        super().__init__(accelerator)
        self.folder = folder

    def hold(self, values: np.ndarray) -> np.ndarray:
        """Values as they are, but small integers in two bytes."""
        if not np.issubdtype(values.dtype, np.signedinteger) or values.dtype.itemsize <= 2:
            return values
        fits = values.max(initial=0) < 2**15 and values.min(initial=0) >= NOISE
        return values.astype(np.int16) if fits else values

    def first(self, part: slice) -> int:
        """Position in the data set of the first sample that this process holds."""
        return part.start

    def own(self, part: slice) -> slice:
        """Where the samples of this process are in what it holds."""
        return slice(0, part.stop - part.start)

    def add_shards(self, table: CooccurrenceTable) -> CooccurrenceTable:
        """Add up the tables of all processes."""
        return add_tables(self.accelerator, table)

    def add(self, numbers: np.ndarray) -> np.ndarray:
        """Add up arrays over the processes."""
        return np.sum(gather_objects(self.accelerator, numbers), axis=0)

    def count(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count distinct values over all processes: these ascending, and how often each occurs."""
        found = gather_objects(self.accelerator, np.unique(values, return_counts=True))
        distinct, code = np.unique(np.concatenate([each for each, _ in found]), return_inverse=True)
        counts = np.zeros(len(distinct), np.int64)
        np.add.at(counts, code, np.concatenate([each for _, each in found]))
        return distinct, counts

    def mean(self, values: np.ndarray) -> float:
        """Average values over all processes, the same bits whoever holds what; 0 without values."""
        distinct, counts = self.count(values)  # ascending, so that the sum does not depend on who holds what
        return float(np.average(distinct, weights=counts)) if len(distinct) else 0.0

    def collect(self, values: np.ndarray) -> np.ndarray | None:
        """Collect the values of all samples on the main process; None on the others."""
        start, total = locate_rows(self.accelerator, len(values))
        return collect_on_main(self.accelerator, values, start, total, self.folder)


def make_holder(n_shards: int, accelerator: Accelerator, folder: str | os.PathLike[str] | None = None) -> AllLabels:
    """Make what holds labels in this number of logical shards; `folder` as for `OwnLabels`."""
    return AllLabels(accelerator) if n_shards == 1 else OwnLabels(accelerator, folder)
