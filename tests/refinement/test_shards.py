"""Shards of the samples refine together what one call for all of them would."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.labels import churned

from hf_plr.refinement import PRESETS, PseudoLabelRefiner, cooccurrence

N_SAMPLES, N_CLUSTERS, EPOCHS = 600, 9, 5


class Adder:
    """Adds the tables of shards that refine at the same time, each in a thread, as processes do."""

    def __init__(self, n_shards):
        self.tables = [None] * n_shards
        self.barrier = threading.Barrier(n_shards, timeout=300)

    def of(self, shard):
        def add(table):
            self.tables[shard] = pickle.loads(pickle.dumps(table))  # noqa: S301  # it travels, as between processes
            self.barrier.wait()
            total = sum(self.tables)
            self.barrier.wait()
            return total

        return add


def epochs_of(n_members):
    """Labels of some epochs, (N,) or (N, M): clusters churn, some ids never occur, and some samples are noise."""
    rng = np.random.default_rng(1)
    labels = churned(N_SAMPLES, N_CLUSTERS, 0.0)[0]
    for epoch in range(EPOCHS):
        labels = np.where(rng.random(N_SAMPLES) < 0.2, rng.integers(0, N_CLUSTERS, N_SAMPLES), labels)
        members = [
            np.where(rng.random(N_SAMPLES) < 0.05, -1, (labels + epoch + member) % N_CLUSTERS * 3)
            for member in range(n_members)
        ]
        yield members[0] if n_members == 1 else np.stack(members, axis=1).astype(np.int32)


@pytest.mark.parametrize(
    "bounds", [(0, 600), (0, 300, 600), (0, 100, 100, 450, 600), (0, 10, 20, 80, 300, 301, 302, 303, 600)]
)
@pytest.mark.parametrize("preset", [*PRESETS, "consensus of five"])
def test_shards_refine_to_the_labels_of_all(preset, bounds):
    name, n_members = ("consensus", 5) if preset == "consensus of five" else (preset, 1)
    n_shards = len(bounds) - 1
    adder = Adder(n_shards)
    whole, shards = (
        PseudoLabelRefiner.from_preset(name),
        [PseudoLabelRefiner.from_preset(name) for _ in range(n_shards)],
    )
    with ThreadPoolExecutor(n_shards) as pool:
        for epoch, labels in enumerate(epochs_of(n_members)):
            if epoch == 3:  # as before refine_start_epoch: numbers go on, everything else begins again
                for refiner in (whole, *shards):
                    refiner.forget()
            expected = whole.refine(labels)

            def refine(shard, labels=labels):
                part = slice(bounds[shard], bounds[shard + 1])
                return shards[shard].refine(labels[part], offset=part.start, add_shards=adder.of(shard))

            found = list(pool.map(refine, range(n_shards)))
            np.testing.assert_array_equal(np.concatenate([each.labels for each in found]), expected.labels)
            np.testing.assert_array_equal(np.concatenate([each.confidence for each in found]), expected.confidence)
            for each in found:
                assert each.events.counts() == expected.events.counts()
                assert each.changed_share == expected.changed_share
                np.testing.assert_array_equal(each.table.counts, expected.table.counts)
                np.testing.assert_array_equal(each.table.first_member, expected.table.first_member)


def test_an_empty_shard_needs_others():
    with pytest.raises(ValueError, match="labels are empty"):
        PseudoLabelRefiner().refine(np.array([], np.int64))


def test_a_table_travels_without_what_locates_samples():
    labels = np.arange(5000) % 70
    table = cooccurrence(labels, labels[::-1])
    assert len(pickle.dumps(table)) < 40 * len(table) + 4000
    copied = pickle.loads(pickle.dumps(table))  # noqa: S301
    np.testing.assert_array_equal(copied.locate(labels, labels[::-1]), table.locate(labels, labels[::-1]))
