"""One level of a tree of clusters: which cluster of the level each cluster of the run is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hf_plr.refinement.cooccurrence import NOISE, Positions, as_int64, iterate_chunks

NAME_SEPARATOR = " / "


@dataclass(frozen=True)
class Level:
    """A cut through the tree of K clusters.

    Attributes:
        labels: labels of the clusters of the run, int64 (K,).
        sizes: members of each, int64 (K,).
        numbers: number of the level's cluster that each is in, int64 (K,).
        height: height of the last merge that was made; 0 without any.
        own_names: names that people gave to clusters of the level, by number.
    """

    labels: np.ndarray
    sizes: np.ndarray
    numbers: np.ndarray
    height: float
    own_names: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def members(self) -> dict[int, tuple[int, ...]]:
        """Labels of the run's clusters in each cluster of the level, the largest of both first."""
        order = np.lexsort((self.labels, -self.sizes))
        members: dict[int, list[int]] = {}
        for place in order.tolist():
            members.setdefault(int(self.numbers[place]), []).append(int(self.labels[place]))
        largest_first = sorted(members, key=lambda number: (-self._size_of[number], number))
        return {number: tuple(members[number]) for number in largest_first}

    def size(self, number: int) -> int:
        """Samples in a cluster of the level."""
        return self._size_of[number]

    @cached_property
    def _size_of(self) -> dict[int, int]:
        numbers, code = np.unique(self.numbers, return_inverse=True)
        sizes = np.zeros(len(numbers), np.int64)
        np.add.at(sizes, code, self.sizes)
        return dict(zip(numbers.tolist(), sizes.tolist(), strict=True))

    def names(self, names: Mapping[int, str], counts_unnamed: bool = True) -> dict[int, str]:
        """Name the level's clusters: by their own names, or by the names of the run's clusters in them.

        That is the one that these share, or all, joined by " / ", those of more samples first. Where others
        of its clusters have no name, their number follows: "cats and 3 without a name". A cluster of the level without
        any named one is left out.

        Args:
            names: name by cluster of the run.
            counts_unnamed: False to leave the number of those without a name out.
        """
        size = dict(zip(self.labels.tolist(), self.sizes.tolist(), strict=True))
        found: dict[int, str] = {}
        for number, members in self.members.items():
            if number in self.own_names:
                found[number] = self.own_names[number]
                continue
            weights: dict[str, int] = {}
            for label in members:
                if label in names:
                    weights[names[label]] = weights.get(names[label], 0) + size[label]
            if weights:
                found[number] = NAME_SEPARATOR.join(sorted(weights, key=lambda name: (-weights[name], name)))
                unnamed = sum(label not in names for label in members)
                if unnamed and counts_unnamed:
                    found[number] += f" and {unnamed:,} without a name"
        return found

    def apply(self, labels: npt.ArrayLike) -> np.ndarray:
        """Number of the level's cluster of each sample, -1 where it has none.

        Args:
            labels: label of each sample in the run, -1 = noise, (N,).

        Returns:
            int64 (N,).

        Raises:
            ValueError: if the tree has no cluster of such a label.
        """
        labels = np.asarray(labels)
        order = np.argsort(self.labels)
        position, number_of = Positions(self.labels[order]), np.append(self.numbers[order], NOISE)
        numbers = np.empty(len(labels), np.int64)
        for span in iterate_chunks(len(labels)):
            chunk = as_int64(labels[span])
            place = position(chunk)
            unknown = (place < 0) & (chunk != NOISE)
            if unknown.any():
                raise ValueError(f"there is no cluster {chunk[unknown][0]} in the tree")
            numbers[span] = number_of[place]
        return numbers
