"""Logical shards: how many there are, and what each process draws."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.pseudo_labels.holding import AllLabels, OwnLabels, is_of_samples
from hf_plr.pseudo_labels.shards import ELSEWHERE, ShardSampler, select_label_shards


def draw(targets, bounds, processes, per_step, n_steps, *, accumulation=1, views=1, group=4, seed=0, epoch=0):
    """What each step trains on, (steps, per_step), sample by sample in any order, and each process's own order."""
    n_shards, batch_size = len(bounds) - 1, per_step // processes // accumulation
    orders = []
    for process in range(processes):
        sampler = ShardSampler(n_shards, group, seed, processes, process, views)
        own = slice(bounds[process * n_shards // processes], bounds[(process + 1) * n_shards // processes])
        sampler.set_bounds(np.asarray(bounds))
        sampler.set_steps(n_steps * per_step, batch_size, accumulation)
        sampler.set_targets(targets[own], epoch)
        order = np.array(list(sampler)).reshape(n_steps, accumulation, processes, batch_size)
        others = np.delete(order, process, axis=2)
        assert (others == ELSEWHERE).all()  # accelerate gives process p every P-th batch
        drawn = order[:, :, process]
        assert ((drawn >= own.start) & (drawn < own.stop)).all()
        assert len(sampler) == order.size
        orders.append(drawn.reshape(n_steps, -1))
    return np.concatenate(orders, axis=1)


shardings = st.tuples(
    st.sampled_from([1, 2, 4, 8]), st.lists(st.integers(1, 30), min_size=8, max_size=8), st.integers(0, 5)
)


@given(shardings, st.integers(1, 3), st.sampled_from([1, 2]), st.integers(1, 6), st.integers(0, 3))
def test_steps_take_equal_parts_and_processes_change_nothing(sharding, per_shard, views, group, epoch):
    n_shards, sizes, seed = sharding
    bounds = np.concatenate([[0], np.cumsum(sizes[:n_shards])])
    targets = np.random.default_rng(seed).integers(-1, 5, bounds[-1])
    per_step, n_steps = n_shards * per_shard * views * 2, 5
    found = {
        (processes, accumulation): draw(
            targets,
            bounds,
            processes,
            per_step,
            n_steps,
            accumulation=accumulation,
            views=views,
            group=group,
            epoch=epoch,
        )
        for processes, accumulation in itertools.product((1, 2, 4, 8), (1, 2))
        if n_shards % processes == 0 and per_step % (processes * accumulation) == 0
    }
    one = np.sort(found[1, 1], axis=1)
    for steps in found.values():
        np.testing.assert_array_equal(np.sort(steps, axis=1), one)
    shard = np.searchsorted(bounds, one, side="right") - 1
    for step in shard:
        assert np.bincount(step, minlength=n_shards).tolist() == [per_step // n_shards] * n_shards
    for number in range(n_shards):  # members are drawn equally often, or once more; others only where there are none
        members = np.arange(bounds[number], bounds[number + 1])
        times = np.array([(one == member).sum() for member in members])
        is_member = targets[members] >= 0
        is_member |= not is_member.any()
        assert (times[~is_member] == 0).all()
        assert (times % views == 0).all()
        assert times[is_member].max() - times[is_member].min() <= views


def test_an_order_depends_on_seed_epoch_shard_and_its_own_targets_alone():
    rng = np.random.default_rng(0)
    targets, bounds = rng.integers(0, 4, 60), [0, 20, 40, 60]
    first = draw(targets, bounds, 1, 12, 5)
    changed = targets.copy()
    changed[20:] = rng.integers(0, 4, 40)
    other = draw(changed, bounds, 1, 12, 5)
    is_of_first = first < 20
    np.testing.assert_array_equal(first[is_of_first], other[other < 20])
    assert (first != draw(targets, bounds, 1, 12, 5, epoch=1)).any()
    assert (first != draw(targets, bounds, 1, 12, 5, seed=1)).any()
    same = np.concatenate([targets[:20]] * 3)
    order = draw(same, bounds, 1, 12, 5)
    assert (order[order < 20] != order[(order >= 20) & (order < 40)] - 20).any()


def test_groups_are_of_one_cluster():
    targets = np.tile(np.repeat(np.arange(4), 8), 4)
    order = draw(targets, [0, 32, 64, 96, 128], 2, 32, 4)
    groups = targets[order].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()


def test_views_of_a_sample_stay_together():
    order = draw(np.arange(64) % 5, [0, 32, 64], 2, 8, 8, views=2, accumulation=2)
    np.testing.assert_array_equal(order[:, ::2], order[:, 1::2])


def test_a_shard_without_samples_is_refused():
    sampler = ShardSampler(4, 4, 0, 1, 0)
    with pytest.raises(ValueError, match="label_shards=4 but the 30 samples are extracted in fewer batches"):
        sampler.set_bounds(np.array([0, 10, 20, 20, 30]))
    with pytest.raises(RuntimeError, match="no targets yet"):
        next(iter(sampler))


# ---- their number ------------------------------------------------------------------------------------------------


def arguments(shards=None, processes=1, batch=128, accumulation=1, group=4, **config):
    return SimpleNamespace(
        label_shards=shards,
        world_size=processes,
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        samples_per_cluster=group,
        auto_find_batch_size=False,
        accelerator_config=SimpleNamespace(split_batches=False, dispatch_batches=None, **config),
    )


@pytest.mark.parametrize(
    ("given", "n_samples", "expected"),
    [
        (arguments(), 2**20 - 1, 1),
        (arguments(), 2**20, 32),  # 128 samples are 32 groups of four
        (arguments(batch=512), 2**20, 64),
        (arguments(batch=32, processes=4), 2**20, 32),  # as one process of all
        (arguments(batch=64, accumulation=2), 2**20, 32),
        (arguments(batch=32, processes=3), 2**20, 1),
        (arguments(batch=2, processes=4), 2**20, 1),  # two groups for four processes
        (arguments(shards=1, batch=512), 2**20, 1),
        (arguments(shards=8), 1000, 8),
        (arguments(shards=6, processes=3, batch=4), 1000, 6),
    ],
)
def test_number_of_shards(given, n_samples, expected):
    assert select_label_shards(given, n_samples, views=2) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (arguments(shards=4, processes=3), "label_shards=4 cannot be shared equally by 3 processes"),
        (arguments(shards=2048), "label_shards=2048 but there are 1000 samples"),
        (arguments(shards=8, batch=24), "label_shards=8 needs steps of equally many samples in 2 views .* has 24"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        select_label_shards(given, 1000, views=2)


@pytest.mark.parametrize("way", ["split_batches", "dispatch_batches"])
def test_another_way_to_share_batches_out_is_refused(way):
    given = arguments(shards=4)
    setattr(given.accelerator_config, way, True)
    with pytest.raises(ValueError, match=f"needs batches of own samples on each process: no {way}"):
        select_label_shards(given, 1000, views=1)
    given.label_shards = None
    assert select_label_shards(given, 2**20, views=1) == 1


def test_steps_that_are_not_known_have_one_shard():
    given = arguments()
    given.auto_find_batch_size = True
    assert select_label_shards(given, 2**20, views=1) == 1
    given.label_shards = 1
    assert select_label_shards(given, 2**20, views=1) == 1
    given.label_shards = 8
    with pytest.raises(
        ValueError, match=r"label_shards=8 needs steps of equally many .* auto_find_batch_size=True may"
    ):
        select_label_shards(given, 1000, views=1)


# ---- what adds up ------------------------------------------------------------------------------------------------


def test_a_mean_does_not_depend_on_who_holds_what(monkeypatch):
    values = np.random.default_rng(0).random(1000).astype(np.float32).round(2)
    means = set()
    for bounds in ([0, 1000], [0, 10, 1000], [0, 0, 300, 700, 1000]):
        counted = [np.unique(values[start:stop], return_counts=True) for start, stop in itertools.pairwise(bounds)]
        monkeypatch.setattr("hf_plr.pseudo_labels.holding.gather_objects", lambda _, item, counted=counted: counted)
        means.add(OwnLabels(None).mean(values[: bounds[1]]))
    assert len(means) == 1
    assert means.pop() == pytest.approx(AllLabels(None).mean(values), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("labels", True),
        ("labeling.1.labels", True),
        ("labeling.1.refiner.history.2.13", True),
        ("soft.cell", True),
        ("features.rows", True),
        ("soft.codes", False),
        ("clusterer.labels", False),
        ("prototypes", False),
        ("refiner.version", False),
        ("n_clusters", False),
    ],
)
def test_what_of_a_state_is_of_samples(name, expected):
    assert is_of_samples(name) == expected
