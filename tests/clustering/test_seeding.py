"""Greedy k-means++: which rows it draws, how good they are, and that a GPU is not waited for."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from helpers.absent_gpu import GPU, CountedCopies
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import kmeans_plusplus

from hf_plr.clustering import seeding
from hf_plr.clustering.seeding import draw_seeds


def find_positions(rows: torch.Tensor, seeds: torch.Tensor) -> list[int]:
    """Position of the first row that equals each seed; fails if one is not a row."""
    equal = (rows[None] == seeds[:, None]).all(dim=2)
    assert equal.any(dim=1).all()
    return equal.int().argmax(dim=1).tolist()


def sum_distances(rows: torch.Tensor, seeds: torch.Tensor) -> float:
    return float(torch.cdist(rows.double(), seeds.double()).min(dim=1)[0].square().sum())


def make_blobs(n: int, dimension: int, n_blobs: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_blobs, dimension, generator=generator)
    return centers[torch.randint(n_blobs, (n,), generator=generator)] + 0.3 * torch.randn(
        n, dimension, generator=generator
    )


def make_power_law(n: int, dimension: int, seed: int) -> torch.Tensor:
    """Rows whose variances fall like those of a network's features."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimension, generator=generator) / torch.arange(1, dimension + 1).sqrt()


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 200),
    dimension=st.integers(1, 9),
    n_values=st.integers(1, 30),
    scale=st.sampled_from([1e-40, 1e-20, 1.0, 1e15]),
    offset=st.sampled_from([0.0, 100.0]),
    data=st.data(),
)
def test_seeds_are_rows_and_distinct_as_far_as_rows_are(seed, n, dimension, n_values, scale, offset, data):
    n_clusters = data.draw(st.integers(1, n))
    values = np.random.default_rng(seed).integers(0, n_values, size=(n, dimension))
    rows = torch.from_numpy(scale * (values + offset)).float()
    seeds = draw_seeds(rows, n_clusters, seed, None)
    assert seeds.shape == (n_clusters, dimension)
    assert seeds.dtype == torch.float32
    assert len(set(find_positions(rows, seeds))) == min(n_clusters, len(rows.unique(dim=0)))
    assert torch.equal(seeds, draw_seeds(rows, n_clusters, seed, None))


def test_all_rows_are_seeds_where_there_are_as_many_clusters():
    rows = make_blobs(60, 5, 7, seed=0)
    rows[10:20] = rows[0]
    seeds = draw_seeds(rows, 60, 3, None)
    assert torch.equal(seeds.unique(dim=0), rows.unique(dim=0))
    counts = collections.Counter(find_positions(rows, seeds))
    assert counts.pop(0) == 11  # every duplicate once
    assert set(counts.values()) == {1}


def test_rounding_does_not_part_equal_rows():
    """Distances of equal rows, if not 0, would add up to more than those of the small rows."""
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(1, 384, generator=generator)
    small = 2e-3 * torch.randn(20, 384, generator=generator)
    rows = torch.cat([large.expand(2000, -1), -large.expand(2000, -1), small])
    for seed in range(5):
        assert len(draw_seeds(rows, 22, seed, None).unique(dim=0)) == 22


def test_seeds_lie_apart_however_far_from_the_origin_or_from_outliers():
    rows = make_blobs(2000, 8, 20, seed=0)
    expected = sum_distances(rows, draw_seeds(rows, 20, 0, None))
    far = rows + 1e4
    assert sum_distances(far, draw_seeds(far, 20, 0, None)) < 1.5 * expected
    rows[:2] *= 1e5  # these two become seeds, the others still have distances
    assert sum_distances(rows, draw_seeds(rows, 22, 0, None)) < 1.5 * expected


@pytest.mark.parametrize(
    ("make_rows", "n_clusters"),
    [
        (lambda seed: make_blobs(3000, 16, 50, seed), 50),
        (lambda seed: make_blobs(3000, 16, 30, seed), 90),
        (lambda seed: make_power_law(3000, 64, seed), 60),
        (lambda seed: torch.nn.functional.normalize(make_power_law(3000, 64, seed), dim=1), 60),
    ],
    ids=["blobs", "more-than-blobs", "power-law", "spherical"],
)
def test_seeds_are_as_good_as_those_of_scikit_learn(make_rows, n_clusters):
    ratios = []
    for seed in range(9):
        rows = make_rows(seed)
        theirs, _ = kmeans_plusplus(rows.numpy(), n_clusters, random_state=seed)
        ours = draw_seeds(rows, n_clusters, seed, None)
        ratios.append(sum_distances(rows, ours) / sum_distances(rows, torch.from_numpy(theirs)))
    assert np.median(ratios) < 1.05


def test_a_pool_for_several_seeds_changes_no_probability(monkeypatch):
    """Pools of one seed reject nothing: each of their draws is by the present distances."""
    rows = torch.tensor([[0.0], [1.0], [1.5], [4.0], [10.0]])
    shares = []
    for pool_rows in (seeding.POOL_ROWS, 1):
        monkeypatch.setattr(seeding, "POOL_ROWS", pool_rows)
        draws = [tuple(draw_seeds(rows, 3, seed, None).flatten().tolist()) for seed in range(1000)]
        shares.append({seeds: count / len(draws) for seeds, count in collections.Counter(draws).items()})
    together, alone = shares
    difference = sum(abs(together.get(seeds, 0) - alone.get(seeds, 0)) for seeds in together | alone) / 2
    assert len(alone) > 10
    assert difference < 0.12  # without rejection 0.5


def test_the_host_never_waits_for_a_gpu_between_seeds():
    candidates, n, n_trials = 12, 40, 3
    pool = seeding._Pool(
        positions=torch.empty(candidates, dtype=torch.int64, device=GPU),
        closest=torch.empty(candidates, device=GPU),
        chances=torch.empty(candidates, device=GPU),
        between=torch.empty(candidates + 1, candidates, device=GPU),
        distances=torch.empty(candidates + 1, n, device=GPU),
        shift=1.0,
    )
    with CountedCopies() as copies:
        slots = seeding._choose_seeds(pool, torch.empty(n, device=GPU), n_trials, None)
    assert slots.shape == (candidates // n_trials,)
    assert copies.names == []


@pytest.mark.parametrize("n_clusters", [0, 11])
def test_numbers_that_do_not_fit_are_named(n_clusters):
    with pytest.raises(ValueError, match=f"n_clusters={n_clusters} but there are 10 rows"):
        draw_seeds(torch.ones(10, 2), n_clusters, 0, None)


def test_no_sum_of_floats_is_taken_in_order(monkeypatch):
    """On a GPU that must give the same bits each time, torch would refuse it."""
    cumsum = torch.Tensor.cumsum
    seen = []

    def recorded(values, *args, **kwargs):
        seen.append(values.dtype)
        return cumsum(values, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "cumsum", recorded)
    draw_seeds(make_blobs(500, 8, 5, seed=0), 20, seed=0, accelerator=None)
    assert seen
    assert not any(dtype.is_floating_point for dtype in seen)
