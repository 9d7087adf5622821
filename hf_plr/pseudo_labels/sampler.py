"""Order of the training samples, their number per epoch, and the seed of the order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from hf_plr.training_args import BaseTrainingArguments


def select_data_seed(args: BaseTrainingArguments) -> int:
    """Select the seed of the order of training."""
    return args.seed if args.data_seed is None else args.data_seed


def count_samples_per_step(args: BaseTrainingArguments, batch_size: int | None = None) -> int:
    """Count the samples of an optimizer step, of all processes and accumulation steps together.

    Args:
        args: the arguments.
        batch_size: samples of a batch, where `auto_find_batch_size` found a smaller one than the arguments name.
    """
    batch_size = args.train_batch_size if batch_size is None else batch_size
    return batch_size * args.gradient_accumulation_steps * args.world_size


def count_samples_per_epoch(args: BaseTrainingArguments, n_samples: int, batch_size: int | None = None) -> int:
    """Count the samples between two stages: whole steps, so that they are equal for any number of processes.

    An incomplete last step takes the first samples of the next pass; with `dataloader_drop_last` it is left out.
    """
    step = count_samples_per_step(args, batch_size)
    if args.steps_per_epoch is not None:
        return step * args.steps_per_epoch
    return step * max(1, n_samples // step if args.dataloader_drop_last else -(-n_samples // step))


BLOCK = 1 << 16  # indices that are converted to Python's integers at once


class EpochSampler(Sampler[int], ABC):
    """Sampler of a fixed number of indices per epoch, pass after pass over the data set.

    Args:
        n_samples: samples N of the data set.
        seed: seed of the order, which depends on it and on the epoch.
        samples_per_epoch: number of indices per epoch; by default N.
    """

    def __init__(self, n_samples: int, seed: int, samples_per_epoch: int | None = None):
        self.n_samples = n_samples
        self.samples_per_epoch = n_samples if samples_per_epoch is None else samples_per_epoch
        self.seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return self.samples_per_epoch

    def set_steps(self, samples_per_epoch: int, batch_size: int, accumulation: int) -> None:
        """Set the number of indices per epoch; the order depends on no size of batches."""
        self.samples_per_epoch = samples_per_epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self._epoch])
        passes: list[np.ndarray] = []
        n_drawn = 0
        while n_drawn < self.samples_per_epoch:
            indices = self._draw_pass(rng)
            passes.append(indices)
            n_drawn += len(indices)
        order = np.concatenate(passes)[: self.samples_per_epoch]
        # In blocks: as Python's integers the whole order would take five times the memory.
        blocks = (order[start : start + BLOCK] for start in range(0, len(order), BLOCK))
        return (index for block in blocks for index in block.tolist())

    @abstractmethod
    def _draw_pass(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the indices of one pass."""


class ClusterSampler(EpochSampler):
    """Sampler of a fixed number of indices per epoch, in groups of up to `group_size` samples of one cluster.

    The number of indices, and so a loader's length, never changes. Where noise samples are left out, a second pass over
    the members begins. A pass draws every member once. It shuffles each cluster's members, cuts them into groups of
    equal size, give or take one, and spreads the groups of a large cluster over the epoch. The order depends on
    (seed, epoch, targets) alone.

    With several views, each sample that is drawn comes so often in a row, and an epoch draws as many fewer samples.

    Args:
        n_samples: samples N of the data set.
        group_size: largest number of indices of one cluster in a row (K of P x K), at least 1; with several views, of
            one sample at least.
        seed: seed of the order.
        samples_per_epoch: number of indices per epoch, a multiple of `views`; by default N.
        views: times in a row that a sample comes.

    Example:
        >>> sampler = ClusterSampler(n_samples=6, group_size=3, seed=0)
        >>> sampler.set_targets(np.array([0, 1, 0, 1, 0, 1]), epoch=0)
        >>> order = list(sampler)
        >>> sorted(order[:3]) in ([0, 2, 4], [1, 3, 5])
        True
    """

    def __init__(
        self, n_samples: int, group_size: int, seed: int, samples_per_epoch: int | None = None, views: int = 1
    ):
        super().__init__(n_samples, seed, samples_per_epoch)
        self.group_size = max(group_size // views, 1)
        self.views = views
        self._targets: np.ndarray | None = None

    def set_targets(self, targets: np.ndarray, epoch: int) -> None:
        """Set the targets of the next epoch, shape (N,), -1 = left out."""
        self._targets = targets
        self._epoch = epoch

    def _draw_pass(self, rng: np.random.Generator) -> np.ndarray:
        if self._targets is None:
            raise RuntimeError("the sampler has no targets yet: the stage sets them before the first epoch")
        drawn = draw_groups(self._targets, self.group_size, rng)
        return np.repeat(drawn, self.views)


def draw_groups(targets: np.ndarray, group_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw every sample that has a target once, in groups of up to `group_size` of one cluster.

    Args:
        targets: cluster per sample, -1 = left out, shape (N,); at least one is not.
        group_size: largest number of samples in a group.
        rng: what the order depends on beside the targets.

    Returns:
        Positions, one after the other.
    """
    order = rng.permutation(len(targets))
    order = order[targets[order] >= 0]
    order = order[np.argsort(targets[order], kind="stable")]
    bounds = np.flatnonzero(np.diff(targets[order])) + 1
    groups: list[np.ndarray] = []
    turns: list[np.ndarray] = []
    for members in np.split(order, bounds):
        cluster_groups = np.array_split(members, -(-len(members) // group_size))
        groups.extend(cluster_groups)
        # Evenly spaced turns with a random start spread a large cluster over the pass.
        turns.append((np.arange(len(cluster_groups)) + rng.random()) / len(cluster_groups))
    return np.concatenate([groups[turn] for turn in np.argsort(np.concatenate(turns), kind="stable")])


class LengthSampler(EpochSampler):
    """Sampler of every sample once per epoch, in batches of similar lengths in random order.

    The order depends on (seed, epoch) alone.

    Args:
        n_samples: samples N of the data set, in order of their lengths.
        batch_size: samples per batch, of all processes and accumulation steps together.
        seed: seed of the order.
        samples_per_epoch: number of indices per epoch; by default N.
    """

    mixed_batches = 4  # number of batches, neighbours by length, whose samples are mixed

    def __init__(self, n_samples: int, batch_size: int, seed: int, samples_per_epoch: int | None = None):
        super().__init__(n_samples, seed, samples_per_epoch)
        self.batch_size = batch_size

    def begin(self, epoch: int) -> None:
        """Begin an epoch, which has an order of its own."""
        self._epoch = epoch

    def _draw_pass(self, rng: np.random.Generator) -> np.ndarray:
        noisy_positions = np.arange(self.n_samples) + rng.random(self.n_samples) * self.mixed_batches * self.batch_size
        order = np.argsort(noisy_positions, kind="stable")
        n_whole = len(order) // self.batch_size * self.batch_size
        batches = order[:n_whole].reshape(-1, self.batch_size)
        return np.concatenate([rng.permutation(batches).ravel(), order[n_whole:]])  # the incomplete batch stays last
