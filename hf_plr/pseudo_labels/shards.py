"""Logical shards of the samples: how many there are, and the order of training within each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from hf_plr.pseudo_labels.sampler import (
    ClusterSampler,
    count_samples_per_epoch,
    count_samples_per_step,
    draw_groups,
    select_data_seed,
)
from hf_plr.training_args import PLRTrainingArguments

SHARDED_FROM = 1 << 20  # samples from which there are shards by default
MOST_SHARDS = 64  # by default
ELSEWHERE = -1  # stands for the samples of other processes in the order of training


def select_label_shards(args: PLRTrainingArguments, n_samples: int, views: int) -> int:
    """Select the number of logical shards.

    By default there is one for fewer than 2^20 samples. Of more samples there are 64, or the largest smaller power of
    two of which the processes have equally many each and every step takes whole groups of `samples_per_cluster` from
    each. It is one where there is none, as for three processes, and with `auto_find_batch_size`, whose steps nobody
    knows.

    Args:
        args: the arguments, with `label_shards`.
        n_samples: number of training samples N.
        views: views of each sample in a batch.

    Raises:
        ValueError: if `label_shards` does not fit the processes, the samples or the steps, the steps are not known, or
            accelerate is told to share batches out in a way of its own.
    """
    processes, per_step = args.world_size, count_samples_per_step(args)
    if args.label_shards is None:
        if n_samples < SHARDED_FROM or args.auto_find_batch_size or _own_ways_to_share(args):
            return 1
        group = max(args.samples_per_cluster, views)
        numbers = (MOST_SHARDS >> halvings for halvings in range(MOST_SHARDS.bit_length()))
        return next((n for n in numbers if n % processes == 0 and per_step % (n * group) == 0), 1)
    n = args.label_shards
    if n == 1:
        return 1
    if n % processes:
        raise ValueError(f"label_shards={n} cannot be shared equally by {processes} processes: give a multiple of them")
    if n > n_samples > 0:
        raise ValueError(f"label_shards={n} but there are {n_samples} samples")
    if way := _own_ways_to_share(args):
        raise ValueError(f"label_shards={n} needs batches of own samples on each process: no {way}")
    if args.auto_find_batch_size:
        raise ValueError(
            f"label_shards={n} needs steps of equally many samples from each shard, and auto_find_batch_size=True may "
            "find other ones: leave one of the two out"
        )
    check_step(n, per_step, views)
    return n


def make_cluster_sampler(
    args: PLRTrainingArguments, n_samples: int, n_shards: int, views: int
) -> ClusterSampler | ShardSampler:
    """Make the sampler of N training samples in this number of logical shards."""
    samples_per_epoch, seed = count_samples_per_epoch(args, n_samples), select_data_seed(args)
    if n_shards == 1:
        return ClusterSampler(n_samples, args.samples_per_cluster, seed, samples_per_epoch, views)
    sampler = ShardSampler(n_shards, args.samples_per_cluster, seed, args.world_size, args.process_index, views)
    sampler.set_steps(samples_per_epoch, args.train_batch_size, args.gradient_accumulation_steps)
    return sampler


def check_step(n_shards: int, per_step: int, views: int) -> None:
    """Check that a step of `per_step` samples takes equal parts from all shards.

    Raises:
        ValueError: if it does not.
    """
    if per_step % (n_shards * views):
        kind = "samples" if views == 1 else f"samples in {views} views"
        raise ValueError(
            f"label_shards={n_shards} needs steps of equally many {kind} from each shard, but a step has {per_step} in "
            f"all: make it a multiple of {n_shards * views} by per_device_train_batch_size"
        )


def _own_ways_to_share(args: PLRTrainingArguments) -> str:
    """The setting of accelerate, if there is one, by which processes do not take every P-th batch; empty if not."""
    config = args.accelerator_config
    return next((name for name in ("split_batches", "dispatch_batches") if getattr(config, name, None)), "")


class ShardSampler(Sampler[int]):
    """Sampler of equally many samples of every shard in each step, in groups as `ClusterSampler` draws them.

    A process draws the samples of its own shards, and needs the targets of no others. Its order has `ELSEWHERE` in
    place of theirs: accelerate gives it every P-th batch, which holds its own alone. The order within a shard depends
    on (seed, epoch, shard, targets), so that any number of processes trains on the same samples in each step.

    An epoch draws equally often from all shards: pass after pass, so that a member of a shard is drawn as often as any
    other one, or once more. A shard whose samples have no target is drawn from as a whole, and has no loss.

    Args:
        n_shards: number L of shards of all processes, a multiple of their number.
        group_size: see `ClusterSampler`.
        seed: seed of the order.
        processes: number P of processes.
        process: number of this one.
        views: times in a row that a sample comes.
    """

    def __init__(self, n_shards: int, group_size: int, seed: int, processes: int, process: int, views: int = 1):
        self.n_shards = n_shards
        self.group_size = max(group_size // views, 1)
        self.seed = seed
        self.processes = processes
        self.process = process
        self.views = views
        self.samples_per_epoch, self.batch_size, self.accumulation = 0, 1, 1
        self._bounds = np.empty(0, np.int64)
        self._targets = np.empty(0, np.int32)
        self._epoch = 0

    def set_bounds(self, bounds: np.ndarray) -> None:
        """Set the positions at which the shards of all processes begin, and the end of the last, shape (L + 1,).

        Raises:
            ValueError: if a shard has no samples.
        """
        if (np.diff(bounds) == 0).any():
            raise ValueError(
                f"label_shards={self.n_shards} but the {bounds[-1]} samples are extracted in fewer batches, and a "
                "shard has whole ones: use fewer shards or a smaller per_device_eval_batch_size"
            )
        self._bounds = bounds

    def set_targets(self, targets: np.ndarray, epoch: int) -> None:
        """Set the targets of the next epoch: those of own samples, -1 = left out, shape (n,)."""
        self._targets, self._epoch = targets, epoch

    def set_steps(self, samples_per_epoch: int, batch_size: int, accumulation: int) -> None:
        """Set the indices of an epoch, of all processes together, those of a process's batch, and its batches a step.

        Raises:
            ValueError: if a step does not take equal parts from all shards.
        """
        check_step(self.n_shards, self.processes * accumulation * batch_size, self.views)
        self.samples_per_epoch, self.batch_size, self.accumulation = samples_per_epoch, batch_size, accumulation

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __iter__(self) -> Iterator[int]:
        if len(self._targets) == 0:
            raise RuntimeError("the sampler has no targets yet: the stage sets them before the first epoch")
        per_step = self.processes * self.accumulation * self.batch_size
        n_steps, own_shards = self.samples_per_epoch // per_step, self.n_shards // self.processes
        first = self.process * own_shards
        shape = (n_steps, self.accumulation, self.batch_size)
        dtype = np.int32 if self._bounds[-1] < 2**31 else np.int64
        own = np.empty((n_steps, own_shards, per_step // self.n_shards), dtype)
        for i in range(own_shards):
            own[:, i] = self._draw(first + i, own[:, i].size).reshape(n_steps, -1)
        return self._among_those_of_others(own.reshape(shape))

    def _among_those_of_others(self, own: np.ndarray) -> Iterator[int]:
        elsewhere = [ELSEWHERE] * self.batch_size
        for batch in own.reshape(-1, self.batch_size):
            for process in range(self.processes):
                yield from batch.tolist() if process == self.process else elsewhere

    def _draw(self, shard: int, n: int) -> np.ndarray:
        """Draw n indices of a shard, pass after pass over its members."""
        rng = np.random.default_rng([self.seed, self._epoch, shard])
        start, stop = self._bounds[shard : shard + 2]
        first_own = self._bounds[self.process * self.n_shards // self.processes]
        targets = self._targets[start - first_own : stop - first_own]
        if (targets < 0).all():
            targets = np.zeros_like(targets)
        drawn, n_drawn = [np.empty(0, np.int64)], 0
        while n_drawn * self.views < n:
            drawn.append(draw_groups(targets, self.group_size, rng))
            n_drawn += len(drawn[-1])
        return np.repeat(start + np.concatenate(drawn)[: -(-n // self.views)], self.views)[:n]
