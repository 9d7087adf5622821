"""Refinement of one epoch's cluster labels by those of the epochs before: project, blend, re-cluster."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_plr.refinement.agglomeration import Cut
from hf_plr.refinement.arguments import check_arguments, check_out
from hf_plr.refinement.blending import blend
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, as_int64, cooccurrence
from hf_plr.refinement.numbering import AddShards, ClusterNumbers, keep_numbers
from hf_plr.refinement.presets import PRESETS
from hf_plr.refinement.projection import project
from hf_plr.refinement.reclustering import recluster
from hf_plr.refinement.result import CellRefinement, RefinementResult
from hf_plr.utils.serialization import validate_array

STATE_VERSION = 2

Epoch = tuple[np.ndarray, ...]  # labelings of one epoch, each of shape (N,), the current clustering first


class PseudoLabelRefiner:
    """Refine cluster labels by the labels of the epochs before.

    A refinement needs label vectors alone, neither a GPU nor a model. All arithmetic runs on the occupied cells
    (previous label, current label), so that its cost hardly depends on the number of samples.

    Args:
        weight: fraction of the current epoch in the blend, in [0, 1]; None for an equal part of every generation. With
            space="joint" also "agreement": the less an epoch's labelings agree with the current ones, the less it
            counts, see `hf_plr.refinement.generations`. So old epochs steady labels that have settled, and do not hold
            back those that have not.
        space: "projected" blends in the space of the current clusters, "joint" holds the generations side by side.
        normalize: axis along which the projection adds up to one, "row" or "column".
        generations: number of epochs that count, the current one included; more than 2 need space="joint".
        assignment: "hierarchical" re-clusters the soft labels, "argmax" takes their largest entry (for weight > 0.5
            the current cluster always has it), "soft" keeps the current clusters beside the soft labels (noise that is
            readmitted goes to its largest entry), "current" skips refinement.
        metric: distance of the cells, "euclidean" between soft labels, or "coassociation": one minus the weighted share
            of the labelings that have two samples in one cluster, where noise is with nobody. The latter needs
            space="joint", assignment="hierarchical" and linkage="average". Clusters that no labeling has together stay
            apart, even if more than n_clusters are left. A sample that is noise in more than half of the labelings, or
            in more than distance_threshold of them, is noise; others are taken back in. With min_cluster_size=4 and a
            threshold, noise of density-based clusterings comes back only where labelings agree on its neighbors.
        linkage: "average", "ward", "complete", "single" or "centroid".
        n_clusters: cut into this many clusters; "current" for as many as there are now. Merges that are tied at the cut
            are made together or not at all, so that more clusters may be left.
        distance_threshold: cut at this height instead (then n_clusters=None). Euclidean distances scale with the
            weight: halves of a split are weight * sqrt(2) apart. With metric="coassociation" below 1; 0.5 keeps
            clusters whose samples are together in half of the labelings, on average.
        noise: "project" readmits a sample that is noise now by its previous cluster, "drop" leaves it out.
        previous: "refined" carries the refined labels to the next call, "raw" the labels before refinement.
        min_cluster_size: refined clusters with fewer samples become noise, at least 1.
        n_levels: number of levels of the agglomeration. Each finer one has twice as many clusters, and each of its
            clusters lies in one cluster of the coarser. The labels are of the coarsest; `RefinementResult.finer` has
            the others. With n_clusters "current" the finest has as many clusters as there are now; with a number the
            coarsest has so many, and no finer one more than there are now. More than one level need n_clusters and
            assignment="hierarchical". A first epoch of one labeling has its clusters at all levels.
        max_cells: more occupied cells than this are folded into similar heavy ones before agglomeration, and the
            result has exact=False. Cells that are related to few others, as in training, are agglomerated exactly
            whatever their number. Otherwise "average", "complete" and "single" need a matrix of 8 bytes per pair of
            cells, 3 GiB for the default. Not used by metric="coassociation", which agglomerates as many cells as have
            64 million related pairs (some 1.4 GiB) and lets the others join the clusters of these.

    Raises:
        ValueError: for a value outside these ranges, naming the argument.

    Example:
        >>> refiner = PseudoLabelRefiner()
        >>> refiner.refine([0, 0, 0, 0, 1, 1]).labels.tolist()  # the first epoch: nothing to refine by
        [0, 0, 0, 0, 1, 1]
        >>> refiner.refine([3, 3, 3, 8, 8, 8]).labels.tolist()  # clusters keep their numbers
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(
        self,
        weight: float | str | None = 0.5,
        space: str = "projected",
        normalize: str = "row",
        generations: int = 2,
        assignment: str = "hierarchical",
        metric: str = "euclidean",
        linkage: str = "average",
        n_clusters: str | int | None = "current",
        distance_threshold: float | None = None,
        noise: str = "project",
        previous: str = "refined",
        min_cluster_size: int = 2,
        max_cells: int = 20_000,
        n_levels: int = 1,
    ):
        self.weight = weight
        self.space = space
        self.normalize = normalize
        self.generations = generations
        self.assignment = assignment
        self.metric = metric
        self.linkage = linkage
        self.n_clusters = n_clusters
        self.distance_threshold = distance_threshold
        self.noise = noise
        self.previous = previous
        self.min_cluster_size = min_cluster_size
        self.max_cells = max_cells
        self.n_levels = n_levels
        check_arguments(self.settings())
        self._history: list[Epoch] = []  # labels of the last calls, oldest first
        self._numbers = [ClusterNumbers() for _ in range(n_levels)]  # of each level, the coarsest first

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> PseudoLabelRefiner:
        """Make a refiner from a preset, one of `PRESETS`; keyword arguments override it.

        Raises:
            ValueError: if there is no such preset, or an argument does not fit.
            TypeError: for a keyword that the constructor does not have.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __repr__(self) -> str:
        return f"PseudoLabelRefiner({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    def refine(
        self,
        labels: npt.ArrayLike,
        *,
        out: np.ndarray | None = None,
        centroid_cosines: np.ndarray | None = None,
        offset: int = 0,
        add_shards: AddShards | None = None,
    ) -> RefinementResult:
        """Refine this epoch's labels by those of the last epochs and remember them for the next call.

        Args:
            labels: integer cluster labels, -1 = noise, shape (N,), samples in the same order at every call. Ids may be
                any integers from 0. With space="joint" and previous="raw" also M labelings of this epoch, shape (N, M),
                M the same at every call: the first column is the current clustering, whose clusters are counted and
                numbered; the others have equal weight, and all of them are remembered. The first call with one
                labeling refines nothing: it only remembers and numbers. A memory-mapped array
                (`numpy.load(..., mmap_mode="r")`) is read in chunks and never copied. Leave its file unchanged while
                the result, or with previous="raw" the refiner, is in use.
            out: integer array of shape (N,) to write the refined labels to, such as a memory-mapped one; not the one
                of the last call, or given to `continue_from`.
            centroid_cosines: see `refine_cells`.
            offset: index of the first sample, where these labels are a shard.
            add_shards: gives the sum of the tables of all shards for the table of this one, which may be empty. Every
                shard makes the same calls, and gets the labels that one call for all samples would give it.

        Raises:
            TypeError: if the labels, or out, are not integers, or the labels are a masked array.
            ValueError: if the labels have another shape, are below -1, or differ in number from the last call's, or if
                out does not fit or is in use.
        """
        epoch = self._check_labels(labels, may_be_empty=add_shards is not None)
        in_use = [labels for used_epoch in (epoch, *self._history) for labels in used_epoch]
        in_use += [labels for numbers in self._numbers for labels in numbers.held]
        out = check_out(out, len(epoch[0]), in_use)
        labelings = _arrange([*self._padded_history(epoch), epoch])
        add_shards = _leave_alone if add_shards is None else add_shards

        table = add_shards(cooccurrence(*labelings, offset=offset))
        cells = self.refine_cells(table, centroid_cosines)
        levels: list[RefinementResult] = []
        all_numbers = [copy.copy(numbers) for numbers in self._numbers]  # one may be refused
        for numbers, level in zip(all_numbers, (cells, *cells.finer), strict=True):
            labels = np.empty_like(out) if levels else out
            numbered = numbers.spread(level, labelings, labels, add_shards)
            assert numbers.last is not None
            levels.append(RefinementResult(numbers.last, numbered, labelings))
        self._numbers = all_numbers
        first, *finer = levels
        kept_labels = (first.labels,) if self.previous == "refined" else epoch
        self._history = [*self._history, kept_labels][1 - self.generations :]
        return first.with_finer(finer) if finer else first

    def refine_cells(self, table: CooccurrenceTable, centroid_cosines: np.ndarray | None = None) -> CellRefinement:
        """Refine from the co-occurrence table alone, without remembering anything.

        With the sum of the shards' tables, each process refines by itself and gets the same result:
        `cells = refiner.refine_cells(sum(tables))`, then `cells.labels[cells.table.locate(previous, current)]`.

        Args:
            table: cells of `generations` labelings, oldest first. Where the previous labels are all noise, the
                current clusters stay unchanged. With M labelings an epoch, the further ones come first (M - 1 of the
                oldest epoch, M - 1 of the next, ...), then the current clusterings, oldest first.
            centroid_cosines: cosines between the centroids of the previous clusters, ascending by id, shape (K', K'):
                similar clusters share their projections as in RLCC. Only for space="projected".

        Raises:
            ValueError: if the table has another number of labelings, or the cosines do not fit.
        """
        self._check_table(table, centroid_cosines)
        projection = project(table, self.normalize, centroid_cosines)
        soft = blend(table, projection, self.weight, self._space_of_blend, self.noise, self.generations)
        levels, is_exact = recluster(
            table,
            soft,
            self.assignment,
            self.metric,
            self.linkage,
            self._cuts(table),
            self.min_cluster_size,
            self.max_cells,
        )
        keeps_columns = self.assignment == "soft" and self.space == "projected"
        first, *finer = (
            keep_numbers(table, projection, soft, level, is_exact, keeps_columns, self.metric, numbers.first_new)
            for level, numbers in zip(levels, self._numbers, strict=True)
        )
        # What a coarser level joins is no change of the current clusters, which are as fine as the finest.
        return replace(first, finer=tuple(finer), changed_share=finer[-1].changed_share) if finer else first

    @property
    def next_number(self) -> int:
        """The smallest number above those of all clusters so far."""
        return self._numbers[0].next_number

    @property
    def history(self) -> tuple[np.ndarray, ...]:
        """The labelings that the next call refines by, those of the oldest epoch first, read-only, shape (N,) each."""
        return tuple(labels for epoch in self._history for labels in epoch)

    @property
    def _space_of_blend(self) -> str:
        return "current" if self.assignment == "current" else self.space

    def _cuts(self, table: CooccurrenceTable) -> list[Cut]:
        """Cuts of the levels, the coarsest first."""
        if self.n_clusters is None:
            return [Cut(None, self.distance_threshold)]
        n_current = len(table.current_ids)
        if self.n_clusters == "current":
            numbers = [round(n_current / 2**finer) for finer in range(self.n_levels)[::-1]]
        else:
            coarsest = int(self.n_clusters)
            numbers = [min(coarsest * 2**finer, max(coarsest, n_current)) for finer in range(self.n_levels)]
        return [Cut(max(number, 1), self.distance_threshold) for number in numbers]

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for the next call, as arrays: `version` and, after the first call, labels of shape (N,).

        With M labelings an epoch, `history.1.1` to `history.1.{M - 1}` are the further ones of epoch `history.1`.
        `numbers` are `next_number`, and 0 after `continue_from` or 1; `anchor` are the labels that it was given.
        `finer.1`, `finer.2`, ... are the labels of the finer levels.
        """
        state = {"version": np.array([STATE_VERSION])}
        for age, (current, *further) in enumerate(self._history[::-1], start=1):
            state[f"history.{age}"] = current
            state |= {f"history.{age}.{member}": labels for member, labels in enumerate(further, start=1)}
        first, *finer = self._numbers
        if first.last is not None:
            state["refined"] = first.last
            state["numbers"] = np.array([first.next_number, first.reuses])
        if first.anchor is not None:
            state["anchor"] = first.anchor
        return state | {f"finer.{i}": level.last for i, level in enumerate(finer, start=1) if level.last is not None}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore the output of `state_dict`.

        Raises:
            ValueError: if the state has another version of this format, is damaged, or has another number of samples
                than this refiner's last call.
        """
        version = int(validate_array(state, "version", "integers", (1,))[0]) if "version" in state else None
        if version != STATE_VERSION:
            raise ValueError(f"refiner state has version {version}, this release reads version {STATE_VERSION}")
        names = [name for name in state if name.startswith("history.")]
        n_epochs = sum(name.count(".") == 1 for name in names)
        n_members = len(names) // n_epochs if n_epochs else 1
        self._check_number_of_members(n_members)
        if len(names) != n_epochs * n_members:
            raise ValueError(f"refiner state is damaged: it has {len(names)} labelings of {n_epochs} epochs")
        history = [
            tuple(
                validate_array(state, f"history.{age}{suffix}", "integers", (None,), NOISE)
                for suffix in ("", *(f".{member}" for member in range(1, n_members)))
            )
            for age in range(n_epochs, 0, -1)
        ]
        refined = validate_array(state, "refined", "integers", (None,), NOISE) if "refined" in state else None
        anchor = validate_array(state, "anchor", "integers", (None,), NOISE) if "anchor" in state else None
        names = [name for name in state if name.startswith("finer.")]
        finer = [validate_array(state, f"finer.{i}", "integers", (None,), NOISE) for i in range(1, len(names) + 1)]
        if finer and len(finer) != self.n_levels - 1:
            raise ValueError(f"refiner state holds {len(finer) + 1} levels, but n_levels={self.n_levels} here")
        labelings = [labels for epoch in history for labels in epoch]
        labelings += [labels for labels in (refined, anchor, *finer) if labels is not None]
        lengths = {len(labels) for labels in labelings}
        if len(lengths) > 1:
            raise ValueError(f"refiner state is damaged: its labels have lengths {sorted(lengths)}")
        if lengths and self._last is not None and len(self._last) not in lengths:
            raise ValueError(
                f"refiner state is of {lengths.pop()} samples, but this refiner's last call had {len(self._last)}"
            )
        if len(history) >= self.generations:
            raise ValueError(
                f"refiner state holds {len(history) + 1} generations, but generations={self.generations} here"
            )
        self._history = history
        if refined is not None and history and self.previous == "refined":
            refined = history[-1][0]
        first = ClusterNumbers(refined, 0 if refined is None else int(refined.max(initial=NOISE)) + 1, True, anchor)
        if "numbers" in state:  # older releases wrote none
            numbers = validate_array(state, "numbers", "integers", (2,), 0)
            first.next_number = max(first.next_number, int(numbers[0]))
            first.reuses = bool(numbers[1])
        self._numbers = [first, *(ClusterNumbers(labels) for labels in finer)]
        self._numbers += [ClusterNumbers() for _ in range(self.n_levels - len(self._numbers))]

    def copy(self) -> PseudoLabelRefiner:
        """Copy the refiner: what it remembers is the same, and its next call leaves this one as it is."""
        other = copy.copy(self)
        other._numbers = [copy.copy(numbers) for numbers in self._numbers]
        return other

    def return_to(self, earlier: PseudoLabelRefiner) -> None:
        """Remember what a `copy` of this refiner remembers, and nothing of the calls since."""
        self._history, self._numbers = earlier._history, [copy.copy(numbers) for numbers in earlier._numbers]

    def forget(self) -> None:
        """Forget the previous labels, so that the next call refines nothing; numbers of clusters still persist.

        The next call may have another number of labelings. Several of them still make a consensus of their own.
        """
        self._history = []

    def continue_from(self, labels: npt.ArrayLike, n_labelings: int, next_number: int) -> None:
        """Take the labels of an earlier run, perhaps of other samples too, for those of the last call.

        The next call is refined by them and continues their numbers, and these stay with their samples at later calls.
        From now on a number that a cluster has had is never given to another one.

        Args:
            labels: label of each sample in the earlier run, -1 where it had none, shape (N,).
            n_labelings: number M of labelings an epoch, as the next call has; each of the earlier epoch is `labels`.
            next_number: the smallest number that may be given to a new cluster, above those of `labels`.

        Raises:
            TypeError, ValueError: if labels are not integers from -1, or one of them is not below `next_number`. What
                the refiner remembers is as before then.
        """
        without_memory = PseudoLabelRefiner(**self.settings())  # whose last call had no other samples
        last, *further = without_memory._check_labels(labels, may_be_empty=True)
        if further:
            raise ValueError(f"labels must have shape (N,), not {(len(last), len(further) + 1)}")
        if last.max(initial=NOISE) >= next_number:
            raise ValueError(f"next_number={next_number} must be above the labels, but {last.max()} is among them")
        self._check_number_of_members(n_labelings)

        self._history = [(last,) * n_labelings]
        # Numbers of finer levels were not told of, and begin anew.
        first = ClusterNumbers(last, next_number, reuses=False, anchor=last)
        self._numbers = [first, *(ClusterNumbers() for _ in range(self.n_levels - 1))]

    @property
    def _last(self) -> np.ndarray | None:
        """Refined labels of the last call; None before the first."""
        return self._numbers[0].last

    def _padded_history(self, epoch: Epoch) -> list[Epoch]:
        """Labels of the last generations - 1 calls, with noise for missing calls."""
        no_labels = (np.broadcast_to(np.int64(NOISE), len(epoch[0])),) * len(epoch)
        return [no_labels] * (self.generations - 1 - len(self._history)) + self._history

    def _check_table(self, table: CooccurrenceTable, centroid_cosines: np.ndarray | None) -> None:
        n_labelings = table.codes.shape[1]
        if n_labelings % self.generations or (n_labelings > self.generations and self.space != "joint"):
            raise ValueError(f"the table has {n_labelings} labelings, but generations={self.generations} needs as many")
        if centroid_cosines is not None and self.space != "projected":
            raise ValueError("centroid_cosines need space='projected': the joint space has no projection")

    def _check_labels(self, labels: npt.ArrayLike, may_be_empty: bool) -> Epoch:
        """Check the labels of an epoch; returns its labelings, copied unless they are memory-mapped."""
        if isinstance(labels, np.ma.MaskedArray):
            raise TypeError("labels are a masked array: fill it first, with labels.filled(-1) for noise")
        is_memory_mapped = isinstance(labels, np.memmap)
        labels = np.asanyarray(labels)
        if labels.ndim not in (1, 2) or labels.shape[-1] == 0 < len(labels):
            raise ValueError(f"labels must have shape (N,), or (N, M) for M labelings, not {labels.shape}")
        if len(labels) == 0 and not may_be_empty:
            raise ValueError("labels are empty: at least one sample is needed")
        last_labels = self._history[-1][0] if self._history else self._last
        if last_labels is not None and len(labels) != len(last_labels):
            raise ValueError(
                f"{len(labels)} labels, but the last call had {len(last_labels)}: "
                "refinement needs the same samples in the same order"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"labels must be integers (-1 = noise), not {labels.dtype}")
        members = [labels] if labels.ndim == 1 else [*labels.T]
        self._check_number_of_members(len(members))
        if self._history and len(members) != len(self._history[-1]):
            raise ValueError(
                f"{len(members)} labelings, but the last call had {len(self._history[-1])}: "
                "give as many at every call, or call forget() first"
            )
        if is_memory_mapped:
            return tuple(members)
        keeps_dtype = labels.dtype in (np.int16, np.int32)  # several labelings of some epochs are remembered
        return tuple(_freeze(np.array(member if keeps_dtype else as_int64(member))) for member in members)

    @property
    def takes_members(self) -> bool:
        """True if several labelings an epoch make a consensus here."""
        return self.metric == "coassociation" and self.previous == "raw"

    def _check_number_of_members(self, n_members: int) -> None:
        """Check that this refiner can take this number of labelings an epoch."""
        for name, needed in (("space", "joint"), ("previous", "raw")):
            if n_members > 1 and getattr(self, name) != needed:
                raise ValueError(f"{n_members} labelings an epoch need {name}={needed!r}, not {getattr(self, name)!r}")


def _leave_alone(table: CooccurrenceTable) -> CooccurrenceTable:
    """The sum of one shard's table."""
    return table


def _arrange(epochs: list[Epoch]) -> tuple[np.ndarray, ...]:
    """Arrange labelings for the co-occurrence table: further ones first, then the current clusterings of all epochs."""
    further = [labels for epoch in epochs for labels in epoch[:0:-1]]
    return (*further, *(epoch[0] for epoch in epochs))


def _freeze(labels: np.ndarray) -> np.ndarray:
    view = labels.view()
    view.flags.writeable = False
    return view
