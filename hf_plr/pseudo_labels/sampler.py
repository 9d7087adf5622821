"""The order in which training takes its samples, how many an epoch takes, and the seed of that order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from hf_plr.training_args import BaseTrainingArguments


def select_data_seed(args: BaseTrainingArguments) -> int:
    """Seed of the order of training."""
    return args.seed if args.data_seed is None else args.data_seed


def count_samples_per_step(args: BaseTrainingArguments) -> int:
    """Samples of an optimizer step, of all processes and accumulation steps together."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def count_samples_per_epoch(args: BaseTrainingArguments, n_samples: int) -> int:
    """Samples between two stages: whole steps, so that they are the same for any number of processes.

    Where the last step lacks samples, it takes the first ones of the next pass; with `dataloader_drop_last` it is left
    out.
    """
    step = count_samples_per_step(args)
    if args.steps_per_epoch is not None:
        return step * args.steps_per_epoch
    return step * max(1, n_samples // step if args.dataloader_drop_last else -(-n_samples // step))


PART = 1 << 16  # indices that are Python's integers together


class EpochSampler(Sampler[int], ABC):
    """Yield a fixed number of indices an epoch, pass after pass over the data set.

    Args:
        n_samples: samples N of the data set.
        seed: seed of the order, which depends on it and on the epoch.
        samples_per_epoch: indices that an epoch yields; by default N.
    """

    def __init__(self, n_samples: int, seed: int, samples_per_epoch: int | None = None):
        self.n_samples = n_samples
        self.samples_per_epoch = n_samples if samples_per_epoch is None else samples_per_epoch
        self.seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self._epoch])
        stream: list[np.ndarray] = []
        drawn = 0
        while drawn < self.samples_per_epoch:
            one_pass = self._one_pass(rng)
            stream.append(one_pass)
            drawn += len(one_pass)
        order = np.concatenate(stream)[: self.samples_per_epoch]
        # In parts: as Python's integers the whole order would take five times the memory.
        parts = (order[start : start + PART] for start in range(0, len(order), PART))
        return (index for part in parts for index in part.tolist())

    @abstractmethod
    def _one_pass(self, rng: np.random.Generator) -> np.ndarray:
        """Indices of one pass."""


class ClusterSampler(EpochSampler):
    """Yield a fixed number of indices an epoch in groups of up to `group_size` samples of one cluster.

    The number of indices never changes, so a loader's length stays what it was: where noise samples are left out,
    a second pass over the members begins. In a pass every member is drawn once: each cluster's members are shuffled and
    cut into groups of equal size, give or take one, and the groups are dealt so that those of a large cluster are
    spread over the epoch. The order depends on (seed, epoch, targets) alone.

    Args:
        n_samples: samples N of the data set.
        group_size: samples of one cluster in a row at most (K of P x K), at least 1.
        seed: seed of the order.
        samples_per_epoch: indices that an epoch yields; by default N.
    """

    def __init__(self, n_samples: int, group_size: int, seed: int, samples_per_epoch: int | None = None):
        super().__init__(n_samples, seed, samples_per_epoch)
        self.group_size = group_size
        self._targets: np.ndarray | None = None

    def set_targets(self, targets: np.ndarray, epoch: int) -> None:
        """Draw the coming epoch by these targets, shape (N,), -1 = left out."""
        self._targets = targets
        self._epoch = epoch

    def _one_pass(self, rng: np.random.Generator) -> np.ndarray:
        if self._targets is None:
            raise RuntimeError("the sampler has no targets yet: the stage sets them before the first epoch")
        order = rng.permutation(self.n_samples)
        order = order[self._targets[order] >= 0]
        order = order[np.argsort(self._targets[order], kind="stable")]
        bounds = np.flatnonzero(np.diff(self._targets[order])) + 1
        groups: list[np.ndarray] = []
        turns: list[np.ndarray] = []
        for members in np.split(order, bounds):
            cluster_groups = np.array_split(members, -(-len(members) // self.group_size))
            groups.extend(cluster_groups)
            # Evenly spaced turns with a random start: a large cluster comes up often, but not in clumps.
            turns.append((np.arange(len(cluster_groups)) + rng.random()) / len(cluster_groups))
        return np.concatenate([groups[turn] for turn in np.argsort(np.concatenate(turns), kind="stable")])


class LengthSampler(EpochSampler):
    """Yield every sample once an epoch, in batches of similar lengths that come in random order.

    The order depends on (seed, epoch) alone.

    Args:
        n_samples: samples N of the data set, in order of their lengths.
        batch_size: samples of a batch, of all processes and accumulation steps together.
        seed: seed of the order.
        samples_per_epoch: indices that an epoch yields; by default N.
    """

    mixed_batches = 4  # so many batches' samples, neighbours by length, are mixed

    def __init__(self, n_samples: int, batch_size: int, seed: int, samples_per_epoch: int | None = None):
        super().__init__(n_samples, seed, samples_per_epoch)
        self.batch_size = batch_size

    def begin(self, epoch: int) -> None:
        """Draw the coming epoch's order."""
        self._epoch = epoch

    def _one_pass(self, rng: np.random.Generator) -> np.ndarray:
        places = np.arange(self.n_samples) + rng.random(self.n_samples) * self.mixed_batches * self.batch_size
        order = np.argsort(places, kind="stable")
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        return np.concatenate([rng.permutation(batches).ravel(), order[whole:]])  # the short one stays last
